"""Chat templates: the tokens that the template means, once, and errors in words."""

import pickle

import pytest

from rlkd_lab.models.language_model import LanguageModel
from rlkd_lab.tasks import Chat
from rlkd_lab.zoo.tokenizer import character_tokenizer

PLAIN = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}{% if"
    " add_generation_prompt %}[assistant]{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system"
    " role') }}{% endif %}{{ m['content'] }}{% endfor %}"
)


@pytest.fixture
def make():
    """``make(template)``: a model without weights, whose tokenizer writes a beginning of
    sequence before every text.
    """

    def language_model(template):
        from tokenizers.processors import TemplateProcessing

        tokenizer = character_tokenizer()
        bos = tokenizer.unk_token_id  # any token will do
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<unk> $A", special_tokens=[("<unk>", bos)]
        )
        tokenizer.bos_token = "<unk>"
        tokenizer.chat_template = template
        return LanguageModel(model=None, tokenizer=tokenizer, source="tiny", quant="none")

    return language_model


def test_the_ids_are_those_of_the_template_and_no_token_is_doubled(make):
    lm = make("{{ bos_token }}" + PLAIN)
    lm.use_chat("auto", "Be brief.")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]
    expected = lm.tokenizer.apply_chat_template(
        turns, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    (found,) = lm.prompt_ids(["1+1?"])
    assert found == expected
    assert found.count(lm.tokenizer.bos_token_id) == 1
    assert lm.tokenizer.decode(found[1:]) == "[system]Be brief.\n[user]1+1?\n[assistant]"


def test_without_a_system_prompt_there_is_no_system_turn(make):
    lm = make(PLAIN)
    lm.use_chat("auto")
    assert lm.tokenizer.decode(lm.prompt_ids(["1+1?"])[0]) == "[user]1+1?\n[assistant]"


def test_off_and_no_template_are_the_bare_prompt(make):
    for template, wanted in ((PLAIN, "off"), (None, "auto")):
        lm = make(template)
        lm.use_chat(wanted)
        assert not lm.chat
        assert lm.prompt_ids(["1+1?"])[0] == lm.tokenizer("1+1?")["input_ids"]
        with pytest.raises(ValueError, match="system_prompt cannot act"):
            lm.use_chat(wanted, "Be brief.")


def test_a_template_that_refuses_a_system_turn_is_an_error_in_words(make):
    lm = make(NO_SYSTEM)
    with pytest.raises(
        ValueError,
        match="the chat template of tiny refuses the prompt: no system role; change"
        " system_prompt, or use --set chat=off",
    ):
        lm.use_chat("auto", "Be brief.")
    lm.use_chat("auto")
    assert lm.tokenizer.decode(lm.prompt_ids(["1+1?"])[0]) == "1+1?"


def test_a_chat_of_several_turns_is_asked_through_the_template(make):
    chat = pickle.loads(
        pickle.dumps(Chat([("user", "1+1?"), ("assistant", "2"), ("user", "<unk>?")]))
    )
    lm = make(PLAIN)
    lm.use_chat("auto", "Be brief.")
    (ids,) = lm.prompt_ids([chat])
    said = "[system]Be brief.\n[user]1+1?\n[assistant]2\n[user]<unk>?\n[assistant]"
    assert lm.prompts.texts([chat]) == [said]
    assert lm.tokenizer.unk_token_id not in ids  # its name is text, in every turn
    before = "[system]Be brief.\n[user]1+1?\n[assistant]2\n[user]"
    assert lm.tokenizer.decode(ids).startswith(before)
    lm.use_chat("off")
    with pytest.raises(
        ValueError, match="a prompt is a chat of 3 turns, which needs the chat temp"
    ):
        lm.prompt_ids([chat])
