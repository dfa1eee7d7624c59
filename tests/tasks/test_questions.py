"""Questions from files, judged by kind: columns, splits, what cannot be read, and hostile
answers.
"""

import json
import threading
import time
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlkd_lab.tasks import Example, Task, find_task, mathematics
from rlkd_lab.tasks.answers import final_answer, grade, kinds
from rlkd_lab.tasks.base import split_of
from rlkd_lab.tasks.questions import TEMPLATE


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(
            "\n".join(json.dumps(row) for row in rows)
            if path.suffix == ".jsonl"
            else json.dumps(rows)
        )
    return str(path)


def sums(n=60, start=0):
    """Rows in the manner of GSM8K."""
    return [
        {
            "question": f"Tom has {i} pears and buys {i + 2}. How many now?",
            "answer": f"{i}+{i + 2} = <<x>>\n#### {2 * i + 2:,}",
        }
        for i in range(start, start + n)
    ]


def problems(n=60):
    """Rows in the manner of MATH."""
    return [
        {
            "problem": f"Halve ${i}$.",
            "solution": rf"We get $\boxed{{\frac{{{i}}}{{2}}}}$.",
            "level": f"Level {i % 5 + 1}",
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_a_file_becomes_a_task(tmp_path, suffix):
    task = find_task(write(tmp_path / f"sums{suffix}", sums()))
    assert isinstance(task, Task)
    assert (task.train_difficulty, task.ood_difficulty) == ((0, 0), None)
    (example,) = task.examples(1, 0)
    assert example.prompt == TEMPLATE.replace("{question}", example.id)
    assert task.score(f"So \\boxed{{{example.answer}}}.", example).parts == {
        "accuracy": 1.0,
        "format": 1.0,
        "parsed": 1.0,
    }
    assert task.score("so it is -3", example).parts == {
        "accuracy": 0.0,
        "format": 0.0,
        "parsed": 1.0,
    }
    assert task.score("???", example).answer is None
    for split in ("train", "validation", "test"):
        assert {split_of(e.id) for e in task.examples(30, 0, split, (0, 0))} == {split}


def test_math_rows_have_levels_and_boxed_answers(tmp_path):
    task = find_task(write(tmp_path / "math.jsonl", problems()))
    assert task.train_difficulty == (1, 5)
    hard = task.examples(9, 0, difficulty=(4, 5))
    assert {e.difficulty for e in hard} == {4, 5}
    example = hard[0]
    value = int(example.id.split("$")[1]) / 2
    assert task.score(f"\\boxed{{{value}}}", example).correct
    assert not task.score(f"\\boxed{{{value + 1}}}", example).correct
    with pytest.raises(ValueError, match="no train row of difficulty 8–9"):
        task.examples(1, 0, difficulty=(8, 9))


def test_a_folder_keeps_its_splits(tmp_path):
    write(tmp_path / "train.jsonl", sums(50))
    write(tmp_path / "test.parquet", sums(20, 50))
    task = find_task(str(tmp_path))
    got = {
        split: {e.id for e in task.examples(n, 0, split)}
        for split, n in (("train", 60), ("validation", 1), ("test", 20))
    }
    assert got["test"] == {row["question"] for row in sums(20, 50)}
    assert all(split_of(question) != "validation" for question in got["train"])
    assert all(split_of(question) == "validation" for question in got["validation"])
    write(tmp_path / "validation.json", sums(5, 90))
    task = find_task(str(tmp_path))
    assert {e.id for e in task.examples(50, 0)} == {row["question"] for row in sums(50)}
    assert {e.id for e in task.examples(5, 0, "validation")} == {
        row["question"] for row in sums(5, 90)
    }


def test_every_row_once_before_any_comes_again_and_by_the_seed(tmp_path):
    rows = [row | {"split": "train" if i < 20 else "valid"} for i, row in enumerate(sums(24))]
    task = find_task(write(tmp_path / "s.jsonl", rows))
    drawn = [e.id for e in task.examples(40, 3)]
    assert len(set(drawn[:20])) == len(set(drawn[20:])) == 20
    assert drawn[:20] != drawn[20:]
    assert drawn == [e.id for e in task.examples(40, 3)] != [e.id for e in task.examples(40, 4)]
    assert len(task.examples(9, 0, "validation")) == 9
    with pytest.raises(ValueError, match="no test row"):
        task.examples(1, 0, "test")


BAD = {
    "no column": (
        lambda rows: [{"query": "What?", "answer": "1"}],
        "s.jsonl has no column of questions (question, problem, prompt, messages): its"
        " columns are query, answer; name one with --set task.question=COLUMN",
    ),
    "no answers": (
        lambda rows: [{"question": "What?", "answer": None}, {"question": "Who?", "answer": " "}],
        "s.jsonl has no usable row: 2 without an answer (first s.jsonl, row 1)",
    ),
    "no object": (lambda rows: [3], "row 1 is no object"),
    "split": (lambda rows: [rows[0] | {"split": "holdout"}], "unknown split 'holdout'"),
    "too few": (
        lambda rows: rows[:1],
        "row among its 1 row that can be asked: give three different questions or more",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_rows_are_an_error_in_words(tmp_path, case):
    change, says = BAD[case]
    path = write(tmp_path / "s.jsonl", change(sums()))
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        find_task(path)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "torn.jsonl").write_text('{"question": "a", "answer": "1"}\n{"quest')
    with pytest.raises(ValueError, match="line 2 is no JSON"):
        find_task(str(tmp_path / "torn.jsonl"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"torn\.parquet cannot be read"):
        find_task(str(tmp_path / "torn.parquet"))
    (tmp_path / "s.xlsx").write_text("a,b")
    with pytest.raises(ValueError, match="of no kind that is read here"):
        find_task(str(tmp_path / "s.xlsx"))
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        find_task(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(FileNotFoundError, match="needs a train file and a test file"):
        find_task(str(tmp_path))
    with pytest.raises(
        ValueError, match=r"has no setting task\.quesion: did you mean task\.question\?"
    ):
        find_task(write(tmp_path / "s.jsonl", sums()), {"quesion": "q"})


def test_answers_that_cannot_be_read_are_counted_and_shown(tmp_path):
    rows = [
        *sums(),
        {"question": "Odd?", "answer": "#### ???"},
        {"question": "Odder?", "answer": "\\boxed{\\frac{1}{}}{"},
    ]
    with pytest.warns(
        UserWarning,
        match=r"2 of 62 reference answers cannot be judged and are left out: 2 × no known form,"
        r" first s\.jsonl, row 61: '\?\?\?'",
    ):
        task = find_task(write(tmp_path / "s.jsonl", rows))
    assert "Odd?" not in {
        e.id for split in ("train", "validation", "test") for e in task._rows[split]
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="has no row whose answer can be judged"):
            find_task(write(tmp_path / "none.jsonl", rows[-2:]))


EQUAL = [
    ("72", "72.0"),
    ("1,234", "1234"),
    ("1234", "$1,234"),
    (r"\frac{1}{2}", "0.5"),
    ("1/2", r"\dfrac12"),
    ("5", "x = 5"),
    ("18 dollars", "18"),
    ("(x+1)^2", "x^2+2x+1"),
    (r"\sqrt{12}", r"2\sqrt{3}"),
    ("1,2,3", "3, 1, 2"),
    ("(1,2)", "(1, 2)"),
    (r"\text{blue}", "Blue"),
    ("1024", "2^{10}"),
    (r"\frac{1}{3}", "0.33333333"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\sin^2 x+\cos^2 x + x", "x + 1"),
]
DIFFERENT = [
    ("72", "73"),
    ("12345678", "12345679"),
    ("x+1", "x+2"),
    ("x", "y"),
    ("1,2,3", "1,2"),
    ("blue", "lube"),
    ("(1,2)", "[1,2]"),
    ("5", "x"),
    ("0", ""),
    ("x=5", "y=5"),
    ("10^{999}", "10^{998}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}"),
    ("1/3", "0.333"),
    ("1" + "0" * 30, "1" + "0" * 29 + "1"),
]


@pytest.mark.parametrize(("gold", "found"), EQUAL)
def test_equal_answers_are_equal(gold, found):
    assert grade(gold, found).correct


@pytest.mark.parametrize(("gold", "found"), DIFFERENT)
def test_different_answers_are_different(gold, found):
    assert not grade(gold, found).correct


def test_equal_answers_have_one_text():
    for texts in (
        ("0.5", "1/2", r"\frac{1}{2}", "x=0.5"),
        ("72", "72.0", "72 apples"),
        (r"\text{Blue}", "blue"),
    ):
        assert len({grade("1001", text).text for text in texts}) == 1


def test_the_last_marked_answer_counts():
    assert final_answer(r"\boxed{1}, then \boxed{2}") == ("2", True)
    assert final_answer(r"\boxed{1}, \boxed{2} and \boxed{3}") == ("1 or 2 or 3", True)
    assert final_answer("#### 3\n\\boxed{4}") == ("4", True)
    assert final_answer("\\boxed{4}\n#### 3\nbye") == ("3", True)
    assert final_answer("<answer> 7 </answer>") == ("7", True)
    assert final_answer(r"\boxed{\{1\}}") == (r"\{1\}", True)
    assert final_answer(r"\boxed{1")[1] is False
    assert final_answer("") == ("", False)
    assert final_answer("\\boxed{5}" + "x" * 5000) == ("5", True)


HOSTILE = [
    "9^{9^{9^9}}",
    "9**9**9**9",
    "9" * 100_000,
    "9" * 49 + "^{999}",
    "1000000!",
    "(9!)!",
    "((9^{999})^{999})^{999}",
    "(" * 200 + ")" * 200,
    "(" * 9 + "x" + ")" * 9,
    "x^" * 60 + "2",
    r"\frac{1}{" * 60 + "1" + "}" * 60,
    r"\sqrt{" * 25 + "2" + "}" * 25,
    "*".join(["(x+y+z)^9"] * 15),
    r"\sum_{n=1}^{10^9} n",
    r"\binom{99999999}{9999999}",
    r"\begin{pmatrix}a&b\\c&d\end{pmatrix}^{999}",
    "|" * 60,
    "\x00",
    "\ud800",
    "\\" * 150,
    "{" * 9000,
    "}" * 9000,
    "$" * 9000,
    "^" * 150,
    r"\boxed{" * 900,
    "####" * 900,
    "__import__('os').system('true')",
    "1/0",
    "(sin(x)+1)^9*(cos(x)+2)^9*(tan(x)+3)^9",
    "x<" * 60,
    "<answer>" * 900,
    "1e999999999",
    "9^{99*99*99*99*99}",
    "9^{(99)(99)(99)(99)}",
    # a search for what takes long found these
    r"9^{\frac{999999999}{1}}",
    "9^{({999999999})}",
    r"9^\frac{999999999}{1}",
    r"\sqrt{2}^{\left(999999998\right)}",
    r"\exp(e^{(\tan(\exp(\exp(9+9))))(x+1)})",
    r"\tan(\exp(\exp(18)))",
    r"\sin(\exp(1000000))",
    r"\lfloor \sinh(\sinh(18)) \rfloor",
    r"\Gamma(99999)",
    r"\Gamma(10^{9})",
    r"\pi=|x+yyy+xx+y|\\pii",
]


def test_no_text_makes_the_judge_raise_or_wait():
    # in a thread, as the lab trains: signals would raise here
    golds = [
        Example("", gold, 0, "")
        for gold in ("72", "x^2+1", "(1,2)", r"\{1,2\}", r"\begin{pmatrix}1\\2\end{pmatrix}", "x=5")
    ]
    problems = []
    kinds._read.cache_clear()
    kinds._read_as.cache_clear()
    mathematics.formula.cache_clear()

    def work(task):
        try:
            for gold, right in (
                ("72", "72.0"),
                (
                    r"\begin{pmatrix}1\\2\end{pmatrix}",
                    r"\begin{pmatrix}\frac{2}{2}\\2\end{pmatrix}",
                ),
                ("x>1", "1<x"),
            ):
                if not task.score(f"\\boxed{{{right}}}", Example("", gold, 0, "")).correct:
                    problems.append((gold, right))
            for text in HOSTILE:
                for completion in (
                    f"\\boxed{{{text}}}",
                    text,
                    f"#### {text}",
                    f"<answer>{text}</answer>",
                ):
                    began = time.perf_counter()
                    score = task.score(completion, golds[len(completion) % len(golds)])
                    if time.perf_counter() - began > 2 or score.correct:
                        problems.append((text[:30], time.perf_counter() - began, score))
        except BaseException as error:
            problems.append(error)

    from rlkd_lab.tasks import QuestionTask

    task = QuestionTask(
        "t",
        [("f", row | {"split": "train" if i else "val"}, None) for i, row in enumerate(sums(2))],
    )
    thread = threading.Thread(target=work, args=(task,))
    thread.start()
    thread.join()
    assert problems == []


def test_the_hub_says_what_to_do(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'rlkd_lab\[datasets\]'"):
        find_task("hub:someone/something")

    class Datasets:
        @staticmethod
        def load_dataset(name, config):
            if name == "someone/none":
                raise ConnectionError("no route\nto host")
            assert (name, config) == ("someone/sums", "main")
            return {"train": sums(40), "test": sums(9, 40)}

    monkeypatch.setitem(sys.modules, "datasets", Datasets)
    with pytest.raises(
        FileNotFoundError,
        match=r"ConnectionError: no route.*Check the name.*machine with a network",
    ) as raised:
        find_task("hub:someone/none")
    assert "\n" not in str(raised.value)
    task = find_task("hub:someone/sums:main")
    assert {e.id for e in task.examples(9, 0, "test")} == {row["question"] for row in sums(9, 40)}


def test_a_template_leaves_other_braces_alone(tmp_path):
    task = find_task(
        write(tmp_path / "s.jsonl", sums()), template="{question} -> \\boxed{} {0} {x}"
    )
    (example,) = task.examples(1, 0)
    assert example.prompt == example.id + " -> \\boxed{} {0} {x}"


def test_a_question_that_is_held_out_is_not_trained_on(tmp_path):
    rows = [{"question": f"q{i} + 1?", "answer": str(i)} for i in range(60)]
    path = tmp_path / "leak.jsonl"
    path.write_text(
        "".join(
            json.dumps({**row, "split": split}) + "\n"
            for split in ("train", "test")
            for row in (rows if split == "train" else rows[:20])
        )
    )
    with pytest.warns(
        UserWarning, match=r"leak\.jsonl: \d+ train rows ask a question that is held out too"
    ):
        task = find_task(str(path))
    asked = {
        split: {example.id for example in task.examples(200 if split == "train" else 10, 0, split)}
        for split in ("train", "validation", "test")
    }
    assert not asked["train"] & (asked["test"] | asked["validation"])
    assert not asked["validation"] & asked["test"]
    assert len(asked["train"]) >= 30


def test_a_byte_order_mark_is_no_part_of_a_row(tmp_path):
    path = tmp_path / "bom.jsonl"
    path.write_text(
        "".join(json.dumps({"question": f"q{i}?", "answer": str(i)}) + "\n" for i in range(200)),
        encoding="utf-8-sig",
    )
    assert len(find_task(str(path)).examples(5, 0)) == 5


@pytest.mark.parametrize(
    ("one", "other"), [(r"50\%", "50"), ("50%", r"50\%"), ("1e5", "100000"), ("2.5e-3", "0.0025")]
)
def test_percent_signs_and_powers_of_ten(one, other):
    assert grade(one, other).correct
    assert not grade(one, "7").correct
