"""Engines behind one function: what they draw, what they report of it, and how they stop."""

import threading

import pytest
import torch
from scipy.stats import chisquare

from rlkd_lab.models import load_policy, load_teacher, policy_logps, reference_of, token_logps
from rlkd_lab.models.decoder import Decoder
from rlkd_lab.models.dense_copy import DenseCopy
from rlkd_lab.models.logprobs import hidden_states
from rlkd_lab.models.lora import Lora
from rlkd_lab.rollouts import Sampling, Stopped, sample
from rlkd_lab.rollouts.fast import LOOK, _pick
from rlkd_lab.tasks import ArithmeticTask

PROMPTS = ["49-7?", "5+1-2+3+4?", "8?"]
ENGINES = pytest.mark.parametrize("engine", ["fast", "hf", "continuous"])
FAMILIES = pytest.mark.parametrize("family", ["qwen3", "qwen2", "gemma2"])


@pytest.fixture(scope="module")
def policy(make_model, stir):
    return stir(load_policy(make_model(), "nf4"))


@pytest.fixture(scope="module")
def student():
    return load_policy("student", "nf4")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def agree(drawn, lm, temperature=1.0, tolerance=1e-4):
    with torch.no_grad():
        logps, _ = policy_logps(lm, drawn.sequences, temperature)
    torch.testing.assert_close(drawn.sampler_logps, logps, rtol=tolerance, atol=tolerance)


# --- what is reported is what the trainer computes ------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("quant", ["nf4", "none"])
@pytest.mark.parametrize("copied", [False, True])
def test_pitfall_05_the_samplers_log_probabilities_are_the_trainers(
    make_model, stir, family, quant, copied
):
    # More rows than tokens to go round: rows finish at different columns, so the cache shrinks
    # several times.
    policy = stir(load_policy(make_model(family), quant))
    policy.causal_lm.generation_config.eos_token_id = list(range(1, 128, 7))
    dense = DenseCopy(policy) if copied else None
    drawn = sample(policy, PROMPTS, 8, Sampling(max_new_tokens=24), generator(), dense=dense)
    assert int(drawn.finished.sum()) > 0
    assert len(set(drawn.sequences.completion_mask.sum(1).tolist())) > 4
    agree(drawn, policy)


def test_a_look_every_four_tokens_draws_what_a_look_at_every_token_draws(
    make_model, stir, monkeypatch
):
    policy = stir(load_policy(make_model(), "nf4"))
    policy.causal_lm.generation_config.eos_token_id = list(range(1, 128, 7))
    dense = DenseCopy(policy)

    def drawn(copy):
        return sample(policy, PROMPTS, 8, Sampling(max_new_tokens=24), generator(), dense=copy)

    often = drawn(dense)
    step, seen = Decoder.step, []
    monkeypatch.setitem(LOOK, "cpu", 4)
    monkeypatch.setattr(Decoder, "step", lambda *given: seen.append(len(given[1])) or step(*given))
    for seldom in (drawn(dense), drawn(None)):
        assert seldom.texts == often.texts
        assert torch.equal(seldom.finished, often.finished)
        torch.testing.assert_close(seldom.sampler_logps, often.sampler_logps, rtol=1e-4, atol=1e-4)
    long = int((often.sequences.completion_mask.sum(1) > 4).sum())
    assert 0 < long < 21
    assert seen[:4] == [24, 24, 24, long]  # the others left
    monkeypatch.setattr(Decoder, "step", lambda *given: step(*given) * torch.nan)
    with pytest.raises(FloatingPointError, match=r"the logits of .* are not finite"):
        drawn(dense)


@pytest.mark.parametrize("temperature", [0.5, 1.7])
def test_pitfall_08_temperature_divides_what_is_drawn_and_what_is_reported(student, temperature):
    drawn = sample(student, PROMPTS, 16, Sampling(temperature, 12), generator())
    agree(drawn, student, temperature)
    assert (
        float(
            (drawn.sampler_logps - policy_logps(student, drawn.sequences)[0].detach()).abs().max()
        )
        > 0.05
    )


def test_every_view_samples_with_its_own_adapter(make_model, make_adapter):
    policy = load_policy(make_model(), "nf4", adapter=make_adapter(make_model(), seed=1))
    teacher = load_teacher(
        make_model(), "nf4", policy=policy, adapter=make_adapter(make_model(), seed=2)
    )
    bare = load_teacher(make_model(), "nf4", policy=policy)
    drawn = [
        sample(lm, PROMPTS, 4, Sampling(max_new_tokens=8), generator())
        for lm in (policy, teacher, bare)
    ]
    for lm, one in zip((policy, teacher, bare), drawn, strict=True):
        agree(one, lm)
    assert len({tuple(one.texts) for one in drawn}) == 3
    assert [name for name, p in policy.model.named_parameters() if p.requires_grad]
    agree(
        sample(reference_of(policy), PROMPTS, 4, Sampling(max_new_tokens=8), generator()),
        reference_of(policy),
    )


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("quant", ["nf4", "none"])
@pytest.mark.parametrize("copied", [False, True])
def test_pitfall_05_so_are_those_of_continuous_batching(make_model, stir, family, quant, copied):
    policy = stir(load_policy(make_model(family), quant))
    policy.causal_lm.generation_config.eos_token_id = list(range(1, 128, 7))
    dense = DenseCopy(policy) if copied else None
    # a cache for half of them, so that completions wait for others to end; prompts of several pages
    drawn = sample(
        policy,
        ["1+" * 40 + "1?", *PROMPTS],
        4,
        Sampling(0.8, 24),
        generator(),
        engine="continuous",
        dense=dense,
        at_once=8,
    )
    assert len(set(drawn.sequences.completion_mask.sum(1).tolist())) > 1
    agree(drawn, policy, 0.8)


def test_continuous_batching_is_refused_where_it_leaves_something_out(make_model):
    # transformers' paged attention does not know Gemma 2's soft caps: log-probabilities were wrong
    # in the third digit, without a word
    with pytest.raises(ValueError, match=r"soft caps of .*: use --set engine=fast"):
        sample(
            load_policy(make_model("gemma2"), "none"),
            PROMPTS,
            2,
            Sampling(max_new_tokens=4),
            generator(),
            engine="continuous",
        )


def test_continuous_batching_reports_what_it_drew_with_where_tokens_are_cut(student):
    for cut in ({"top_k": 3}, {"top_p": 0.6}):
        drawn = sample(
            student, PROMPTS, 8, Sampling(1.5, 6, **cut), generator(), engine="continuous"
        )
        counts = drawn.sequences.completion_mask.bool()
        with torch.no_grad():
            log_probs = torch.log_softmax(
                student.head(hidden_states(student, drawn.sequences)).float() / 1.5, -1
            )
        for row, token, logp in zip(
            log_probs,
            drawn.sequences.completion_ids[counts].tolist(),
            drawn.sampler_logps[counts].tolist(),
            strict=True,
        ):
            assert token in (kept := support(row, cut))
            assert logp == pytest.approx(
                float(row[token] - row[sorted(kept)].logsumexp(0)), abs=1e-3
            )


# --- an engine of your own ------------------------------------------------------------------------


OWN = """
import torch
from rlkd_lab.rollouts import Sampling, sample

def ours(request):
    # asks ours for the same, as a server would be asked
    generator = torch.Generator().manual_seed(request.seed)
    prompts = request.lm.tokenizer.batch_decode(request.unpadded())
    drawn = sample(request.lm, prompts, request.group_size, request.sampling, generator)
    rest = (0, request.sampling.max_new_tokens - drawn.sampler_logps.shape[1])
    pad = torch.nn.functional.pad
    return pad(drawn.sequences.completion_ids, rest), pad(drawn.sampler_logps, rest)

class Lying:
    def __call__(self, request):
        ids, logps = ours(request)
        return ids, logps - 0.1

class Narrow:
    def __call__(self, request):
        return ours(request)[0][:, :3], None

number = 3
"""


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "engines.py"
    path.write_text(OWN)
    return lambda name: f"{path}:{name}"


def test_an_engine_of_your_own_is_asked_and_its_log_probabilities_are_kept(student, own):
    drawn = sample(
        student, PROMPTS, 4, Sampling(max_new_tokens=12), generator(), engine=own("ours")
    )
    agree(drawn, student)
    assert (
        sample(
            student, PROMPTS, 4, Sampling(max_new_tokens=12), generator(), engine=own("ours")
        ).texts
        == drawn.texts
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Narrow", r"tokens of shape \(6, 3\) where \(6, 8\)"),
        ("number", "it is a int"),
        ("nobody", "has no 'nobody'"),
    ],
)
def test_an_engine_that_is_none_is_an_error_in_words(student, own, name, says):
    with pytest.raises(ValueError, match=says):
        sample(student, PROMPTS, 2, Sampling(max_new_tokens=8), generator(), engine=own(name))


SPOILT = """
import torch
from rlkd_lab.rollouts import ENGINES

def nan(request):
    ids, logps = ENGINES["fast"](request)
    return ids, logps * float("nan")

def decimal(request):
    ids, logps = ENGINES["fast"](request)
    return ids + 0.7, logps

def foreign(request):
    ids, logps = ENGINES["fast"](request)
    return ids + 1000, logps

def alone(request):
    return ENGINES["fast"](request)[0]

def raising(request):
    raise KeyError("server")

class Needy:
    def __init__(self, address):
        pass
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nan", "log-probabilities that are above 0 or no numbers"),
        ("decimal", "tokens as torch.float32; they are integers"),
        ("foreign", r"the tokens \d+ to \d+; the model has 0 to"),
        ("alone", "gave a Tensor; its answer is a pair"),
        ("raising", "raised KeyError: 'server'"),
        ("Needy", "cannot be made: TypeError"),
    ],
)
def test_a_spoilt_answer_of_an_engine_is_an_error_in_words(student, tmp_path, name, says):
    path = tmp_path / "spoilt.py"
    path.write_text(SPOILT)
    with pytest.raises(ValueError, match=says):
        sample(
            student, PROMPTS, 2, Sampling(max_new_tokens=8), generator(), engine=f"{path}:{name}"
        )


# --- layout, masks, lengths -----------------------------------------------------------------------


@ENGINES
def test_rows_of_one_prompt_stand_together(student, engine):
    drawn = sample(student, PROMPTS, 3, Sampling(max_new_tokens=6), generator(), engine=engine)
    prompts = [
        student.tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(drawn.sequences.prompt_ids, drawn.sequences.prompt_mask, strict=True)
    ]
    assert prompts == [prompt for prompt in PROMPTS for _ in range(3)]
    assert len(drawn.texts) == len(drawn.finished) == len(drawn.sequences.completion_ids) == 9
    assert (drawn.sampler_logps is None) == (engine == "hf")


@ENGINES
def test_pitfall_13_the_mask_ends_with_the_first_of_several_ends_of_sequence(
    policy, monkeypatch, engine
):
    ends = [1, 20, 21, 22, 40, 41, 42, 60, 61, 62]
    monkeypatch.setattr(policy.causal_lm.generation_config, "eos_token_id", ends[1:])
    drawn = sample(policy, PROMPTS, 12, Sampling(max_new_tokens=16), generator(), engine=engine)
    seen = set()
    for ids, mask, finished, text in zip(
        drawn.sequences.completion_ids,
        drawn.sequences.completion_mask,
        drawn.finished,
        drawn.texts,
        strict=True,
    ):
        kept = ids[mask.bool()].tolist()
        # ones first, then zeros, and padding where the mask is zero
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert set(ids[~mask.bool()].tolist()) <= {policy.tokenizer.pad_token_id}
        assert not set(kept[:-1]) & set(ends)
        assert bool(finished) == (kept[-1] in ends)
        # cut by the length limit: the mask is full
        assert bool(finished) or len(kept) == 16
        assert text == policy.tokenizer.decode(kept, skip_special_tokens=True)
        seen.add(kept[-1] if finished else None)
    assert len(seen) > 3


@pytest.mark.parametrize("engine", ["fast", "hf"])
def test_columns_that_no_row_needs_are_cut(student, monkeypatch, engine):
    # every token ends a completion
    monkeypatch.setattr(student.causal_lm.generation_config, "eos_token_id", list(range(128)))
    forwards = []
    hook = student.backbone.register_forward_hook(lambda *_: forwards.append(1))
    drawn = sample(student, PROMPTS, 2, Sampling(max_new_tokens=9), generator(), engine=engine)
    hook.remove()
    # any of several ends is enough to stop: after the prompt nothing is computed
    assert len(forwards) == 1
    assert drawn.sequences.completion_ids.shape == (6, 1)
    assert bool(drawn.finished.all())
    assert bool(drawn.sequences.completion_mask.all())


@ENGINES
def test_pitfall_13_the_length_limit_leaves_a_completion_unfinished(policy, monkeypatch, engine):
    with torch.no_grad():
        draw = sample(policy, PROMPTS, 2, Sampling(max_new_tokens=1), generator(), engine=engine)
    assert draw.sequences.completion_ids.shape == (6, 1)
    assert torch.equal(draw.finished, draw.sequences.completion_ids[:, 0] == 1)
    # a last token that ends it counts as finished
    monkeypatch.setattr(
        policy.causal_lm.generation_config,
        "eos_token_id",
        sorted(set(draw.sequences.completion_ids[:, 0].tolist())),
    )
    assert bool(
        sample(
            policy, PROMPTS, 2, Sampling(max_new_tokens=1), generator(), engine=engine
        ).finished.all()
    )


def test_an_end_of_sequence_that_is_also_the_padding_is_still_counted(make_model, monkeypatch):
    policy = load_policy(make_model(), "none")
    policy.tokenizer.pad_token = policy.tokenizer.eos_token
    monkeypatch.setattr(policy.causal_lm.generation_config, "eos_token_id", list(range(1, 12)))
    drawn = sample(policy, PROMPTS, 12, Sampling(max_new_tokens=20), generator())
    assert int(drawn.finished.sum()) > 0
    agree(drawn, policy)


# --- the batch may shrink, the draws may not change -----------------------------------------------


@FAMILIES
def test_nearly_greedy_the_two_engines_write_the_same(make_model, stir, family):
    policy = stir(load_policy(make_model(family), "none"))
    policy.causal_lm.generation_config.eos_token_id = list(range(1, 128, 9))
    cold = Sampling(temperature=1e-5, max_new_tokens=20)
    fast, hf = (
        sample(policy, [*PROMPTS, "77?", "1+2+3?"], 2, cold, generator(), engine=engine)
        for engine in ("fast", "hf")
    )
    assert fast.texts == hf.texts
    # the random Gemma repeats its last token for ever
    assert family == "gemma2" or len(set(fast.sequences.completion_mask.sum(1).tolist())) > 1
    assert torch.equal(fast.sequences.completion_ids, hf.sequences.completion_ids)


def test_nearly_greedy_a_trained_model_writes_the_same(student):
    prompts = [example.prompt for example in ArithmeticTask().examples(12, 0, difficulty=(1, 6))]
    fast, hf = (
        sample(student, prompts, 1, Sampling(1e-5, 60), generator(), engine=engine)
        for engine in ("fast", "hf")
    )
    assert fast.texts == hf.texts
    assert bool(fast.finished.all())


def test_the_prompt_is_prefilled_once_and_finished_rows_leave(student, monkeypatch):
    rows = []
    hook = student.backbone.embed_tokens.register_forward_hook(
        lambda module, args, out: rows.append(tuple(args[0].shape))
    )
    drawn = sample(student, PROMPTS, 16, Sampling(max_new_tokens=60), generator())
    hook.remove()
    assert rows[0] == (3, drawn.sequences.prompt_ids.shape[1])
    assert rows[1] == (48, 1)
    assert rows[-1][0] < 24
    assert [n for n, _ in rows[1:]] == sorted((n for n, _ in rows[1:]), reverse=True)
    # no forward for a token that nobody will see
    assert len(rows) == drawn.sequences.completion_ids.shape[1] or not bool(drawn.finished.all())


def exact_first_token(lm, prompt, temperature):
    ids = lm.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return torch.softmax(lm.causal_lm(input_ids=ids).logits[0, -1] / temperature, -1)


@ENGINES
@pytest.mark.parametrize("copied", [False, True])
def test_first_tokens_have_the_right_frequencies(student, engine, copied):
    if engine == "hf" and copied:
        pytest.skip("hf samples from the model itself")
    dense, n = (DenseCopy(student) if copied else None), 1000
    drawn = sample(
        student, ["8+5?", "49-7?"], n, Sampling(1.5, 1), generator(7), engine=engine, dense=dense
    )
    for row, prompt in enumerate(["8+5?", "49-7?"]):
        exact = exact_first_token(student, prompt, 1.5) * n
        counts = torch.bincount(
            drawn.sequences.completion_ids[row * n : row * n + n, 0], minlength=128
        ).float()
        likely = exact >= 5
        observed, expected = (
            [*values[likely].tolist(), float(values[~likely].sum())]
            for values in (counts, exact.double())
        )
        scale = sum(observed) / sum(expected)
        assert chisquare(observed, [value * scale for value in expected]).pvalue > 0.001


def test_second_tokens_have_the_right_frequencies(student):
    # the first token that comes from the cache, after a prompt that is padded
    n, temperature = 1500, 1.5
    drawn = sample(student, ["8+5?", "49-7+3-2?"], n, Sampling(temperature, 2), generator(8))
    ids = drawn.sequences.completion_ids[:n]
    first = int(torch.bincount(ids[:, 0]).argmax())
    exact = exact_first_token(student, "8+5?" + student.tokenizer.decode([first]), temperature)
    counts = torch.bincount(ids[ids[:, 0] == first, 1], minlength=128).float()
    exact = exact * counts.sum()
    likely = exact >= 5
    observed, expected = (
        [*values[likely].tolist(), float(values[~likely].sum())]
        for values in (counts, exact.double())
    )
    assert sum(observed) > 200
    assert (
        chisquare(observed, [value * sum(observed) / sum(expected) for value in expected]).pvalue
        > 0.001
    )


# --- randomness -----------------------------------------------------------------------------------


@ENGINES
def test_the_generator_alone_decides_and_the_global_stream_is_untouched(student, engine):
    texts = []
    for seed, stream in ((0, 1), (0, 2), (5, 1)):
        torch.manual_seed(stream)
        before = torch.get_rng_state()
        texts.append(
            sample(student, PROMPTS, 4, Sampling(1.3, 10), generator(seed), engine=engine).texts
        )
        assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("at_once", [1, 4, 8])
def test_how_many_are_sampled_at_once_changes_no_completion(student, copied, at_once):
    dense = DenseCopy(student) if copied else None
    whole, parts = (
        sample(student, PROMPTS, 4, Sampling(1.3, 20), generator(), dense=dense, at_once=some)
        for some in (0, at_once)
    )
    assert whole.texts == parts.texts
    assert torch.equal(whole.sequences.completion_ids, parts.sequences.completion_ids)
    torch.testing.assert_close(whole.sampler_logps, parts.sampler_logps, rtol=1e-4, atol=1e-5)


def test_a_completion_does_not_depend_on_its_neighbours(student):
    # the first prompt's completions are the same, whatever follows it and however soon that ends
    alone = sample(student, PROMPTS[:1], 4, Sampling(1.3, 20), generator()).texts
    among = sample(student, [PROMPTS[0], "1+1?", "2+2?"], 4, Sampling(1.3, 20), generator()).texts
    assert among[:4] == alone


def test_noise_picks_each_token_for_its_share_of_the_unit_interval_and_never_an_impossible_one():
    probs = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    noise = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-24])[:, None]
    assert _pick(probs.log().expand(6, -1), noise)[:, 0].tolist() == [1, 1, 3, 3, 4, 4]


def test_over_a_large_vocabulary_the_shares_of_the_unit_interval_are_the_probabilities():
    # the sum over 152k tokens is rounded; what a token loses by it must be small beside its
    # probability
    log_probs = torch.log_softmax(4 * torch.randn(1, 151_936, generator=generator()), -1)
    total = log_probs.exp().cumsum(-1)[0].double()
    shares, exact = torch.diff(total, prepend=torch.zeros(1)), log_probs[0].double().exp()
    assert float((shares - exact).abs().sum() / 2) < 1e-3  # total variation
    large = exact > 1e-5
    assert float((shares / exact - 1)[large].abs().max()) < 0.02


@ENGINES
def test_the_generator_moves_on(student, engine):
    stream = generator()
    first, second = (
        sample(student, PROMPTS, 4, Sampling(1.3, 10), stream, engine=engine).texts
        for _ in range(2)
    )
    assert first != second


# --- stopping -------------------------------------------------------------------------------------


@ENGINES
@pytest.mark.parametrize("training", [False, True])
def test_stop_is_heard_between_two_tokens(policy, engine, training):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == 4

    policy.model.train(training)
    before, state = [module.training for module in policy.model.modules()], torch.get_rng_state()
    with pytest.raises(Stopped, match="between two tokens"):
        sample(policy, PROMPTS, 2, Sampling(max_new_tokens=50), generator(), stop, engine)
    assert len(asked) == 4
    assert [module.training for module in policy.model.modules()] == before
    assert torch.equal(torch.get_rng_state(), state)
    assert policy.trainable()


@ENGINES
def test_a_stop_set_beforehand_stops_at_once(policy, engine):
    flag = threading.Event()
    flag.set()
    with pytest.raises(Stopped):
        sample(policy, PROMPTS, 2, Sampling(max_new_tokens=50), generator(), flag.is_set, engine)


@ENGINES
@pytest.mark.parametrize("training", [False, True])
def test_training_mode_is_as_it_was(policy, engine, training):
    policy.model.train(training)
    sample(policy, PROMPTS, 2, Sampling(max_new_tokens=2), generator(), engine=engine)
    assert {module.training for module in policy.model.modules()} == {training}


# --- top-p and top-k ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.8}, {"top_k": 1}, {"top_p": 1e-6}]
)
def test_pitfall_08_cut_tokens_are_never_drawn_and_the_rest_is_renormalised(student, cut):
    settings = Sampling(1.5, 6, **cut)
    drawn = sample(student, PROMPTS, 30, settings, generator())
    sequences = drawn.sequences
    with torch.no_grad():
        states = hidden_states(student, sequences)
        log_probs = torch.log_softmax(student.head(states).float() / 1.5, -1)
    ids = sequences.completion_ids[sequences.completion_mask.bool()]
    reported = drawn.sampler_logps[sequences.completion_mask.bool()]
    for row, token, logp in zip(log_probs, ids.tolist(), reported.tolist(), strict=True):
        assert token in (kept := support(row, cut))
        assert logp == pytest.approx(float(row[token] - row[sorted(kept)].logsumexp(0)), abs=1e-3)
    # what the trainer computes is without the cut: the difference is the mass that was kept
    assert float((token_logps(student, states, ids, 1.5)[0] - reported).max()) <= 1e-4


def support(log_probs, cut):
    """The tokens that top-k, then top-p, leave, written out token by token."""
    order = log_probs.argsort(descending=True).tolist()[: cut.get("top_k") or None]
    probabilities = torch.softmax(log_probs[order], 0).tolist()
    kept, mass = [], 0.0
    for token, probability in zip(order, probabilities, strict=True):
        if kept and mass >= cut.get("top_p", 1.0):
            break
        kept.append(token)
        mass += probability
    return set(kept)


def test_a_generation_config_does_not_bend_the_hf_engine(student, monkeypatch):
    # many checkpoints come with settings for chat, repetition_penalty among them
    plain = sample(student, PROMPTS, 2, Sampling(0.01, 30), generator(), engine="hf").texts
    monkeypatch.setattr(student.causal_lm.generation_config, "repetition_penalty", 3.0)
    assert sample(student, PROMPTS, 2, Sampling(0.01, 30), generator(), engine="hf").texts == plain


# --- what is refused ------------------------------------------------------------------------------


def test_a_prompt_that_does_not_fit_is_an_error_in_words(policy):
    long = "1+" * 60 + "1?"
    with pytest.raises(
        ValueError, match=r"prompt of 122 tokens.* 16 .*context of 128 tokens.*'1\+1\+"
    ):
        sample(policy, ["1?", long], 1, Sampling(max_new_tokens=16), generator())
    # the last place in the context may be used
    assert (
        sample(
            policy, [long], 1, Sampling(max_new_tokens=6), generator()
        ).sequences.completion_ids.shape[1]
        <= 6
    )


@pytest.mark.parametrize(("prompts", "group_size"), [([], 2), (["1?"], 0)])
def test_nothing_to_sample_is_an_error(policy, prompts, group_size):
    with pytest.raises(ValueError, match="at least one prompt and a group of at least 1"):
        sample(policy, prompts, group_size, Sampling(), generator())


@ENGINES
@pytest.mark.parametrize("prompts", [[""], ["49-7?", ""]])
def test_a_prompt_without_tokens_is_an_error_in_words(policy, prompts, engine):
    with pytest.raises(ValueError, match=r"prompt.*(empty|no tokens)"):
        sample(policy, prompts, 2, Sampling(max_new_tokens=2), generator(), engine=engine)


def test_an_unknown_engine_is_an_error(policy):
    with pytest.raises(
        ValueError, match=r"unknown engine 'vlm': use fast, hf, continuous, vllm, or PATH.py:NAME"
    ):
        sample(policy, PROMPTS, 1, Sampling(), generator(), engine="vlm")


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"max_new_tokens": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_settings_out_of_range_are_an_error(bad):
    with pytest.raises(ValueError, match="temperature > 0"):
        Sampling(**bad)


# --- the dense copy -------------------------------------------------------------------------------


def logits(lm, model=None):
    ids = torch.tensor([[24, 29, 17, 27, 35, 24, 22]])
    with torch.no_grad(), lm.active():
        return (model or lm.causal_lm)(input_ids=ids).logits


@FAMILIES
@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_the_twin_computes_what_the_policy_computes(make_model, stir, family, quant):
    policy = stir(load_policy(make_model(family), quant, lora=Lora(4, 12)))
    dense = DenseCopy(policy)
    torch.testing.assert_close(logits(policy, dense.model), logits(policy), rtol=1e-5, atol=1e-5)
    stir(policy, seed=1)
    assert float((logits(policy, dense.model) - logits(policy)).abs().max()) > 0.1
    dense.sync()
    torch.testing.assert_close(logits(policy, dense.model), logits(policy), rtol=1e-5, atol=1e-5)
    assert not any(p.requires_grad for p in dense.model.parameters())
    assert not any(module.training for module in dense.model.modules())


@FAMILIES
@pytest.mark.parametrize("quant", ["nf4", "none"])
def test_a_twin_of_a_bare_teacher_computes_what_it_computes(make_model, family, quant):
    # teacher traces are drawn from it
    teacher = load_teacher(make_model(family), quant)
    torch.testing.assert_close(
        logits(teacher, DenseCopy(teacher).model), logits(teacher), rtol=1e-5, atol=1e-5
    )


def test_a_twin_of_a_view_merges_that_views_adapter(make_model, make_adapter, stir):
    policy = stir(load_policy(make_model(), "nf4"))
    bare = load_teacher(make_model(), "nf4", policy=policy)
    other = load_teacher(
        make_model(), "nf4", policy=policy, adapter=make_adapter(make_model(), seed=3)
    )
    for view in (bare, other, policy):
        torch.testing.assert_close(
            logits(view, DenseCopy(view).model), logits(view), rtol=1e-5, atol=1e-5
        )


def test_syncing_again_does_not_add_up(make_model, stir):
    policy = stir(load_policy(make_model(), "none"))
    base = [
        layer.weight.clone()
        for layer in policy.model.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    dense = DenseCopy(policy)
    dense.sync()
    dense.sync()
    torch.testing.assert_close(logits(policy, dense.model), logits(policy), rtol=1e-5, atol=1e-5)
    # the policy's own weights are shared where they are not merged, and none of them is written to
    assert all(
        torch.equal(a, layer.weight)
        for a, layer in zip(
            base, (m for m in policy.model.modules() if isinstance(m, torch.nn.Linear)), strict=True
        )
    )


def test_pitfall_04_a_small_update_is_not_rounded_away_in_the_merge(make_model, stir):
    policy = load_policy(make_model(initializer_range=0.02), "nf4", lora=Lora(1, 1))
    dense = DenseCopy(policy)
    linear, base = dense.pairs[0]
    before = linear.weight.clone()
    with torch.no_grad():
        linear.adapter[0].fill_(1.0)
        linear.adapter[1].copy_(torch.randn(base.shape[0], 1, generator=generator()) * 1e-5)
    dense.sync()
    assert linear.weight.dtype == torch.float32
    assert float((linear.weight != before).float().mean()) > 0.99
    # merged into bf16, most entries would stay as they were
    assert float((linear.weight.bfloat16() != before.bfloat16()).float().mean()) < 0.5


def test_pitfall_12_positions_count_from_the_first_token_of_a_padded_prompt(make_model):
    # Rotary positions are relative, so a shift would not show in the log-probabilities of these
    # models; learned positions would be wrong.
    policy = load_policy(make_model(), "none")
    seen = []
    policy.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    policy.causal_lm.generation_config.eos_token_id = None
    policy.tokenizer.eos_token = "~"
    drawn = sample(policy, PROMPTS, 1, Sampling(max_new_tokens=4), generator(3))
    drawing, mask = torch.cat(seen, 1), drawn.sequences.prompt_mask.bool()
    seen.clear()
    policy_logps(policy, drawn.sequences)
    assert [len(ids) for ids in (drawing, seen[0])] == [3, 3]
    for row in range(3):
        length, padding = int(mask[row].sum()), int((~mask[row]).sum())
        for positions in (drawing, seen[0]):
            found = positions[row, padding : mask.shape[1] + 3].tolist()
            assert found == list(range(length + 3))
