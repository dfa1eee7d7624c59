"""Teachers that read another prompt than the student, and those that are the student itself."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkd_lab.models import Sequences
from rlkd_lab.objectives import TokenBatch
from rlkd_lab.tasks import ArithmeticTask, Chat, Example, find_task
from rlkd_lab.tasks.rewards import Verdict
from rlkd_lab.training import make_config, replay, resume, run
from rlkd_lab.training.before_loading import asked_prompts
from rlkd_lab.training.data import data_of
from rlkd_lab.training.metrics import token_row
from rlkd_lab.training.prompts import teacher_text
from rlkd_lab.training.samples import Rollout
from rlkd_lab.training.teachers import feedback, with_teacher_prompts
from rlkd_lab.training.trainer import Trainer
from tests.short import SHORT

TRACE = "{trace}\n{prompt}"
DENSE = {"quant": "none", "teacher_quant": "none"}


def said_by_transformers(model, table, adapter=None, column="teacher_prompt"):
    """Log-probabilities of recorded tokens after the teacher's prompts, a list a row."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    lm = lm if adapter is None else PeftModel.from_pretrained(lm, adapter).eval()
    found = []
    for row in table.to_dict("records"):
        prompt, ids = tokenizer(row[column])["input_ids"], list(map(int, row["ids"]))
        with torch.no_grad():
            logps = lm(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        found.append([float(logps[len(prompt) + i - 1, one]) for i, one in enumerate(ids)])
    return found


@pytest.mark.parametrize("kind", ["local", "self", "self:current", "self:ema"])
def test_a_teacher_scores_the_students_tokens_after_its_own_prompt(tiny, tmp_path, kind):
    """By a plain forward of the model as loaded; the lean forward reads each prompt once."""
    follows = kind in ("self:current", "self:ema")
    more = {"teacher_ema": 1.0} if kind == "self:ema" else {}
    own = SHORT["teacher"] if kind == "local" else kind
    config = tiny(
        "opd",
        {"teacher_prompt": TRACE, "learning_rate": "0.02"},
        **{**DENSE, "teacher": own, "samples_every": 1, "checkpoint_every": 1, **more},
        steps=1 + follows,
    )
    folder = run(config, tmp_path / "run")
    table = folder.samples(1 + follows)
    assert (table["teacher_prompt"].str.partition("\n")[2] == table["prompt"]).all()
    first = str(tmp_path / "run" / "checkpoints" / "step_000001")
    expected = said_by_transformers(
        SHORT["teacher" if kind == "local" else "student"],
        table,
        first if follows else None,  # at a rate of 1 the average is the student
    )
    for found, wanted in zip(table["teacher_logps"], expected, strict=True):
        assert list(found) == pytest.approx(wanted, abs=2e-4)
    assert folder.rows()[0]["teacher/gap_wrong"] != 0


@pytest.mark.parametrize("mix", ["3,1", "by"])
def test_several_teachers_are_averaged_by_weight_or_routed_by_a_column(tiny, tmp_path, mix):
    names = [SHORT["teacher"], SHORT["student"]]
    rows = [row | {"by": names[0] if i % 2 else "2"} for i, row in enumerate(ROWS)]
    folder = run(
        tiny(
            "opd",
            {"task": rows_of(tmp_path, rows), "teacher_mix": mix, "prompts_per_step": "4"},
            **{**DENSE, "teacher": ",".join(names), "samples_every": 1, "steps": 1},
            difficulty=None,
        ),
        tmp_path / "run",
    )
    table, row = folder.samples(1), folder.rows()[0]
    first, second = (said_by_transformers(name, table, column="prompt") for name in names)
    odd = table["prompt"].str.extract(r"^(\d+)")[0].astype(int) % 2
    for i, found in enumerate(table["teacher_logps"]):
        one, two = torch.tensor(first[i]), torch.tensor(second[i])
        wanted = torch.logaddexp(one + np.log(0.75), two + np.log(0.25))
        wanted = wanted if mix == "3,1" else one if odd[i] else two
        assert list(found) == pytest.approx(wanted.tolist(), abs=2e-4)
    # before the first update the second teacher is the student
    assert row["teacher/kl_1"] > 0.01 and row["teacher/kl_2"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["average", "several"])
def test_teachers_are_killed_resumed_and_replayed_to_the_same_rows(tiny, tmp_path, kind):
    teachers = {"teacher": f"{SHORT['teacher']},{SHORT['student']}", "teacher_mix": "0.7,0.3"}
    if kind == "average":
        teachers = {"teacher": "self:ema", "teacher_ema": 0.25, "teacher_prompt": TRACE}
    config = tiny("kdrl", {"learning_rate": "0.02"}, checkpoint_every=1, **teachers)
    whole = run(config, tmp_path / "whole")

    def stop(session, row):
        session.stopping = row["step"] == 1

    run(config, tmp_path / "cut", on_step=stop)
    kept = ("loss/policy", "kl_teacher_k2", "grad_norm", "teacher/gap_wrong", "teacher/kl_2")
    rows = [
        [[row[name] for name in kept if name in row] for row in folder.rows()]
        for folder in (whole, resume(tmp_path / "cut"))
    ]
    assert rows[0] == rows[1]
    assert replay(tmp_path / "cut", tmp_path / "again").difference is None


def test_an_average_takes_its_share_of_the_weights_and_goes_back_with_a_snapshot(tiny):
    config = tiny("opd", {"teacher_prompt": TRACE}, teacher="self:ema", teacher_ema=0.25)
    trainer = Trainer(config)
    state = trainer.state
    assert state.averaged and not any(one.requires_grad for one in state.averaged)
    before = state.copy()
    for one in state.parameters:
        one.data.add_(1.0)
    state.follow()
    for average, start in zip(state.averaged, before.averaged, strict=True):
        assert torch.allclose(average, start + 0.25)
    trainer.setup.models.sync()
    moved = dict(trainer.setup.models.teacher.copy.model.named_parameters())
    moved = {name: value.clone() for name, value in moved.items()}
    state.restore(before)
    assert all(map(torch.equal, state.averaged, before.averaged))
    trainer.setup.models.sync()
    now = dict(trainer.setup.models.teacher.copy.model.named_parameters())
    assert any(not torch.equal(now[name], value) for name, value in moved.items())


def asked(texts, right, groups, template="{sibling}>{prompt}", context=1000):
    """Siblings of given completions: prompts, weights and the row."""
    lm = SimpleNamespace(
        prompt_ids=lambda prompts: [list(prompt) for prompt in prompts],
        encode=lambda prompts: (torch.zeros(len(prompts), 1), torch.ones(len(prompts), 1)),
    )
    teacher = SimpleNamespace(own=SimpleNamespace(context=context), reader=None)
    models = SimpleNamespace(
        policy=lm, teacher=teacher, teachers=[teacher], more=(), task=ArithmeticTask()
    )
    setup = SimpleNamespace(config=SimpleNamespace(teacher_prompt=template), models=models)
    mask = torch.ones(len(texts), 2)
    tokens = Sequences(mask[:, :1], mask[:, :1], mask, mask)
    examples = [Example("1+1?", "2", 1, "")] * len(texts)
    finished = torch.ones(len(texts), dtype=torch.bool)
    rollout = Rollout(examples, texts, tokens, None, finished, on_policy=True)
    batch = TokenBatch(mask, mask, group_ids=None if groups is None else torch.tensor(groups))
    verdicts = [Verdict(float(one), {}, "2" if one else "3", one) for one in right]
    rollout, batch, row = with_teacher_prompts(setup, rollout, batch, verdicts)
    return rollout.teacher_prompts, batch.kd_weight[:, 0].tolist(), row


def test_a_sibling_is_another_right_completion_of_the_group():
    prompts, weight, row = asked(
        ["a", "b", "c", "d", "e", "f"], [True, False, True, False, True, False], [0, 0, 0, 1, 1, 2]
    )
    # the first right one that is another; e is right alone, and f has nobody
    assert prompts == ["c>1+1?", "a>1+1?", "a>1+1?", "e>1+1?", "1+1?", "1+1?"]
    assert weight == [1, 1, 1, 1, 0, 0]
    assert row == {"teacher/without_hint": pytest.approx(2 / 6)}
    # without groups nobody has a sibling, and one that does not fit is none
    assert asked(["a", "b"], [True, True], None)[1] == [0, 0]
    assert asked(["a" * 30, "b"], [True, True], [0, 0], context=20)[1] == [1, 0]


def test_where_no_token_has_a_teacher_its_kls_are_missing_and_no_nan():
    mask = torch.ones(1, 2)
    tokens = Sequences(mask[:, :1], mask[:, :1], mask, mask).after(mask, mask)
    rollout = Rollout([Example("1+1?", "2", 1, "")], ["2"], tokens, None, mask[:, 0] > 0, True)
    names = ("entropy", "old_logps", "teacher_logps", "reverse", "reverse_t1")
    stats = SimpleNamespace(values=dict.fromkeys(names, mask))
    row = token_row(TokenBatch(mask, mask, kd_weight=0 * mask), rollout, stats)
    found = [row[f"kl_teacher_{name}"] for name in ("rev", "rev_t1", "k1", "k2", "k3")]
    assert found == [None] * 5
    assert token_row(TokenBatch(mask, mask), rollout, stats)["kl_teacher_rev"] == 1


def test_what_the_verifier_said_is_a_hint():
    template = "{prompt}{completion} {feedback}"
    prompts, weight, row = asked(["a", "b"], [True, False], [0, 1], template)
    assert prompts == ["1+1?a The answer 2 is right.", "1+1?b The answer 3 is wrong."]
    assert weight == [1, 1] and row == {"teacher/without_hint": 0}
    verdict = Verdict(0.0, {}, None, False)
    assert feedback(verdict, True) == "No answer was found."
    assert feedback(verdict, False) == "It was cut before its end."
    assert feedback(replace(verdict, why="it hung"), True) == "It could not be judged."


def rows_of(tmp_path, rows, name="q.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROWS = [
    {"question": f"{i}+1?", "answer": f"{i}+1={i + 1}\n#### {i + 1}", "hint": f"add 1 to {i}"}
    for i in range(12)
]


def test_a_chat_keeps_its_turns_in_the_teachers_prompt():
    turns = (("user", "1+1?"), ("assistant", "2"), ("user", "And 1 more?"))
    example = Example(Chat(turns), "3", 1, "x", {"hint": "count on"})
    asked = teacher_text(None, "{prompt} {hint}", example)
    assert asked.turns == (*turns[:2], ("user", "And 1 more? count on"))


def test_fields_come_from_the_columns_of_a_file_and_are_part_of_its_digest(tmp_path):
    path = rows_of(tmp_path, ROWS)
    config = make_config(
        "opd", settings={"task": path, "teacher_prompt": "{hint}|{trace}|{answer}|{{x}}|{prompt}"}
    )
    task = find_task(path, fields=("hint", "trace"))
    example = next(one for one in task.rows("train") if one.answer == "4")
    assert example.meta["hint"] == "add 1 to 3" and example.meta["trace"] == ROWS[3]["answer"]
    data = asked_prompts(config).data
    path = rows_of(tmp_path, [row | {"hint": "?"} for row in ROWS])
    assert asked_prompts(config).data["digest"] != data["digest"]
    assert data_of(SimpleNamespace(task=task), path, [])["digest"] != data["digest"]


@pytest.mark.parametrize(
    ("rows", "template", "says"),
    [
        (
            ROWS,
            "{hnt}",
            r"needs \{hnt\}, which q.jsonl, row 1 .*did you mean \{hint",
        ),
        ([*ROWS, {**ROWS[0], "hint": " "}], "{hint}", "q.jsonl, row 13 has no text in 'hint'"),
        ([r | {"answer": "4"} for r in ROWS], "{trace}", r"needs \{trace\}, which q.jsonl, row"),
        (ROWS, "{prompt}" + "x" * 9000, "as teacher_prompt makes them, prompts of 9,"),
    ],
)
def test_what_rows_cannot_give_is_refused_before_anything_is_loaded(
    tmp_path, monkeypatch, rows, template, says
):
    monkeypatch.setattr("rlkd_lab.training.session.Trainer", None)  # loads the models
    settings = {"task": rows_of(tmp_path, rows), "teacher_prompt": template}
    with pytest.raises(ValueError, match=says):
        run(make_config("opd", settings=settings), tmp_path / "run")
    settings = {"teacher": "student,teacher", "teacher_mix": "by"}
    settings["task"] = rows_of(tmp_path, [row | {"by": "tutor"} for row in ROWS], "by.jsonl")
    with pytest.raises(ValueError, match="row 1 has by='tutor', and teacher_mix=by needs the name"):
        run(make_config("opd", settings=settings), tmp_path / "run")
    with pytest.raises(ValueError, match=r"\{hint\}, which arithmetic does not have: its fields"):
        run(make_config("opd", settings={"teacher_prompt": "{hint}"}), tmp_path / "run")


@pytest.mark.parametrize(
    ("method", "settings", "says"),
    [
        ("opd", {"teacher_prompt": "It is 42."}, "has no field"),
        ("grpo", {"teacher": "off", "teacher_prompt": TRACE}, "needs a teacher"),
        ("sft", {"teacher_prompt": TRACE}, "sft trains on the teacher's texts"),
        ("opd", {"teacher_prompt": "{sibling}", "group_size": "1"}, "group_size=2 or more"),
        ("opd", {"teacher": "self:current"}, "says of every token what the student says"),
        ("opd", {"teacher": "self:average"}, "unknown teacher 'self:average'"),
        ("opd", {"teacher": "self", "teacher_adapter": "x"}, "leave teacher_adapter out"),
        ("opd", {"teacher_ema": "0.5"}, "teacher_ema cannot act"),
        ("opd", {"teacher_mix": "1,2"}, "for several teachers"),
        ("opd", {"teacher": "a,b", "teacher_mix": "1,0"}, "2 teachers need 2 weights above 0"),
        ("opd", {"teacher": "a,a"}, "write different names"),
        ("gkd", {"teacher": "a,b"}, "gkd needs the texts of one teacher"),
        ("vopd", {"teacher": "a,b"}, "vopd needs the whole distribution of one teacher"),
        ("opd", {"teacher": "a,b", "teacher_home": "host"}, "teacher_home=host is for one"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(method, settings, says):
    with pytest.raises(ValueError, match=says):
        make_config(method, settings=settings)
    make_config("gkd", settings={"teacher_prompt": TRACE, "on_policy_frac": "1"})
