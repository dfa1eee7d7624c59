"""Rows of questions: file formats, columns, chats, what is left out and counted, duplicates,
tiny files.
"""

import csv
import json
import warnings

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkd_lab.tasks import QuestionTask, find_task
from rlkd_lab.tasks.base import SPLITS, split_of
from rlkd_lab.tasks.rows import read_files, read_questions

pytestmark = pytest.mark.filterwarnings("ignore:.*")


def sums(n=30):
    return [{"question": f"{i} + {i}?", "answer": str(2 * i)} for i in range(n)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(task):
    return {row.id: row.answer for split in SPLITS for row in task.rows(split)}


def told(path, **settings):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = find_task(path, settings)
    return task, [str(one.message) for one in caught]


# --- CSV ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_with_quotes_newlines_and_a_byte_order_mark(tmp_path, delimiter, encoding, newline):
    rows = [
        {"question": f'How much is "{i}",\n{i}; {i}\t– doubled?', "answer": f"{2 * i}"}
        for i in range(12)
    ]
    with (tmp_path / "s.csv").open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(
            file, ["question", "answer"], delimiter=delimiter, lineterminator=newline
        )
        writer.writeheader()
        writer.writerows(rows)
    assert asked(find_task(str(tmp_path / "s.csv"))) == {
        row["question"]: row["answer"] for row in rows
    }


def test_a_field_of_csv_may_be_long(tmp_path):
    (tmp_path / "s.csv").write_text(
        "question,answer\n" + "".join(f"{i} {'x' * 200_000},{i}\n" for i in range(3))
    )
    assert {len(question) for question in asked(find_task(str(tmp_path / "s.csv")))} == {200_002}


BROKEN = {
    "a comma without quotes": (
        b"question,answer\n1,2 + 3?,4\n",
        "row 1 has 3 fields and the first line names 2",
    ),
    "a quote that is not closed": (
        b'question,answer\n"1 + 1?,2\n2 + 2?,4\n',
        "cannot be read: unexpected end of data",
    ),
    "a name twice": (b"question,answer,answer\n1?,2,3\n", "has 'answer' twice"),
    "another encoding": (
        "question,answer\nWie groß?,2\n".encode("cp1252"),
        "it is not UTF-8 .*save it as UTF-8",
    ),
    "UTF-16": ("question,answer\n1?,2\n".encode("utf-16"), "it is not UTF-8"),
    "other columns": (
        b"Frage,Antwort\n1?,2\n",
        "no column of questions .*its columns are Frage, Antwort; name one with --set"
        " task.question=COLUMN",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_csv_that_would_be_read_wrongly_is_an_error_in_one_line(tmp_path, case):
    content, says = BROKEN[case]
    (tmp_path / "s.csv").write_bytes(content)
    with pytest.raises(ValueError, match=says) as raised:
        find_task(str(tmp_path / "s.csv"))
    assert "\n" not in str(raised.value)


def test_a_row_of_csv_that_is_too_short_is_left_out_and_counted(tmp_path):
    (tmp_path / "s.csv").write_text(
        "question,answer\n" + "".join(f"{i}?,{i}\n" for i in range(9)) + "\n10?\n,11\n"
    )
    task, said = told(str(tmp_path / "s.csv"))
    assert len(asked(task)) == 9
    assert (
        "left out 2 of 11 rows: 1 without an answer (first s.csv, row 10); 1 without a"
        " question (first s.csv, row 11)" in said[0]
    )


def test_a_folder_of_two_files_for_one_split_is_refused(tmp_path):
    for name in ("train.jsonl", "train.csv", "test.jsonl"):
        (tmp_path / name).write_text('{"question": "1?", "answer": "1"}\n')
    with pytest.raises(ValueError, match=r"two files of train rows, train\.jsonl and train\.csv"):
        find_task(str(tmp_path))


# --- columns --------------------------------------------------------------------------------------


def test_columns_can_be_named(tmp_path):
    path = jsonl(
        tmp_path / "s.jsonl",
        [
            {"Frage": row["question"], "answer": "wrong column", "Lösung": int(row["answer"])}
            for row in sums()
        ],
    )
    task = find_task(path, {"question": "Frage", "answer": "Lösung"})
    assert asked(task) == {row["question"]: row["answer"] for row in sums()}
    assert task.settings == {"question": "Frage", "answer": "Lösung"}
    with pytest.raises(
        ValueError,
        match=r"s\.jsonl has no column 'Losung', which task\.answer names: did you mean 'Lösung'\?",
    ):
        find_task(path, {"question": "Frage", "answer": "Losung"})


@pytest.mark.parametrize("file", ["train", "test"])
def test_each_file_of_a_folder_must_have_the_columns(tmp_path, file):
    for name in ("train", "test"):
        jsonl(
            tmp_path / f"{name}.jsonl",
            [
                {"q" if name == file else "question": f"{name} {i}?", "answer": "1"}
                for i in range(20)
            ],
        )
    with pytest.raises(ValueError, match=rf"{file}\.jsonl has no column of questions"):
        find_task(str(tmp_path))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (float("nan"), "without an answer"),
        (float("inf"), "without an answer"),
        (None, "without an answer"),
        ("  ", "without an answer"),
        ({"a": 1}, "with a dict as answer"),
        (["1", "2"], "with a list as answer"),
        (True, "with a bool as answer"),
        ("NaN", "with 'NaN' as answer, which stands for a missing one"),
        (" None ", "with 'None' as answer, which stands for a missing one"),
        ("N/A", "with 'N/A' as answer, which stands for a missing one"),
        ("\ud800", "with half of a character"),
    ],
)
def test_rows_without_a_usable_answer_are_left_out_and_counted_by_reason(tmp_path, answer, why):
    odd = [{"question": f"odd {i}?", "answer": answer} for i in range(2)]
    task, said = told(jsonl(tmp_path / "odd.jsonl", [*sums(), *odd, {"answer": "1"}]))
    assert asked(task) == {row["question"]: row["answer"] for row in sums()}
    assert f"left out 3 of 33 rows: 2 {why}" in said[0]
    assert "(first odd.jsonl, row 31); 1 without a question (first odd.jsonl, row 33)" in said[0]


CHOSEN = {
    "an index": ("Which is red?", 1, ["sky", "blood", "leaf"], False),
    "an index as text": ("Which is red?", "1", "['sky', 'blood', 'leaf']", False),
    "as ARC": ("Which is red?", 1.0, {"text": ["sky", "blood"], "label": ["A", "B"]}, False),
    "a letter": ("Which is red?", "B", ["sky", "blood", "leaf"], False),
    "a letter as text": ("Which is red?", " A ", "['blood', 'sky']", False),
    "a letter for numbers": ("1 + 1?", "B", ["1", "2"], False),
    "a letter beyond": ("Which blood type?", "C", ["sky", "blood"], True),
    "a letter that is there": ("Which is red? A) sky B) blood", "B", ["sky", "blood"], True),
    "a letter that is a choice": ("Which comes first?", "B", ["B", "C"], True),
    "another letter": ("Which blood type?", "O", ["sky", "blood"], True),
    "a choice": ("1 + 1?", 2, [1, 2, 3], True),
    "a text": ("Which is red?", "blood", ["sky", "blood"], True),
    "another number": ("Count!", 17, ["sky", "blood"], True),
    "numbered there": ("Which is red? 1) sky 2) blood", 2, ["sky", "blood"], True),
    "no list": ("Which is red?", 1, "sky or blood", True),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_the_place_of_a_choice_is_no_answer(case):
    question, answer, choices, usable = CHOSEN[case]
    row = {"question": question, "answer": answer, "choices": choices}
    rows = [("f, row 1", {"question": "1?", "answer": "1"}, None), ("f, row 2", row, None)]
    found, said = read_questions("t", rows)
    assert (len(found) == 2) is usable
    assert usable or "1 with the place of a choice as answer" in said[0]


def test_an_empty_column_gives_way_to_the_next():
    row = {"question": None, "problem": "1?", "answer": "", "solution": "2"}
    (found,), said = read_questions("t", [("f", row, None)])
    assert (found.question, found.answer, said) == ("1?", "2", [])
    row = {"messages": [turn("user", "1?"), turn("assistant", "2")], "answer": None}
    (found,), _ = read_questions("t", [("f", row, None)])
    assert found.answer == "2"
    with pytest.raises(ValueError, match="1 without an answer"):
        read_questions("t", [("f", row, None)], {"answer": "answer"})


def test_half_a_character_in_a_question_leaves_its_row_out(tmp_path):
    task, said = told(
        jsonl(tmp_path / "s.jsonl", [*sums(), {"question": "1\ud800?", "answer": "1"}])
    )
    assert len(asked(task)) == 30
    assert "left out 1 of 31 rows: 1 with half of a character (a lone surrogate)" in said[0]
    assert "in the question (first s.jsonl, row 31)" in said[0]


def test_answers_that_may_have_a_decimal_comma_are_told(tmp_path):
    lines = "".join(f"{i} halves?;{i},5\n" for i in range(9))
    (tmp_path / "s.csv").write_text("question;answer\n" + lines + "big?;1,234\n")
    _, said = told(str(tmp_path / "s.csv"))
    assert "9 answers of a CSV file, such as '0,5' (first s.csv, row 1), are read as" in said[0]


def test_splits_have_any_case_and_a_wrong_one_a_hint(tmp_path):
    rows = [row | {"split": "Train" if i else " VAL "} for i, row in enumerate(sums(5))]
    task = find_task(jsonl(tmp_path / "s.jsonl", rows))
    assert [len(task.rows(split)) for split in SPLITS] == [4, 1, 0]
    with pytest.raises(ValueError, match="unknown split 'Trian'; did you mean 'train'"):
        find_task(jsonl(tmp_path / "s.jsonl", [rows[0] | {"split": "Trian"}]))


# --- chats ----------------------------------------------------------------------------------------


def turn(role, content):
    return {"role": role, "content": content}


CHATS = {
    "answer in the chat": (
        {"messages": [turn("user", "1?"), turn("assistant", "It is #### 2")]},
        ("1?", "It is #### 2"),
    ),
    "answer column": (
        {"messages": [turn("user", "1?"), turn("assistant", "no")], "answer": "3"},
        ("1?", "3"),
    ),
    "no assistant": ({"messages": [turn("user", "1?")], "answer": 4}, ("1?", "4")),
    "chat as prompt": (
        {"prompt": [turn("user", "1?")], "completion": [turn("assistant", "5")]},
        ("1?", "5"),
    ),
    "system": (
        {"messages": [turn("system", "Be brief."), turn("user", "1?"), turn("assistant", "6")]},
        ("1?", "6"),
    ),
    "parts": (
        {
            "messages": [
                turn("user", [{"type": "text", "text": "1"}, {"type": "text", "text": "?"}]),
                turn("assistant", "7"),
            ]
        },
        ("1?", "7"),
    ),
    "text beside a chat": (
        {
            "prompt": "1?",
            "messages": [turn("user", "0"), turn("user", "1?"), turn("assistant", "8")],
        },
        ("1?", "8"),
    ),
}


@pytest.mark.parametrize("case", CHATS)
def test_the_last_user_turn_is_the_question_and_the_last_assistant_turn_the_answer(case):
    row, (question, answer) = CHATS[case]
    (found,), said = read_questions("t", [("f, row 1", row, None)])
    assert (found.question, found.answer) == (question, answer)
    assert bool(said) == (case == "system")
    if said:
        assert "1 row has a system turn (first f, row 1), which is not asked" in said[0]
        assert "--set system_prompt=TEXT" in said[0]


PREFERENCES = {
    "rejected first": {"rejected": "9", "chosen": "2"},
    "another name of it": {"response_rejected": "9", "response": "2"},
    "completion wins": {"other": "9", "completion": "2", "rejected": "8"},
    "the same reply twice": {"one": "2", "other": "2"},
}


@pytest.mark.parametrize("case", PREFERENCES)
def test_a_reply_that_is_rejected_is_no_answer(case):
    replies = {name: [turn("assistant", text)] for name, text in PREFERENCES[case].items()}
    (found,), _ = read_questions("t", [("f", {"prompt": [turn("user", "1+1?")]} | replies, None)])
    assert found.answer == "2"


def test_rows_with_rejected_or_different_replies_alone_are_left_out():
    asked = {"prompt": [turn("user", "1+1?")]}
    with pytest.raises(ValueError, match="f has no usable row: 1 without an answer"):
        read_questions("t", [("f", asked | {"rejected": [turn("assistant", "9")]}, None)])
    different = {"one": [turn("assistant", "9")], "other": [turn("assistant", "2")]}
    with pytest.raises(ValueError, match="1 with different replies in the columns one, other"):
        read_questions("t", [("f", asked | different, None)])
    (found,), _ = read_questions("t", [("f", asked | different, None)], {"answer": "other"})
    assert found.answer == "2"


WRITTEN = {
    "json": json.dumps,
    "json with spaces": lambda turns: " " + json.dumps(turns, indent=1),
    "pandas": str,
    "numpy": lambda turns: "[" + "\n ".join(map(str, turns)) + "]",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_field_of_csv_holds_a_chat_as_programs_write_it(tmp_path, how):
    with (tmp_path / "c.csv").open("w", newline="") as file:
        chats = [[turn("user", f"It's }}\n{{{i}?"), turn("assistant", str(i))] for i in range(9)]
        csv.writer(file).writerows([["messages"], *([WRITTEN[how](chat)] for chat in chats)])
    assert asked(find_task(str(tmp_path / "c.csv"))) == {
        f"It's }}\n{{{i}?": str(i) for i in range(9)
    }


def test_a_text_that_only_begins_like_a_chat():
    rows = [
        ("f, row 1", {"question": "[{'role': 'user', 'content': 1?", "answer": "1"}, None),
        ("f, row 2", {"question": "[{1}] has how many elements?", "answer": "1"}, None),
    ]
    (found,), (said,) = read_questions("t", rows)
    assert found.where == "f, row 2"
    assert "1 with a chat as question that cannot be read (first f, row 1)" in said


ODD_CHATS = {
    "two questions": (
        [turn("user", "1?"), turn("user", "3?"), turn("assistant", "4")],
        "with turns that are not the user's and the assistant's one after the other",
    ),
    "a late system": (
        [
            turn("user", "1?"),
            turn("system", "x"),
            turn("assistant", "2"),
            turn("user", "3?"),
            turn("assistant", "4"),
        ],
        "with a system turn behind the first turn",
    ),
    "nothing said": (
        [turn("user", "1?"), turn("assistant", ""), turn("user", "3?"), turn("assistant", "4")],
        "without a turn before the question",
    ),
    "no user": ([turn("assistant", "2")], "without a question"),
    "no answer": ([turn("user", "2?")], "without an answer"),
    "a tool": (
        [turn("user", "2?"), turn("tool", "x"), turn("assistant", "2")],
        "with a turn of role 'tool'",
    ),
    "a picture": (
        [turn("user", [{"type": "image"}]), turn("assistant", "2")],
        "with a list as question",
    ),
    "empty": ([turn("user", " "), turn("assistant", "2")], "without a question"),
}


@pytest.mark.parametrize("case", ODD_CHATS)
def test_chats_that_are_no_question_and_answer_are_left_out_and_counted(case):
    turns, why = ODD_CHATS[case]
    good = {"messages": [turn("user", "1?"), turn("assistant", "2")]}
    found, said = read_questions(
        "t", [("f, row 1", good, None), ("f, row 2", {"messages": turns}, None)]
    )
    assert [row.where for row in found] == ["f, row 1"]
    assert f"left out 1 of 2 rows: 1 {why}" in said[0]
    with pytest.raises(ValueError, match="f has no usable row: 1 with"):
        read_questions("t", [("f, row 2", {"messages": turns}, None)])


def test_turns_before_the_question_are_its_context():
    before = [turn("user", "1?"), turn("assistant", "2")]
    rows = [
        {"messages": [*before, turn("user", "3?")], "answer": "4"},
        {"messages": [*before, turn("user", "3?"), turn("assistant", "5")]},
        {"messages": [*before, turn("user", "3?"), turn("assistant", "5")], "answer": "4"},
    ]
    found, (said,) = read_questions("t", [(f"f, row {i}", row, None) for i, row in enumerate(rows)])
    assert [(row.key, row.answer) for row in found] == [
        ("user: 1?\nassistant: 2\nuser: 3?", answer) for answer in "45"
    ]
    assert found[0].prompt("3? Box it.").turns[-1] == ("user", "3? Box it.")
    assert (
        "1 with an answer beside a chat that ends with the assistant's turn (first f, row 2" in said
    )


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv"])
def test_chats_are_read_from_every_kind_of_file(tmp_path, suffix):
    rows = [{"messages": [turn("user", f"{i}?"), turn("assistant", str(i))]} for i in range(9)]
    path = tmp_path / f"chat{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == ".csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(
                [["messages"], *([json.dumps(row["messages"])] for row in rows)]
            )
    else:
        jsonl(path, rows)
    assert asked(find_task(str(path))) == {f"{i}?": str(i) for i in range(9)}
    assert len(read_files(path)) == 9


# --- duplicates -----------------------------------------------------------------------------------


def test_questions_that_are_asked_twice_are_told(tmp_path):
    rows = [row | {"split": "train" if i < 20 else "valid"} for i, row in enumerate(sums())]
    _, said = told(jsonl(tmp_path / "s.jsonl", rows))
    assert said == []
    _, said = told(jsonl(tmp_path / "s.jsonl", [*rows, rows[3]]))
    (sentence,) = said
    assert (
        "1 train questions are asked more than once, in 2 rows (first s.jsonl, row 4)" in sentence
    )
    assert "different" not in sentence
    _, said = told(jsonl(tmp_path / "s.jsonl", [*rows, rows[3] | {"answer": "77"}]))
    assert (
        "1 of them with different answers, such as '3 + 3?' (s.jsonl, row 4: '6'; s.jsonl,"
        " row 31: '77')" in said[0]
    )


@pytest.mark.parametrize("column", [True, False])
def test_a_question_in_other_spacing_or_case_is_not_held_out_and_trained_on(column):
    texts = [f"What is {i}+{i}?" for i in range(60)]
    near = [change(text) for text in texts for change in (" {} ".format, str.lower, str.upper)]
    near += [text.replace(" ", "  \n") for text in texts]
    rows = [
        (f"f, row {i}", {"question": text, "answer": "1"}, split if column else None)
        for split, part in (
            ("test", texts[:9]),
            ("validation", texts[9:18]),
            ("train", texts + near),
        )
        for i, text in enumerate(part)
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = QuestionTask("t", rows)
    plain = {
        split: {" ".join(row.id.casefold().split()) for row in task.rows(split)} for split in SPLITS
    }
    assert not plain["train"] & (plain["validation"] | plain["test"])
    assert not plain["validation"] & plain["test"]
    said = [str(one.message) for one in caught]
    assert any("in other spacing or letter case); left out of train" in text for text in said)
    assert not column or "t: 90 train rows ask a question that is held out too (72 in" in said[0]


def test_names_in_a_formula_keep_their_case():
    rows = [
        (f"f, row {i}", {"question": text, "answer": "1"}, split)
        for i, (text, split) in enumerate(
            [
                ("What is T+t?", "train"),
                ("What is t+t?", "test"),
                ("v?", "train"),
                ("a?", "validation"),
            ]
        )
    ]
    task = QuestionTask("t", rows)
    assert [len(task.rows(split)) for split in SPLITS] == [2, 1, 1]


def test_a_copy_in_other_spacing_goes_with_a_question_that_fills_a_split():
    task = made(["What is 1+1?", " what is 1+1?", "What is 2+2?", "What is  2+2?"])
    ids = [{" ".join(row.id.casefold().split()) for row in task.rows(split)} for split in SPLITS]
    assert sorted(map(len, ids)) == [0, 1, 1]
    assert len(set.union(*ids)) == 2


# --- tiny files -----------------------------------------------------------------------------------

QUESTIONS = st.lists(
    st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=4), min_size=3, max_size=14
)


def made(questions, **columns):
    return QuestionTask(
        "t",
        [
            (f"f, row {i}", {"question": text, "answer": "1"} | columns, None)
            for i, text in enumerate(questions, 1)
        ],
    )


@settings(max_examples=60, deadline=None)
@given(QUESTIONS)
def test_three_questions_are_enough_for_three_splits_and_files_that_have_them_keep_theirs(
    questions,
):
    if len(set(questions)) < 3:
        return
    task = made(questions)
    split = {one: {row.id for row in task.rows(one)} for one in SPLITS}
    assert all(split.values())
    assert sum(map(len, split.values())) == len(set(questions))
    assert sum(len(task.rows(one)) for one in SPLITS) == len(questions)
    hashed = {one: {text for text in questions if split_of(text) == one} for one in SPLITS}
    if all(hashed.values()):
        assert split == hashed
    assert {one: {row.id for row in made(reversed(questions)).rows(one)} for one in SPLITS} == split


@settings(max_examples=30, deadline=None)
@given(QUESTIONS)
def test_a_tiny_train_file_lends_a_validation_row_and_never_the_test_rows(questions):
    rows = [
        (f"train, row {i}", {"question": f"a{text}", "answer": "1"}, "train")
        for i, text in enumerate(questions)
    ]
    rows += [("test, row 1", {"question": "z", "answer": "1"}, "test")]
    if len(set(questions)) < 2:
        return
    task = QuestionTask("t", rows)
    assert [row.id for row in task.rows("test")] == ["z"]
    assert task.rows("train")
    assert task.rows("validation")


def test_two_questions_leave_no_test_row_and_that_is_told(tmp_path):
    task, said = told(jsonl(tmp_path / "s.jsonl", sums(2)))
    assert [len(task.rows(split)) for split in SPLITS] == [1, 1, 0]
    assert "has no test row: three different questions" in said[0]


def test_an_empty_split_is_never_filled_with_rows_that_name_theirs():
    rows = [
        (f"f, row {i}", {"question": f"q{i}", "answer": "1"}, "test" if i < 9 else None)
        for i in range(12)
    ]
    task = QuestionTask("t", rows)
    assert {row.id for row in task.rows("test")} >= {f"q{i}" for i in range(9)}
    assert task.rows("train")
    assert task.rows("validation")


def test_a_column_that_names_the_splits_is_not_overruled(tmp_path):
    rows = [row | {"split": "train" if i else "val"} for i, row in enumerate(sums(5))]
    task = find_task(jsonl(tmp_path / "s.jsonl", rows))
    assert [len(task.rows(split)) for split in SPLITS] == [4, 1, 0]
