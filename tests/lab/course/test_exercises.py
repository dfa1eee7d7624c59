"""Every exercise takes its right answers, refuses wrong ones and answers nonsense with a
sentence.
"""

import math

import numpy as np
import pytest
import torch

from rlkd_lab.lab import check, exercises, show_source, weak_verifier
from rlkd_lab.lab.course.exercises import EXERCISES
from rlkd_lab.lab.course.right_answers import (
    DIFFERENCES,
    T_975,
    intervals,
    joint,
    nf4_gib,
    no_spread,
    smallest_group,
    without_teacher,
)
from rlkd_lab.objectives import METHODS, TokenBatch, group_advantages, token_loss
from rlkd_lab.tasks import ArithmeticTask

HALF = math.sqrt(3) / 2
RIGHT = {
    "00.advantages": [[0.5, 0.5, 0.5, -1.5], torch.tensor([0.5, 0.5, 0.5, -1.5])],
    "00.method": ["grpo", " GRPO "],
    "01.group_size": [17, 17.0, np.int64(17)],
    "01.fool": ["44", "49-7=44;#41", "44#", "#41 or 44"],
    "02.forward": [0.5, torch.tensor(0.5)],
    "02.reverse": [0.024, 0.976, 0.02],
    "02.one_wrong_step": [0.0, 0.15, 0.1],
    "03.advantages": [[0.866, 0.866, -0.866, -0.866], np.array([HALF, HALF, -HALF, -HALF])],
    "03.dr_grpo": [(0.5, 0.5, -0.5, -0.5)],
    "03.alive": [2, 2.0],
    "04.estimators": [
        {"k1": "zero", "k2": "reverse", "k3": "forward"},
        ["zero", "reverse", "Forward"],
    ],
    "04.threshold": [-8.66],
    "04.reversed": [3],
    "05.dead": [0.208, 0.2083],
    "05.thresholds": [[2.07, 2.44]],
    "06.interval": [[-0.0125, 0.0565], [-0.001, 0.042]],
    "06.verdict": ["undecided", "Undecided"],
    "07.memory": [0.79, 0.786],
    "07.gpu_hours": [3.75],
    "08.limits": ["grpo", "GRPO"],
    "09.disagree": [0.375, 3 / 8],
    "09.placebo": [[0, -0.1, 0, 0, 0]],
}
WRONG = {
    "00.advantages": [[0.577, 0.577, 0.577, -1.732], [0.5, 0.5, -1.5, 0.5]],
    "00.method": ["opd", "kdrl", "trrd"],
    "01.group_size": [16, 18, 2],
    "01.fool": ["#44", "49-7=42;42+4=46;46-2=44;#44", "#41", "", "144"],
    "02.forward": [0.024, 0.49, 0.0],
    "02.reverse": [0.5, 0.05, 0.0, 1.0],
    "02.one_wrong_step": [0.5, 1.0],
    "03.advantages": [[1, 1, -1, -1], [0.5, 0.5, -0.5, -0.5], [-0.866, -0.866, 0.866, 0.866]],
    "03.dr_grpo": [[0.866, 0.866, -0.866, -0.866]],
    "03.alive": [0.5],
    "04.estimators": [
        {"k1": "reverse", "k2": "reverse", "k3": "reverse"},
        ["zero", "forward", "reverse"],
    ],
    "04.threshold": [8.66, -0.0866, -0.866],
    "04.reversed": [0, 1, 2, 4],
    "05.dead": [0.25, 0.36, 0.432],
    "05.thresholds": [[2.44, 2.07], [1.44, 1.56], [1.2, 0.8]],
    "06.interval": [[-0.002, 0.046], [0.0565, -0.0125], [0.01, 0.034]],
    "06.verdict": ["better", "worse"],
    "07.memory": [0.7, 0.84, 0.75, 6.0],
    "07.gpu_hours": [225, 13500, 0.0],
    "08.limits": ["trrd", "opd"],
    "09.disagree": [0.625, 3, 0.5],
    "09.placebo": [[0, 0.1, 0, 0, 0], [0, -0.1, 0, -0.1, 0], [-0.1] * 5],
}
MEASURED = {"02.one_wrong_step": {"measured": 0.004}}
NONSENSE = [
    None,
    math.nan,
    math.inf,
    "four",
    "",
    [],
    [1.0],
    [None] * 4,
    ["a", "b", "c"],
    [math.nan] * 4,
    {},
    {"k1": 1},
    object(),
    True,
    b"17",
    1j,
    [[1, 2], [3, 4]],
    torch.zeros(2, 2),
    {"k1": None, "k2": None, "k3": None},
    10**400,
    -1,
    1e9,
    [1.0] * 7,
]


def said(capsys):
    return capsys.readouterr().out


def test_every_exercise_is_tried_here():
    assert set(RIGHT) == set(WRONG) == set(EXERCISES)


@pytest.mark.parametrize(
    ("name", "answer"), [(name, answer) for name, answers in RIGHT.items() for answer in answers]
)
def test_a_right_answer_is_right(name, answer, capsys):
    assert check(name, answer, **MEASURED.get(name, {})) is True
    assert said(capsys).startswith("Right. ")


@pytest.mark.parametrize(
    ("name", "answer"), [(name, answer) for name, answers in WRONG.items() for answer in answers]
)
def test_a_wrong_answer_is_not_and_gets_a_hint(name, answer, capsys):
    assert check(name, answer, **MEASURED.get(name, {})) is False
    words = said(capsys)
    assert words.startswith("Not yet")
    assert words.count("\n") == 1
    assert len(words) > 25


@pytest.mark.parametrize("name", EXERCISES)
def test_nonsense_gets_a_sentence(name, capsys):
    for answer in NONSENSE:
        assert check(name, answer, **MEASURED.get(name, {})) is False, answer
        assert said(capsys).startswith("Not yet"), answer


@pytest.mark.parametrize(
    "name", [name for name in EXERCISES if name not in ("02.one_wrong_step", "04.reversed")]
)
def test_a_hint_does_not_hold_the_answer(name, capsys):
    answer = RIGHT[name][0]
    parts = [
        str(part).lower()
        for part in (
            answer.values()
            if isinstance(answer, dict)
            else answer
            if isinstance(answer, list)
            else [answer]
        )
    ]
    for wrong in WRONG[name]:
        check(name, wrong)
        words = said(capsys).lower()
        if name not in (
            "04.estimators",
            "06.verdict",
            "03.alive",
            "03.dr_grpo",
            "06.interval",
        ):  # their words and digits stand in any sentence
            assert not any(f" {part}" in words for part in parts if len(part) > 1), words


def test_an_unknown_name_is_named_and_the_names_are_listed():
    with pytest.raises(ValueError, match=r"did you mean '03.advantages'\?.*08\.limits"):
        check("3.advantages", 0)
    with pytest.raises(ValueError, match="unknown exercise"):
        check("", 0)


def test_the_table_of_exercises():
    frame = exercises()
    assert list(frame.columns) == ["name", "question"]
    assert list(frame["name"]) == list(EXERCISES)
    assert frame["question"].str.len().min() > 20


def test_the_measured_accuracy_is_said_either_way(capsys):
    assert not check("02.one_wrong_step", 0.9, measured=0.25)
    assert "0.25" in said(capsys)
    assert check("02.one_wrong_step", 0.3, measured=0.25)
    assert "0.25" in said(capsys)
    for guess, more in (
        (0.2, {}),
        (30, {"measured": 0.2}),
        (0.2, {"measured": None}),
        (0.2, {"measured": "x"}),
    ):
        assert not check("02.one_wrong_step", guess, **more)
        assert said(capsys).startswith("Not yet: ")


def test_given_numbers_are_used():
    assert check("07.gpu_hours", 2.0, steps=720, seconds=10)
    assert check("04.reversed", 0, gaps=[-8.7, 0.0])
    assert not check("04.reversed", 0, gaps=[-8.6, 0.0])
    assert check("01.fool", "16", prompt="10+6?")


def test_the_group_size_by_counting():
    assert smallest_group() == 17
    assert no_spread(17, 0.13) < 0.1 <= no_spread(16, 0.13)
    drawn = np.random.default_rng(0).random((40000, 17)) < 0.13
    assert (drawn.all(1) | ~drawn.any(1)).mean() == pytest.approx(no_spread(17, 0.13), abs=0.006)


def test_the_weak_verifier_is_weak_but_not_blind():
    example = ArithmeticTask().examples(1, 0)[0]
    assert weak_verifier(f"#{example.answer}", example.answer)
    assert not weak_verifier(f"#1{example.answer}", example.answer)
    assert not weak_verifier("", example.answer)


def test_the_intervals_agree_with_scipy():
    from scipy import stats

    assert pytest.approx(stats.t.ppf(0.975, 4)) == T_975
    low, high = stats.t.interval(0.95, 4, loc=np.mean(DIFFERENCES), scale=stats.sem(DIFFERENCES))
    assert intervals()["t interval"] == pytest.approx((low, high))
    assert low < 0 < high


def test_the_reversed_push_is_the_trainer_s():
    assert joint(0.1, 0.866, [-9.1, -8.0]) == pytest.approx([0.866 - 0.91, 0.866 - 0.8])


def test_kdrl_without_its_teacher_term_is_grpo():

    assert without_teacher() == "grpo"
    generator = torch.Generator().manual_seed(0)
    old, teacher = (-torch.rand(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    found = []
    for name, coefs in (("kdrl", {"kd_coef": 0.0}), ("grpo", {})):
        logps = (old + 0.1).requires_grad_()
        batch = TokenBatch(
            logps,
            torch.ones(4, 6),
            old_logps=old,
            teacher_logps=teacher,
            rewards=torch.tensor([1.0, 0, 0, 0]),
            group_ids=torch.zeros(4),
        )
        loss, _ = token_loss(name, batch, coefs)
        found.append(torch.autograd.grad(loss, logps)[0])
    assert torch.allclose(found[0], found[1], atol=1e-12)
    assert "teacher" not in METHODS["grpo"].needs


def test_nf4_s_own_bytes():
    from rlkd_lab.models.loading import load_base

    model, _ = load_base("student", "nf4")
    layers = [
        module.weight
        for module in model.modules()
        if getattr(getattr(module, "weight", None), "quant_state", None) is not None
    ]
    assert all(weight.quant_state.nested for weight in layers)
    scales = [(weight.quant_state.absmax, weight.quant_state.state2.absmax) for weight in layers]
    held = sum(
        tensor.numel() * tensor.element_size()
        for weight, pair in zip(layers, scales, strict=True)
        for tensor in (weight, *pair)
    )
    assert held / 2**30 == pytest.approx(
        nf4_gib(sum(weight.quant_state.shape.numel() for weight in layers), double=True), rel=1e-3
    )


def test_no_answer_yet_shows_the_question(capsys):
    assert not check("00.method", ...)
    said = capsys.readouterr().out
    assert said == f"Your answer here. {EXERCISES['00.method'].question}\n"


def test_the_source_stands_under_its_path_without_the_docstring():
    first, definition, *rest = show_source(group_advantages).data.splitlines()
    assert first == "# rlkd_lab/objectives/advantages.py"
    assert definition == "def group_advantages("
    assert rest[-1] == "    return centred / (variance.sqrt()[index] + 1e-4)"
    assert "Args:" not in "".join(rest)
