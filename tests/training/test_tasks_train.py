"""Runs of two steps: reward parts, chat templates, tasks by name, templates and settings."""

import json
import shutil

import pytest

from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import ReasoningGymTask
from rlkd_lab.training import run

TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'system' %}S:{{ message['content']"
    " }}\n{% else %}U:{{ message['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)


def test_length_penalties_enter_the_reward(trained):
    rows = trained("grpo", {"reward.overlong": "0.5", "reward.brevity": "0.2"}).rows()
    assert len(rows) == 2
    for row in rows:
        parts = {
            name: row[f"reward/{name}"] for name in ("accuracy", "format", "overlong", "brevity")
        }
        assert -1 <= parts["overlong"] <= 0
        assert row["reward"] == pytest.approx(
            parts["accuracy"]
            + 0.1 * parts["format"]
            + 0.5 * parts["overlong"]
            + 0.2 * parts["brevity"],
            abs=1e-5,
        )


def test_a_run_with_a_chat_template(tiny, make_model, tmp_path):
    student = tmp_path / "student"
    shutil.copytree(make_model(), student)
    path = student / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    fields = {"student": str(student), "teacher": None, "quant": "none", "lora_rank": 4}
    # the same prompts in other turns: other completions
    runs = {
        chat: run(
            tiny("grpo", {"chat": chat}, system_prompt=system, **fields), tmp_path / chat
        ).rows()
        for chat, system in (("auto", "Be brief."), ("off", None))
    }
    assert len(runs["auto"]) == len(runs["off"]) == 2
    assert runs["auto"][0]["entropy"] != runs["off"][0]["entropy"]


@pytest.mark.parametrize("method", ["grpo", "sft"])
def test_a_reasoning_gym_set_with_settings_and_a_template_trains(
    tiny, tmp_path, method, monkeypatch
):
    score, seen = ReasoningGymTask.score, []
    monkeypatch.setattr(
        ReasoningGymTask,
        "score",
        lambda self, text, example: seen.append(example) or score(self, text, example),
    )
    settings = {
        "task": "chain_sum",
        "task.max_terms": "3",
        "prompt_template": "{question}\n<answer>",
        "keep_traces": "all",
    }
    settings["verifier_seconds"] = "0"  # in this process, where it can be watched
    folder = run(tiny(method, settings, difficulty=(0, 1)), tmp_path / "run")
    rows = folder.rows()
    assert len(rows) == 2
    assert all(example.meta for example in seen), (
        "the verifier needs the whole entry, on teacher traces too"
    )
    config = RunFolder.open(folder.path).config()
    assert (config["task_settings"], config["prompt_template"]) == (
        {"max_terms": 3},
        "{question}\n<answer>",
    )
    if method == "grpo":
        assert {"reward/accuracy", "reward/credit", "reward/format"} <= set(rows[0])


def test_questions_of_a_file_train(tiny, tmp_path):
    lines = [json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) for i in range(60)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    rows = run(
        tiny(
            "grpo",
            {
                "task": str(tmp_path / "q.jsonl"),
                "prompt_template": "{question}",
                "reward.parsed": "0.2",
            },
            difficulty=None,
        ),
        tmp_path / "run",
    ).rows()
    assert {"reward/accuracy", "reward/parsed", "reward/format"} <= set(rows[0])
