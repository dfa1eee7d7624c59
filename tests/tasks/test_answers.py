"""Answers: the verdicts of answers.jsonl, groups of equal answers, exact numbers, speed."""

import json
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rlkd_lab.study.statistics import majority_at_k
from rlkd_lab.tasks import Example, QuestionTask, judge
from rlkd_lab.tasks.answers import final_answer, grade, read, why_not
from rlkd_lab.tasks.answers.numbers import BITS, NotANumber, number
from rlkd_lab.tasks.votes import Votes

PAIRS = [
    json.loads(line)
    for line in Path(__file__).with_name("answers.jsonl").read_text(encoding="utf-8").splitlines()
]
TASK = QuestionTask.without_rows("answers")
MANY = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def score(gold, completion):
    return TASK.score(completion, Example("", gold, 0, ""))


def equal(gold, answer):
    return grade(gold, answer).correct


def test_the_file_is_large_and_balanced():
    sources, verdicts = (
        Counter(pair["source"] for pair in PAIRS),
        Counter(pair["verdict"] for pair in PAIRS),
    )
    assert len(PAIRS) >= 400
    assert 2 * sources["search"] >= 400
    assert verdicts[False] >= 150
    assert all(pair["reason"] and (pair["source"] != "search" or pair["where"]) for pair in PAIRS)
    assert len({(pair["gold"], pair["completion"]) for pair in PAIRS}) == len(PAIRS)


def test_every_pair_has_its_verdict():
    wrong = [
        f"{pair['gold']!r} <- {pair['completion'][-80:]!r}: {not pair['verdict']}, because:"
        f" {pair['reason']}"
        for pair in PAIRS
        if score(pair["gold"], pair["completion"]).correct != pair["verdict"]
    ]
    assert not wrong, "\n".join(wrong)


NOT_COMPUTED = (
    "10 + 7", "7 + 10", "It is 7+10.", "\\boxed{10 + 7}", "10 plus 7", "x = 10 + 7", "8 + 9",
    "17 * 1", "20 - 3", "\\frac{10+7}{1}", "10 + 7; 15", "10 + 7_{15}", "10 + 7 — 15",
    "10 + 7 ≈ 10 + 7", "(10 + 7)", "10 \\! + 7",
)  # fmt: skip
COMPUTED = (
    "17", "10 + 7 = 17", "10 + 7 is 17 apples", "17 = 10 + 7", "34/2", "1.7 \\times 10^1",
    "The sum of 10 and 7 is 17", "10 + 7 ≈ 17", "a 17-foot board", "(17)", "\\boxed{x = 17}",
)  # fmt: skip


def test_an_answer_that_computes_nothing_is_wrong_where_the_reference_is_a_number():
    """SmolLM2 learned to write ``10 + 7 ≈ 15``: the verifier read the left side."""
    asked = Example("What is 10 plus 7?", "17", 0, "")
    assert [text for text in NOT_COMPUTED if TASK.score(text, asked).correct] == []
    assert [text for text in COMPUTED if not TASK.score(text, asked).correct] == []
    repeated = [("What is 2^4?", "16", "2^4"), ("Write 3/4 as a decimal.", "0.75", "3/4")]
    repeated += [("What is 4!?", "24", "4!"), (r"Find \sqrt{81}.", "9", r"\boxed{\sqrt{81}}")]
    assert not any(TASK.score(text, Example(q, gold, 0, "")).correct for q, gold, text in repeated)
    written = [("Subsets of four things?", "16", "2^4"), ("3 of 7 are red.", "3/7", "3/7")]
    written += [("Add 2 and √3.", r"2+\sqrt{3}", r"\sqrt{3}+2"), ("Half of 0.5?", "0.25", "1/4")]
    assert all(TASK.score(text, Example(q, gold, 0, "")).correct for q, gold, text in written)


@MANY
@given(
    a=st.integers(1, 40),
    b=st.integers(1, 40),
    off=st.integers(-20, 20).filter(bool),
    sign=st.sampled_from(["+", "*", "×", "-", "plus", "times", r"\times"]),
    relation=st.sampled_from(["≈", "=", "is", ";", "→", r"\approx", "≅", "—", ",", "...", "?"]),
    form=st.sampled_from(["{}", "\\boxed{{{}}}", "${}$", "The answer is {}."]),
)
def test_no_sign_before_a_wrong_number_makes_the_sum_the_answer(a, b, off, sign, relation, form):
    value = a + b if sign in "+plus" else a - b if sign == "-" else a * b
    asked = Example(f"What is {a} {sign} {b}?", str(value), 0, "")
    assume(value + off not in (value, -value))
    assert not TASK.score(form.format(f"{a} {sign} {b} {relation} {value + off}"), asked).correct
    if relation in ("≈", "=", r"\approx") and sign not in ("plus", "times"):
        assert TASK.score(form.format(f"{a} {sign} {b} {relation} {value}"), asked).correct


def test_every_reference_equals_itself():
    golds = {pair["gold"] for pair in PAIRS if why_not(pair["gold"]) is None}
    assert len(golds) > 250
    assert [gold for gold in golds if not score(gold, rf"\boxed{{{gold}}}").correct] == []


def test_an_answer_is_in_the_group_of_the_reference_exactly_where_it_is_right():
    """majority@k counts ``Score.answer``: no wrong answer may vote for the right one."""
    odd = []
    for pair in PAIRS:
        found, right = (
            score(pair["gold"], pair["completion"]),
            score(pair["gold"], rf"\boxed{{{pair['gold']}}}"),
        )
        if (
            right.correct
            and found.answer is not None
            and found.correct != (found.answer == right.answer)
        ):
            odd.append((pair["gold"], pair["completion"][-60:], found.answer, right.answer))
    assert odd == []


@pytest.mark.parametrize(
    "texts",
    [
        ("0.5", "1/2", r"\frac{1}{2}", "x=0.5", r"\frac{2}{4}"),
        ("73", "73.0", "73 apples", "**73**", r"\text{73}"),
        (r"\text{Blue}", "blue", "the blue"),
        ("5 dollars", r"\$5", "5"),
        ("(1, 2]", r"1 < x \le 2", r"x \in (1,2]"),
        ("1, 2", "2 and 1", r"\{1,2\}"),
    ],
)
def test_equal_wrong_answers_are_one_group(texts):
    assert len({score("1001", rf"\boxed{{{text}}}").answer for text in texts}) == 1


@pytest.mark.parametrize(
    ("gold", "wrong"),
    [
        ("50%", ["60%", "0.6", "60"]),
        ("7:00", ["8:00", "8:00 PM", "20:00"]),
        ("2x+y=3", ["2x+y=4", "4x+2y=8", "y=4-2x"]),
        ("72", [r"\sqrt2", "1.41421356", "1.414213562"]),
        ("x^2", ["(x+1)^2", "x^2+2x+1", "1+2x+x^2"]),
        ("2 hours", ["3 hours", "180 minutes", "3 h"]),
        (r"\sqrt{10^{20}+1}", ["10^{10}"] * 3),
    ],
)
def test_three_equal_wrong_answers_outvote_two_right_ones(gold, wrong):
    example = Example("", gold, 0, "")
    texts = [rf"\boxed{{{text}}}" for text in (gold, gold, *wrong)]
    verdicts = judge(TASK, {}, texts, [example] * 5, [True] * 5, [5] * 5, 9)
    votes = Votes(TASK)
    names = [votes.name(example, *one) for one in zip(texts, verdicts, strict=True)]
    right = [one.correct for one in verdicts]
    assert right == [True, True, False, False, False]
    assert majority_at_k([names], [right], 5).tolist() == [0.0], names


# --- numbers --------------------------------------------------------------------------------------

FRACTIONS = st.builds(Fraction, st.integers(-(10**12), 10**12), st.integers(1, 10**6))


def spellings(value):
    above, below = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    yield f"{value.numerator}/{below}"
    for command in ("frac", "dfrac", "tfrac"):
        yield rf"{sign}\{command}{{{above}}}{{{below}}}"
    yield rf"\frac{{{sign}{3 * above}}}{{{3 * below}}}"
    yield rf"\text{{{value.numerator}/{below}}}"
    yield rf"$\left(\frac{{{value.numerator}}}{{{below}}}\right)$"
    yield rf"x = \frac{{{value.numerator}}}{{{below}}}"
    yield f"{sign}{above:,}/{below}"
    if above > below > 1:
        whole, rest = divmod(above, below)
        yield f"{sign}{whole} {rest}/{below}"
        yield rf"{sign}{whole}\frac{{{rest}}}{{{below}}}"
    if below == 1:
        yield rf"{sign}{above:,}".replace(",", r"\,")
        yield rf"{sign}{above:,}".replace(",", "{,}")
        yield f"{value.numerator}.0"
        yield f"**{value.numerator}**."


@MANY
@given(FRACTIONS, FRACTIONS)
def test_a_fraction_equals_all_its_spellings_and_no_other_fraction(value, other):
    for text in spellings(value):
        assert equal(str(value), text), text
        assert equal(text, str(value)), text
        assert equal(str(other), text) == (other == value), text


@MANY
@given(FRACTIONS, st.integers(-300, 300))
def test_no_scale_is_too_small_or_too_large(value, power):
    """What is equal stays equal times 10^k, what differs stays different, and nothing but 0 is
    0.
    """
    assume(value)
    scaled = rf"\frac{{{value.numerator}}}{{{value.denominator}}} \cdot 10^{{{power}}}"
    assert equal(scaled, scaled.replace(r"\cdot", r"\times"))
    assert not equal("0", scaled)
    assert not equal(scaled, "0")
    assert not equal(
        scaled, rf"\frac{{{value.numerator + 1}}}{{{value.denominator}}} \cdot 10^{{{power}}}"
    )


@MANY
@given(st.integers(1, 10**9), st.integers(1, 9), st.integers(-30, 30))
def test_a_decimal_is_its_own_digits(digits, places, power):
    """Two decimals are equal where one may be the other rounded, never for being small."""
    text = f"{digits / 10**places:.{places}f}"
    assume(float(text))
    assert equal(text, f"{text}e0")
    assert equal(text, text + "0")
    last = text[:-1] + str((int(text[-1]) + 1) % 10)
    assert not equal(text, last)
    assert not equal(f"{text}e{power}", f"{last}e{power}")


@MANY
@given(st.integers(1, 10**6), st.integers(2, 10**6))
def test_a_fraction_equals_its_decimal_from_five_digits_on(above, below):
    value = Fraction(above, below)
    assert equal(str(value), f"{above / below:.15g}")
    assert not equal(str(value), f"{above / below * 1.001:.15g}")
    short = Fraction(f"{above / below:.3g}")
    if abs(short - value) > value / 10**5:
        assert not equal(str(value), str(float(short)))


def test_numbers_that_are_too_large_are_no_numbers():
    for text in (
        "9^{9^9}",
        "9^{999999}",
        "9" * 50 + "^{999}",
        "400!",
        "2^{0.5}",
        "1/0",
        "0/0",
        "2^{3}^{4}",
        "(" * 30 + "1" + ")" * 30,
    ):
        with pytest.raises(NotANumber):
            number(text)
    assert number("2^{1000}").value == 2**1000
    assert number("2^{1000}").value.numerator.bit_length() < BITS


# --- speed ----------------------------------------------------------------------------------------


def test_a_plain_number_is_judged_in_less_than_a_millisecond():
    began = time.process_time()
    for value in range(1000):  # no two are the same: nothing comes from a cache
        assert score(str(value), f"So it is {value} - 1 + 1.\n#### {value}").correct
        assert not score(str(value), rf"\boxed{{{value + 1000}}}").correct
    assert time.process_time() - began < 2


# --- where the answer stands ----------------------------------------------------------------------


def test_the_answer_is_found_behind_the_thought_and_before_the_explanation():
    assert final_answer("<think>\\boxed{4}</think> It is 5.") == ("It is 5.", False)
    assert final_answer("<think>\\boxed{4}</think>") == ("", False)
    assert final_answer("\\boxed {5}\n#### Notes\nfine") == ("5", True)
    assert final_answer("\\boxed{5}" + " and so on" * 9000) == ("5", True)
    assert final_answer("\\boxed{5}\n#### 6") == ("6", True)
    assert final_answer("#### Answer\n#### blue") == ("blue", True)
    assert final_answer("<think>so \\boxed{72} I") == ("", False)
    assert final_answer("#### 72\n\n#### Explanation\nfine") == ("72", True)
    assert final_answer("#### Final Answer\n72") == ("72", True)
    assert final_answer("The answer is 5.\nThis is so because 2 + 3.") == ("5.", False)


# --- references that cannot be judged -------------------------------------------------------------


def test_references_that_cannot_be_judged_are_counted_by_reason(tmp_path):
    golds = {
        r"1, 2, \ldots, n": "an open list with an ellipsis",
        "1, 3, 5, ...": "an open list with an ellipsis",
        r"\frac{1}{0}": "a value that does not exist, such as 1/0",
        r"\sum_{k=1}^n k": "a sum, an integral, a limit or a number too large to compute",
        "9^{9^9}": "a sum, an integral, a limit or a number too large to compute",
        "Every even number above two is a sum of two primes": "a sentence",
        "x" * 201: "longer than 200 characters",
        "???": "no known form",
    }
    assert {gold: why_not(gold) for gold in golds} == golds
    rows = [
        (
            "f.jsonl, row 1",
            {"question": f"{i}?", "answer": str(i), "split": "train" if i else "valid"},
            None,
        )
        for i in range(9)
    ]
    rows += [
        (f"f.jsonl, row {10 + i}", {"question": f"odd {i}?", "answer": gold}, None)
        for i, gold in enumerate(golds)
    ]
    with pytest.warns(
        UserWarning,
        match=r"8 of 17 reference answers cannot be judged and are left out: .*1 × a sentence,"
        r" first f\.jsonl, row 15: 'Every",
    ) as told:
        task = QuestionTask("f", rows)
    assert "2 × an open list with an ellipsis, first f.jsonl, row 10" in str(told[0].message)
    assert sum(map(len, task.left_out.values())) == 8
    for gold in golds:
        assert read(gold) is None
        assert not equal(gold, gold)
