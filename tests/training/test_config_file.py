"""Configs from files: what they mean, who wins, and that no file does harm."""

import json
import re

import pytest

from rlkd_lab.runs import RunFolder
from rlkd_lab.training import make_config
from rlkd_lab.training.config_file import as_yaml, asked_config, effective
from rlkd_lab.training.fingerprint import fingerprint

YAML = """\
method: kdrl
steps: 1e1
kd_coef: 1e-2            # a text in YAML 1.1
kd_ratio: off            # a boolean there
gradient_checkpointing: yes
teacher: teacher-concise
difficulty: [2, 3]
task: countdown
task.min_numbers: 3
reward.overlong: 0.1
guards: {loss: skip}
"""
TOML = """\
method = "kdrl"
steps = 10
gradient_checkpointing = true
teacher = "teacher-concise"
difficulty = "2-3"
task = "countdown"
[knobs]
kd_coef = 0.01
[options]
kd_ratio = "off"
[task_settings]
min_numbers = 3
[reward]
accuracy = 1
format = 0.1
overlong = 0.1
[guards]
loss = "skip"
"""
MEANT = {
    "kd_coef": "0.01",
    "kd_ratio": "off",
    "gradient_checkpointing": "true",
    "teacher": "teacher-concise",
    "difficulty": "2-3",
    "task": "countdown",
    "task.min_numbers": "3",
    "reward.overlong": "0.1",
    "guard.loss": "skip",
}


@pytest.fixture
def written(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.mark.parametrize(("name", "text"), [("a.yaml", YAML), ("a.toml", TOML)])
def test_a_file_means_what_the_same_settings_mean_on_the_command_line(written, name, text):
    config, _ = asked_config(written(name, text), {})
    assert config == make_config("kdrl", settings=MEANT, steps=10)


@pytest.mark.parametrize("preset", ["tiny", "s-countdown"])
def test_a_runs_config_and_a_written_one_make_the_same_run(tmp_path, written, preset):
    settings = {
        "kd_coef": "linear:0.5:0.1",
        "importance_cap": "off",
        "estimator": "exact",
        "topk": "5",
        "teacher_home": "device",
        "system_prompt": 'off: "1e-5" # \u2028é😀\x7f\n*x',
        "task.words": '["3", 3, null]',
        "max_prompt_tokens": "off",
    }
    config = make_config("kdrl", preset, settings, seed=3, reward={"accuracy": 2})
    RunFolder.create(tmp_path / "run", config.model_dump(), {})
    read, sources = asked_config(tmp_path / "run" / "config.json", {})
    assert read == config
    again, _ = asked_config(written("b.yml", as_yaml(effective(read, sources))), {})
    assert again == config
    assert fingerprint(again) == fingerprint(read) == fingerprint(config)


def test_each_value_says_where_it_comes_from_and_the_nearer_one_wins(written):
    file = written(
        "a.yaml",
        "method: kdrl\npreset: s-countdown\nmode: fast\ndense_copy: true\n"
        "group_size: 4\nkd_coef: 0.3\n",
    )
    settings = {"group_size": "6", "mode": "lean", "reward.overlong": "0.1"}
    config, sources = asked_config(file, settings, seed=5, steps=None)
    rows = effective(config, sources)
    assert {name: rows[name] for name in ("method", "seed", "group_size", "kd_coef")} == {
        "method": ("kdrl", "file"),
        "seed": (5, "command line"),
        "group_size": (6, "command line"),
        "kd_coef": (0.3, "file"),
    }
    assert rows["dense_copy"] == (False, "command line")
    assert rows["reward"][1] == "command line"
    assert rows["learning_rate"] == (1e-5, "preset")
    assert rows["task.max_numbers"] == (4, "preset")
    assert rows["top_p"] == (1.0, "default")
    annealed, sources = asked_config(file, {}, method="kdrl_annealed", preset="gsm8k-0.5b")
    assert effective(annealed, sources)["kd_coef"] == (0.3, "file")
    annealed, sources = asked_config(None, {}, method="kdrl_annealed", preset="gsm8k-0.5b")
    assert effective(annealed, sources)["kd_coef"][1] == "default"  # the preset's is not taken


BOMB = "a: &a [x, x]\n" + "".join(f"b{i}: &b{i} [*a, *a]\n" for i in range(9))
HOSTILE = {
    "no config file": ("a.ini", "method=kdrl", "its name ends in .yaml"),
    "not UTF-8": ("a.yaml", b"\xff\xfem\x00", "a.yaml: 'utf-8' codec can't decode"),
    "empty": ("a.yaml", b"\xef\xbb\xbf# nothing\n", "holds no settings"),
    "empty TOML": ("a.toml", "", "holds no settings"),
    "a list": ("a.json", '["kdrl"]', "holds no settings"),
    "several documents": ("a.yaml", "method: kdrl\n---\nmethod: grpo\n", "single document"),
    "no YAML": ("a.yaml", "method: [kdrl\n", "expected ',' or ']'"),
    "no TOML": ("a.toml", "method = \n", "Invalid value"),
    "control character": ("a.yaml", "method: k\x07drl\n", "special characters are not allowed"),
    "twice": ("a.yaml", "method: kdrl\nsteps: 1\nsteps: 2\n", "'steps' stands twice"),
    "twice in JSON": ("a.json", '{"method": "kdrl", "method": "grpo"}', "'method' stands twice"),
    "twice inside": ("a.yaml", "method: kdrl\nknobs: {kd_coef: 1, kd_coef: 2}\n", "'kd_coef'"),
    "in two forms": ("a.yaml", "method: kdrl\nknobs: {kd_coef: 1}\nkd_coef: 2\n", "stands twice"),
    "a tag": ("a.yaml", "method: !!python/object/apply:os.getcwd []\n", "tags"),
    "a tag of the safe ones": ("a.yaml", "method: !!timestamp x\n", "tags"),
    "aliases": ("a.yaml", BOMB, "aliases"),
    "a merge": ("a.yaml", "a: &a {x: 1}\n<<: *a\n", "aliases"),
    "deep": ("a.yaml", "a: " + "[" * 5000, "recursion"),
    "deep JSON": ("a.json", '{"a":' * 100_000, "recursion"),
    "thousands of digits": ("a.yaml", "steps: " + "9" * 5000, "digits"),
    "a date": (
        "a.toml",
        'method = "kdrl"\nkd_coef = 2026-01-01\n',
        "kd_coef=2026-01-01: a setting",
    ),
    "a date in YAML": ("a.yaml", "method: kdrl\nkd_coef: 2026-01-01\n", "is no schedule"),
    "a list as a value": (
        "a.yaml",
        "method: kdrl\ngroup_size: [4]\n",
        "group_size=[4]: Input should",
    ),
    "a table as a value": ("a.toml", 'method = "kdrl"\n[teacher]\nname = "x"\n', "teacher={"),
    "a list inside": ("a.yaml", "method: kdrl\nknobs: {kd_coef: [1]}\n", "kd_coef=[1]: a setting"),
    "no table": ("a.yaml", "method: kdrl\nreward: 3\n", "reward maps names to values"),
    "guards": ("a.yaml", "method: kdrl\nguards: null\nguard.loss: skip\n", "guards maps names"),
    "unknown": ("a.yaml", "method: kdrl\nkd_coeff: 1\n", "did you mean 'kd_coef'"),
    "unknown inside": ("a.toml", 'method = "kdrl"\nknobs.kd_coeff = 1\n', "did you mean 'kd_coef'"),
    "unknown and nothing": ("a.yaml", "method: kdrl\ngroup_sise:\n", "did you mean 'group_size'"),
    "a name that is a number": ("a.yaml", "method: kdrl\n3: 4\n", "'3'"),
    "a name that is a list": ("a.yaml", "method: kdrl\n? [a]\n: 4\n", "unhashable"),
    "an unknown method": ("a.yaml", "method: kdlr\n", "did you mean 'kdrl'"),
    "a method of another type": ("a.yaml", "method: [kdrl]\n", "method=['kdrl']: a setting"),
    "no method": ("a.yaml", "steps: 3\n", "which method?"),
    "nothing where a number is": ("a.yaml", "method: kdrl\ngroup_size: null\n", "group_size=None"),
    "a boolean where a number is": ("a.yaml", "method: kdrl\nsteps: true\n", "steps='true'"),
    "half a character": ("a.json", '{"method": "kdrl", "student": "\\ud800"}', "half a character"),
    "not a number": ("a.json", '{"method": "kdrl", "verifier_seconds": NaN}', "finite number"),
    "another version": ("a.json", '{"format": 1, "method": "kdrl"}', "another version"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_in_one_sentence(written, case):
    name, content, says = HOSTILE[case]
    with pytest.raises(ValueError, match=re.escape(says)) as raised:
        asked_config(written(name, content), {})
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_a_runs_config_cannot_name_code_in_its_folder(tmp_path):
    config = make_config("grpo", task=f"{tmp_path / 'run' / 'evil.py'}:Task")
    RunFolder.create(tmp_path / "run", config.model_dump(), {})
    path = tmp_path / "run" / "config.json"
    with pytest.raises(ValueError, match="no code in it is run"):
        asked_config(path, {})
    assert json.loads(path.read_text())["method"] == "grpo"
