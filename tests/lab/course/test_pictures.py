"""The pictures: what they draw is what the trainer's functions say, and every one can be drawn
at the ends of its controls.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from rlkd_lab.lab.course.pictures import DATA, PICTURES, play
from rlkd_lab.lab.course.pictures.annealing import annealing_stack, kd_share_of_loss, leaning
from rlkd_lab.lab.course.pictures.concentration import kl_concentration, kl_of_samples, share_of_top
from rlkd_lab.lab.course.pictures.estimators import (
    STUDENT,
    TEACHER,
    arrow,
    estimator_arrows,
    exact_gradient,
    followed,
    token_gradients,
)
from rlkd_lab.lab.course.pictures.exposure import (
    after_one_wrong_step,
    exposure_bias,
    measure_exposure,
    wrong_prefix,
)
from rlkd_lab.lab.course.pictures.fits import (
    binomial,
    binomial_divergence,
    binomial_fits,
    two_humps,
)
from rlkd_lab.lab.course.pictures.gradient_angles import angles, gradient_angle
from rlkd_lab.lab.course.pictures.groups import drawn_grid, group_advantage, mask_grid, read_groups
from rlkd_lab.lab.course.pictures.prediction import BLUE, ORANGE, Picture
from rlkd_lab.lab.course.pictures.ratios import clip_surrogate, surrogate_at
from rlkd_lab.lab.course.pictures.trust_regions import (
    dead_threshold,
    trrd_gradient,
    trrd_tokens,
    trust_region,
)
from rlkd_lab.objectives import TokenBatch, group_advantages, token_loss
from rlkd_lab.objectives.advantages import reward_guided_mask
from rlkd_lab.plots import png
from rlkd_lab.runs import RunFolder
from rlkd_lab.tasks import ArithmeticTask


def samples(seed=0, rows=8, teacher=True):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, rows)
    frame = pd.DataFrame(
        {
            "reward": [1.0, 0.0] * (rows // 2),
            "group": np.arange(rows) // 4,
            "logps": [-rng.random(n) for n in lengths],
        }
    )
    frame["teacher_logps"] = [-3 * rng.random(n) for n in lengths] if teacher else None
    frame["kl_teacher_rev"] = [rng.random(n) ** 4 for n in lengths] if teacher else None
    return frame


def measured():
    rows = [
        (1, "right", 0.98, 0.95, 1.0),
        (1, "wrong", 0.1, 0.0, 0.2),
        (2, "right", 1.0, 1.0, 1.0),
        (2, "wrong", 0.0, 0.0, 0.0),
    ]
    return pd.DataFrame(
        [
            {
                "position": p,
                "prefix": k,
                "prompts": 20,
                "n": 80,
                "accuracy": a,
                "low": low,
                "high": high,
            }
            for p, k, a, low, high in rows
        ]
    )


@pytest.fixture
def run(tmp_path):
    def make(method="kdrl_annealed", interference=True, name="run", split=0.3):
        folder = RunFolder.create(tmp_path / name, {"method": method, "seed": 0}, {})
        for step in range(1, 13):
            row = {
                "step": step,
                "coef/kd_coef": 0.2 - 0.01 * step,
                "loss/policy": 0.1,
                "loss/kd": 0.3,
                "accuracy": 0.05 * step,
            }
            row["eval/accuracy"] = 0.5 if step == 6 else None
            if interference and step % 3 == 0:
                row |= {
                    "interference/cosine": 0.0,
                    "interference/cosine_reward_method": 0.6,
                    "interference/cosine_teacher_method": 0.8,
                }
                row |= {
                    "interference/cosine_split_reward": split,
                    "interference/cosine_split_teacher": split,
                }
            folder.append("metrics.jsonl", row)
        return folder

    return make


# --- ratios ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_surrogate_s_gradient_is_the_slope_of_its_value_and_dead_where_the_formula_says(
    sign, cap
):
    ratios = np.array([0.3, 0.79, 0.81, 1.0, 1.19, 1.21, 1.45, 1.55, 4.0])
    value, gradient = surrogate_at(ratios, sign, 0.2, 0.2, cap)
    step = 1e-6
    slope = (surrogate_at(ratios * math.exp(step), sign, 0.2, 0.2, cap)[0] - value) / step
    assert gradient == pytest.approx(slope, abs=1e-4)
    dead = ratios > 1.2 if sign > 0 else (ratios < 0.8) | (ratios > (cap or np.inf))
    assert ((gradient == 0) == dead).all()


@pytest.mark.parametrize(
    ("alpha", "sign", "ratio"),
    [(0.5, 1.0, 1.44), (0.5, -1.0, 1.5625), (0.75, 1.0, 1.2**4), (0.75, -1.0, 0.8**-4)],
)
def test_a_token_is_dead_at_step_0_beyond_the_ratio_of_methods_md(alpha, sign, ratio):
    for factor, dead in ((0.999, False), (1.001, True)):
        assert (trrd_gradient(sign * math.log(ratio * factor), 0.0, sign, alpha)[0] == 0) == dead
    assert dead_threshold(alpha, sign) == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_trust_region_has_the_gradient_of_the_trainer_s_loss(alpha):
    generator = torch.Generator().manual_seed(1)
    gap, moved, credit = (
        torch.randn(4, 30, generator=generator, dtype=torch.float64) * scale
        for scale in (1.0, 0.3, 1.0)
    )
    teacher = torch.full_like(gap, -4.0)
    logps = (teacher + gap + moved).requires_grad_()
    batch = TokenBatch(
        logps,
        torch.ones_like(gap),
        old_logps=teacher + gap,
        teacher_logps=teacher,
        advantages=credit,
    )
    loss, stats = token_loss("trrd", batch, {"trrd_alpha": alpha})
    (expected,) = torch.autograd.grad(loss, logps)
    found = trrd_gradient(
        gap.flatten(), moved.flatten(), credit.flatten(), alpha, gap_bound=1.0, ratio_cap=3.0
    )
    assert -found / gap.numel() == pytest.approx(expected.flatten().numpy(), abs=1e-12)
    if alpha:
        assert (found == 0).mean() == pytest.approx(stats["trrd/dead_frac"])


def test_at_alpha_1_the_band_is_grpo_s():
    gap, moved = np.array([-2.0, 0.0, 2.0]), np.array([0.1, 0.1, 0.1])
    assert trrd_gradient(gap, moved, 1.0, 1.0, gap_bound=0.3) == pytest.approx(
        surrogate_at(np.exp(moved), 1.0)[1]
    )


def test_dead_tokens_are_hollow_and_counted_in_the_title():
    tokens = pd.DataFrame(
        {
            "gap": [0.1, 0.3, 0.5, 0.9, -0.1, -0.9, 9.0],
            "moved": 0.0,
            "advantages": [1.0, 1.0, 1.0, 1.0, -1.0, -1.0, 1.0],
        }
    )
    figure = trust_region(0.5, tokens=tokens)
    for axes, alive, dead, colour in ((figure.axes[0], 2, 3, BLUE), (figure.axes[1], 1, 1, ORANGE)):
        full, hollow = axes.collections
        assert (len(full.get_offsets()), len(hollow.get_offsets())) == (alive, dead)
        assert to_hex(hollow.get_facecolor()[0]).upper() == "#FFFFFF"
        assert to_hex(hollow.get_edgecolor()[0]).upper() == colour
    assert "60% of 5 tokens dead" in figure.axes[0].get_title()
    right = figure.axes[0].get_xlim()[1]
    assert figure.axes[0].collections[1].get_offsets()[:, 0].max() < right  # the one at 9 nats too
    image = figure.axes[0].images[0]
    assert image.get_extent()[1] == right


def test_tokens_of_a_recorded_step_carry_their_completion_s_advantage():
    frame = samples()
    tokens = trrd_tokens(frame)
    assert len(tokens) == sum(map(len, frame["logps"]))
    first = tokens.iloc[: len(frame["logps"][0])]
    assert first["gap"].to_numpy() == pytest.approx(frame["logps"][0] - frame["teacher_logps"][0])
    assert first["advantages"].to_numpy() == pytest.approx(0.866, abs=1e-3)
    assert kl_of_samples(frame) == pytest.approx(np.concatenate(list(frame["kl_teacher_rev"])))
    for function in (trrd_tokens, kl_of_samples):
        with pytest.raises(ValueError, match="teacher"):
            function(samples(teacher=False))


def test_the_clip_picture_says_whether_the_point_is_dead():
    assert "dead" in clip_surrogate(1.4, 1.0).axes[0].get_title()
    assert clip_surrogate(3.5, 1.0).axes[0].get_xlim()[1] > 3.5
    assert "raises" in clip_surrogate(0.5, 1.0).axes[0].get_title()
    assert "lowers" in clip_surrogate(2.0, -1.0).axes[0].get_title()
    assert "dead" in clip_surrogate(2.0, -1.0, ratio_cap=1.5).axes[0].get_title()


# --- estimators and fits --------------------------------------------------------------------------


@pytest.mark.parametrize("student", [STUDENT, (0.6, 0.3, 0.1)])
@pytest.mark.parametrize(("name", "kind"), [("k1", None), ("k2", "reverse"), ("k3", "forward")])
def test_the_mean_arrow_is_the_exact_one(name, kind, student):
    mean = sum(
        p * arrow(row, student)
        for p, row in zip(student, token_gradients(name, student, TEACHER), strict=True)
    )
    expected = (
        np.zeros(2) if kind is None else arrow(exact_gradient(kind, student, TEACHER), student)
    )
    assert mean == pytest.approx(expected, abs=1e-12)
    assert followed(name, student, TEACHER) == (kind or "zero")


def test_an_arrow_is_where_a_small_step_on_the_logits_goes():
    gradient, step = np.array([0.3, -0.5, 0.2]), 1e-6
    corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])
    moved = np.asarray(STUDENT) * np.exp(-step * gradient)
    assert (moved / moved.sum() - STUDENT) @ corners / step == pytest.approx(
        arrow(gradient), abs=1e-5
    )


def test_more_samples_bring_the_drawn_arrow_to_the_exact_one():
    title = estimator_arrows(20000).axes
    lengths = [float(axes.get_title().split("length ")[1].split()[0]) for axes in title]
    exact = [np.linalg.norm(arrow(exact_gradient(kind))) for kind in ("reverse", "forward")]
    assert lengths == pytest.approx([0.0, 1.0, exact[1] / exact[0]], abs=0.05)


def test_binomial_fits_are_where_the_divergence_is_flat_and_smallest():
    assert binomial(torch.tensor(0.3)).exp().numpy() == pytest.approx([0.49, 0.42, 0.09])
    assert binomial_fits("forward") == pytest.approx([0.5], abs=1e-4)
    low, high = binomial_fits("reverse")
    assert (low, high) == (pytest.approx(0.024, abs=5e-4), pytest.approx(0.976, abs=5e-4))
    for kind in ("forward", "reverse"):
        for q in binomial_fits(kind):
            around = binomial_divergence(kind, [q - 1e-3, q, q + 1e-3])
            assert around[1] < around[0]
            assert around[1] < around[2]
        assert (
            binomial_divergence(kind, np.linspace(0.001, 0.999, 3000)).min()
            >= binomial_divergence(kind, binomial_fits(kind)).min() - 1e-8
        )
    assert (
        len(binomial_fits("reverse", (0.6, 0.02, 0.38))) == 1
    )  # the smaller hump has a minimum of its own, but not the smallest
    assert binomial_fits("forward", (0.64, 0.32, 0.04)) == pytest.approx([0.2], abs=1e-4)


def test_the_bars_of_the_fit_are_the_fit():
    bars = two_humps(0.3).axes[1].containers
    assert [bar.get_height() for bar in bars[2]] == pytest.approx(
        binomial(torch.tensor(binomial_fits("reverse")[0])).exp().tolist()
    )
    assert [bar.get_height() for bar in bars[3]] == pytest.approx([0.49, 0.42, 0.09])


# --- concentration --------------------------------------------------------------------------------


def test_the_share_of_the_top_tokens():
    assert share_of_top(np.ones(200), 0.05) == pytest.approx(0.05)
    assert share_of_top([0.0] * 99 + [3.0], 0.01) == 1.0
    assert share_of_top([4.0, 1.0, 3.0, 2.0], 0.5) == pytest.approx(0.7)
    assert share_of_top([4.0, 1.0], 0.001) == pytest.approx(0.8)
    assert "the top 50% carry 70%" in [
        text.get_text() for text in kl_concentration([4.0, 1.0, 3.0, 2.0], 0.5).axes[0].texts
    ]
    for nothing in ([], [0.0, 0.0]):
        with pytest.raises(ValueError, match="nothing to share"):
            share_of_top(nothing)


# --- exposure -------------------------------------------------------------------------------------


def test_a_wrong_prefix_differs_in_its_last_step_alone():
    for example in ArithmeticTask().examples(40, 3, "test", (4, 4)):
        for position in range(1, 5):
            right, wrong = (text.rstrip(";").split(";") for text in wrong_prefix(example, position))
            assert len(right) == len(wrong) == position
            assert right[:-1] == wrong[:-1]
            assert right[-1].split("=")[0] == wrong[-1].split("=")[0]
            assert right[-1] != wrong[-1]


def test_the_concise_teacher_goes_on_from_a_wrong_step():
    from rlkd_lab.models import load_teacher

    found = measure_exposure(load_teacher("teacher-concise"), operations=2, prompts=8, samples=2)
    assert list(found["position"]) == [1, 1, 2, 2]
    assert (found["n"] == 16).all()
    assert found[found["prefix"] == "right"]["accuracy"].min() > 0.8
    assert after_one_wrong_step(found) < 0.2
    assert ((found["low"] <= found["accuracy"]) & (found["accuracy"] <= found["high"])).all()


def test_the_checking_teacher_mends_a_wrong_step():
    from rlkd_lab.models import load_teacher

    assert (
        after_one_wrong_step(measure_exposure(load_teacher("teacher"), prompts=16, samples=2)) > 0.6
    )


def test_the_bars_are_what_was_measured():
    figure = exposure_bias(measured(), "a teacher")
    bars = [c for c in figure.axes[0].containers if hasattr(c, "patches") and len(c.patches)]
    assert [[bar.get_height() for bar in group] for group in bars] == [
        pytest.approx([98.0, 100.0]),
        pytest.approx([10.0, 0.0]),
    ]
    assert "80 continuations" in figure.axes[0].get_title()


# --- groups ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [True, False])
def test_the_bars_are_the_trainer_s_advantages(scale):
    groups = [[1.0, 0.5, 0.0], [1.0, 1.0]]
    bars = group_advantage(groups).axes[0 if scale else 1].containers
    for drawn, rewards in zip(bars, groups, strict=True):
        expected = group_advantages(
            torch.tensor(rewards), torch.zeros(len(rewards), dtype=torch.long), scale
        )
        assert [bar.get_height() for bar in drawn] == pytest.approx(expected.tolist())


def test_rewards_are_read_or_refused_in_a_sentence():
    assert read_groups("1, 1 0|.5,  .25") == [[1.0, 1.0, 0.0], [0.5, 0.25]]
    for text, words in (
        ("1, x", "cannot be read"),
        ("", "cannot be read"),
        ("1", "two or more"),
        ("1, nan", "finite"),
        (",".join("1" * 41), "40"),
    ):
        with pytest.raises(ValueError, match=words):
            read_groups(text)


def test_the_teacher_speaks_in_the_strong_cells():
    correct = np.array([[1, 0, 0], [0, 0, 0], [1, 1, 1]])
    figure = mask_grid(correct)
    for axes, kind in zip(figure.axes, ("none", "wrong", "group_wrong"), strict=True):
        mask = reward_guided_mask(
            kind, torch.tensor(correct.flatten()), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
        )
        assert [patch.get_alpha() > 0.5 for patch in axes.patches] == mask.bool().tolist()
        assert ["T" in text.get_text() for text in axes.texts] == mask.bool().tolist()
        assert ["+" in text.get_text() for text in axes.texts] == correct.flatten().astype(
            bool
        ).tolist()
        assert [
            to_hex(patch.get_facecolor()).upper() == BLUE for patch in axes.patches
        ] == correct.flatten().astype(bool).tolist()


def test_drawn_grids_have_about_the_success_rate_asked_for():
    assert drawn_grid(0.3, 4000, 8).mean() == pytest.approx(0.3, abs=0.03)
    assert (drawn_grid(0.3, seed=4) == drawn_grid(0.3, seed=4)).all()


# --- runs -----------------------------------------------------------------------------------------


def test_the_annealing_stack_names_what_it_shows_of_kd(run):
    with_cosines, without = run(), run(interference=False, name="other")
    axes = annealing_stack(with_cosines).axes[1]
    assert "cosine" in axes.get_ylabel()
    assert [
        (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axes.get_lines()
    ] == [([3, 6, 9, 12], [y] * 4) for y in (0.8, 0.6)]
    axes = annealing_stack([without]).axes[1]
    assert "not of the gradient" in axes.get_ylabel()
    assert axes.get_lines()[0].get_ydata() == pytest.approx([75.0] * 12)
    assert leaning(without.metrics()).empty
    assert kd_share_of_loss(without.metrics()).tolist() == pytest.approx([0.75] * 12)
    with pytest.raises(ValueError, match="at least one run"):
        annealing_stack([])


def test_the_answer_on_annealing_comes_from_the_run(run):
    assert (
        play("annealing_stack", run()).picture.answer == 2
    )  # .8 with the teacher's, .6 with the reward's
    assert play("annealing_stack", run(interference=False, name="other")).picture.answer == 1
    falling = run(interference=False, name="falling")
    for step in range(13, 25):
        falling.append(
            "metrics.jsonl",
            {"step": step, "coef/kd_coef": 0.01, "loss/policy": 0.3, "loss/kd": 0.1},
        )
    made = play("annealing_stack", falling).picture
    assert made.answer == 0
    assert "from 75% to 25%" in made.why


def test_a_run_without_a_teacher_term_is_named_and_has_no_share(run, tmp_path):
    folder = RunFolder.create(tmp_path / "grpo", {"method": "grpo", "seed": 3}, {})
    folder.append("metrics.jsonl", {"step": 1, "loss/policy": 0.1})
    axes = annealing_stack([folder]).axes
    assert [text.get_text() for text in axes[1].texts] == ["not recorded"]
    assert "no kd_coef" in axes[0].get_legend().get_texts()[0].get_text()
    with pytest.raises(ValueError, match="no teacher term"):
        play("annealing_stack", folder)


def test_angles_in_degrees(run):
    found = angles(run(split=0.5).metrics())
    assert found.index.tolist() == [3, 6, 9, 12]
    assert found["angle"].tolist() == pytest.approx([90.0] * 4)
    assert found["floor_reward"].tolist() == pytest.approx([60.0] * 4)
    assert "60°" in play("gradient_angle", run(split=0.5, name="second")).picture.why
    assert "no noise floor" in play("gradient_angle", run(split=None, name="one group")).picture.why
    with pytest.raises(ValueError, match="interference_every"):
        gradient_angle(run(interference=False, name="other"))


# --- all ------------------------------------------------------------------------------------------


def picture(name, run) -> Picture:
    data = {"kl_concentration": samples(), "exposure_bias": measured(), "trust_region": samples()}
    given = (
        [run()]
        if name in ("annealing_stack", "gradient_angle")
        else [data[name]]
        if name in data
        else []
    )
    return PICTURES[name](*given)


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_drawn_at_the_ends_of_its_controls(name, run):
    made = picture(name, run)
    assert 2 <= len(made.choices) <= 4
    assert 0 <= made.answer < len(made.choices)
    for key, control in made.controls.items():
        ends = (
            control.options.values()
            if control.options
            else [control.value]
            if control.low is None
            else [control.low, control.high]
        )
        for end in ends:
            assert isinstance(made.figure(**{key: end}), Figure)
    figure = made.figure()
    assert figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)
    assert png(figure).startswith(b"\x89PNG")
    assert png(figure) == png(made.figure())


def test_the_answers_are_what_the_pictures_show():
    clip, region, arrows, humps, masks, spread = (
        PICTURES[n]()
        for n in (
            "clip_surrogate",
            "trust_region",
            "estimator_arrows",
            "two_humps",
            "mask_grid",
            "group_advantage",
        )
    )
    assert (surrogate_at([0.5], 1.0)[1][0] > 0) == (clip.answer == 1)
    assert (trrd_gradient(math.log(2), 0.0, 1.0)[0] == 0) == (region.answer == 2)
    assert (followed("k1") == "zero") == (arrows.answer == 2)
    assert (binomial(torch.tensor(binomial_fits("forward")[0])).argmax() == 1) == (
        humps.answer == 1
    )
    one_right = torch.tensor([1.0] + [0.0] * 7)
    assert (reward_guided_mask("group_wrong", one_right, torch.zeros(8)).sum() == 0) == (
        masks.answer == 2
    )
    wide, narrow = (
        group_advantages(torch.tensor(r), torch.zeros(4, dtype=torch.long))[0]
        for r in ([1.0, 1, 0, 0], [0.51, 0.51, 0.5, 0.5])
    )
    assert (wide / narrow < 1.05) == (spread.answer == 2)


@pytest.mark.parametrize(
    ("kl", "answer"),
    [
        (np.ones(100), 0),
        ([1.0] * 95 + [5.0] * 5, 1),
        ([1.0] * 95 + [19.0] * 5, 2),
        ([0.0] * 99 + [1.0], 3),
    ],
)
def test_the_answer_on_concentration_comes_from_the_data(kl, answer):
    assert play("kl_concentration", kl).picture.answer == answer


def test_play_refuses_in_words():
    with pytest.raises(ValueError, match="did you mean 'two_humps'"):
        play("two_hump")
    for name in DATA:
        with pytest.raises(ValueError, match="is drawn from data"):
            play(name)
