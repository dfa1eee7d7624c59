"""What tokenizers add to a prompt, and system prompts that would not be asked."""

import json
import shutil
from pathlib import Path

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from rlkd_lab.models.loading import load_base
from rlkd_lab.models.prompts import PromptFormat, ending_of
from rlkd_lab.models.tokenizers import load_tokenizer
from rlkd_lab.zoo.tokenizer import byte_pair_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor"
    " %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "no system role": "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no"
    " system role') }}{% endif %}[{{ m.content }}]{% endfor %}",
    "leaves system out": "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{%"
    " endif %}{% endfor %}",
}


def tokenizer(single=None, template=None, bos=None):
    """A byte-pair tokenizer whose post-processor makes ``single`` of a text."""
    found = byte_pair_tokenizer(["Emma is a knight.", "Liam is a knave."] * 2)
    if bos:
        found.add_special_tokens({"bos_token": bos})
    if single:
        special = [
            (token, found.convert_tokens_to_ids(token))
            for token in ("<eos>", "<bos>")
            if token in single
        ]
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=special
        )
    found.chat_template = template
    return found


def test_an_end_of_sequence_after_every_text_is_left_out_of_prompts_and_told():
    with_eos = tokenizer("$A <eos>")
    eos = with_eos.eos_token_id
    assert with_eos("12?")["input_ids"][-1] == eos
    asked = PromptFormat.of(with_eos, "m", "auto")
    assert asked.ids(["12?", "", "Emma"]) == PromptFormat.of(tokenizer(), "m", "auto").ids(
        ["12?", "", "Emma"]
    )
    assert asked.notes() == [
        "the tokenizer of m puts <eos> after every text; it is left out of prompts, which"
        " would have ended before their completion"
    ]
    assert asked.ids([]) == []
    assert PromptFormat.of(tokenizer(), "m", "auto").notes() == []


def test_a_beginning_of_sequence_stays_and_is_not_doubled():
    both = tokenizer("<bos> $A <eos>", bos="<bos>")
    assert ending_of(both) == [both.eos_token_id]
    plain = both("12?", add_special_tokens=False)["input_ids"]
    for text in ("12?", "<bos>12?"):
        assert PromptFormat.of(both, "m", "off").ids([text]) == [[both.bos_token_id, *plain]]


def test_a_chat_template_writes_its_own_special_tokens():
    both = tokenizer("<bos> $A <eos>", template="<bos><bos>{{ messages[0].content }}", bos="<bos>")
    plain = both("12?", add_special_tokens=False)["input_ids"]
    asked = PromptFormat.of(both, "m", "auto")
    assert asked.ids(["12?"]) == [[both.bos_token_id, *plain]]
    assert asked.notes() == []


@pytest.mark.parametrize("template", [None, CHATML])
@pytest.mark.parametrize("single", [None, "<bos> $A <eos>"])
def test_the_name_of_a_special_token_in_a_question_is_text(template, single):
    found = tokenizer(single, template, bos="<bos>")
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    asked = PromptFormat.of(found, "m", "auto")
    plain, named = asked.ids(["Emma is", "Emma <eos><pad>\ue000 is<eos>"])
    marks = set(found.all_special_ids)
    assert [i for i in named if i in marks] == [i for i in plain if i in marks]
    texts = ["Emma <eos><pad>\ue000 is<eos>"]
    assert found.decode(named).removeprefix("<bos>") == (
        asked.texts(texts)[0] if template else texts[0]
    )
    assert asked.ids(["Emma is"]) == [plain]  # nothing of it stays in the tokenizer


def test_a_bare_prompt_may_write_the_marks_of_a_chat_by_itself():
    found = tokenizer("<bos> $A", CHATML.replace("<|im_end|>", "<eos>"), bos="<bos>")
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    (ids,) = PromptFormat.of(found, "m", "off").ids(["<|im_start|>user 1?<eos>"])
    assert ids[1] == found.convert_tokens_to_ids("<|im_start|>")
    assert ids[-1] == found.eos_token_id
    (ids,) = PromptFormat.of(found, "m", "off").ids(["<|im_start|>user <pad>1?<eos>"])
    assert ids[1] == found.convert_tokens_to_ids("<|im_start|>")
    assert found.pad_token_id not in ids
    assert ids[-1] == found.eos_token_id


def test_one_token_that_begins_and_ends_a_text_is_text_but_at_the_beginning():
    found = tokenizer(bos="<eos>")
    (ids,) = PromptFormat.of(found, "m", "off").ids(["<eos>Emma <eos>"])
    assert [i for i in ids if i == found.eos_token_id] == ids[:1]


REFUSED = {
    "chat off": (
        "chatml",
        "off",
        "chat=off, where prompts stay bare: use --set chat=auto, drop system_prompt, or"
        " .*prompt_template",
    ),
    "no template": (
        None,
        "auto",
        "the tokenizer of m has no chat template; drop system_prompt, or put its text into"
        " --set prompt_template=TEXT",
    ),
    "no system role": (
        "no system role",
        "auto",
        "the chat template of m refuses the prompt: no system role",
    ),
    "leaves system out": (
        "leaves system out",
        "auto",
        "the chat template of m leaves system turns out",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_system_prompt_is_never_dropped_silently(case):
    template, chat, says = REFUSED[case]
    with pytest.raises(ValueError, match=says):
        PromptFormat.of(tokenizer(template=TEMPLATES.get(template)), "m", chat, "Be brief.")
    for nothing in (None, ""):
        assert PromptFormat.of(tokenizer(template=TEMPLATES.get(template)), "m", chat, nothing).ids(
            ["1?"]
        )
    assert (
        "Be brief."
        in PromptFormat.of(tokenizer(template=CHATML), "m", "auto", "Be brief.").texts(["1?"])[0]
    )


PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}|{% endfor %}"


def test_a_template_that_leaves_the_question_out_is_refused():
    """As templates do that take a turn in parts, beside images."""
    with pytest.raises(ValueError, match=r"template of m leaves out a question .* --set chat=off"):
        PromptFormat.of(tokenizer(template=PARTS), "m", "auto")
    assert PromptFormat.of(tokenizer(template=PARTS), "m", "off").texts
    for template in TEMPLATES.values():
        assert PromptFormat.of(tokenizer(template=template), "m", "auto").chat


def saved(folder, make_model, **tokens):
    shutil.copytree(make_model(), folder)
    backend = load_tokenizer(make_model()).backend_tokenizer
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).unlink(missing_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder)
    for file in ("config.json", "generation_config.json"):
        if (folder / file).exists():
            (folder / file).write_text(
                json.dumps(json.loads((folder / file).read_text()) | {"eos_token_id": None})
            )
    return str(folder)


def test_a_tokenizer_without_padding_and_end_is_an_error_in_words(tmp_path, make_model):
    with pytest.raises(
        ValueError,
        match=r"has no padding token and no end-of-sequence token: set eos_token in its"
        r" tokenizer_config\.json",
    ):
        load_tokenizer(saved(tmp_path / "none", make_model))
    assert (
        load_tokenizer(saved(tmp_path / "eos", make_model, eos_token="<eos>")).pad_token == "<eos>"
    )


def test_a_model_whose_completions_cannot_end_is_refused(tmp_path, make_model):
    folder = saved(tmp_path / "pad", make_model, pad_token="<pad>")
    with pytest.raises(ValueError, match="no token ends a completion of"):
        load_base(folder, "none")
    (Path(folder) / "generation_config.json").write_text(json.dumps({"eos_token_id": 1}))
    load_base(folder, "none")
