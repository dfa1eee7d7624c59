"""A short form of benchmarks/long_run.py."""

from benchmarks.long_run import long_run


def test_nothing_grows_with_the_steps_but_a_line_a_step(tmp_path):
    begun, *_, ended = long_run(
        tmp_path, 240, 6, samples_every=4, checkpoint_every=4, keep_samples=10, keep_checkpoints=2
    )
    assert (ended["open_files"], ended["threads"]) == (begun["open_files"], begun["threads"])
    assert ended["memory_mib"] < begun["memory_mib"] + 4
    assert ended["samples"] <= 10
    assert ended["checkpoints"] <= 3
    assert ended["folder_mib"] < 1.2 * begun["folder_mib"]
    assert ended["overhead_ms"] < 3 * begun["overhead_ms"]
