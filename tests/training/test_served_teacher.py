"""A teacher behind a server: a small real one on loopback, and its faults."""

import contextlib
import json
import math
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from rlkd_lab.models import load_teacher, policy_logps
from rlkd_lab.models import served as module
from rlkd_lab.models.served import Server
from rlkd_lab.rollouts.traces import sequences_of
from rlkd_lab.training import replay, resume, run
from tests.short import SHORT
from tests.tokenizers_of_text import byte_pairs, teacher_with

openai = pytest.importorskip("openai")
SECRET = "a-secret-key"


class Little:
    """An OpenAI-compatible server with one model; ``faults`` are used up, one a request."""

    def __init__(self, folder):
        self.lm, self.faults, self.asked = load_teacher(folder, "none"), deque(), []
        self.key = self.page = None
        little = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                if self.path != "/v1/models":
                    return self.answer({"detail": "Not Found"}, 404)
                if little.page is not None:
                    return self.answer(little.page)
                return self.answer({"object": "list", "data": [little.listed()]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                little.asked.append(body)
                if little.key and self.headers["Authorization"] != f"Bearer {little.key}":
                    return self.answer({"error": {"message": "who?"}}, 401)
                fault = little.faults.popleft() if little.faults else None
                if fault == "slow":
                    time.sleep(1.0)
                if fault == 500:
                    return self.answer({"error": {"message": "out of memory"}}, 500)
                found = {"object": "text_completion", "choices": little.scored(body, fault)}
                return self.answer(found, cut=fault == "cut")

            def answer(self, found, status=200, cut=False):
                text = found if isinstance(found, bytes) else json.dumps(found).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                with contextlib.suppress(OSError):  # nobody waits any more
                    self.wfile.write(text[: len(text) // 2] if cut else text)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}/v1"

    def listed(self):
        context = self.lm.causal_lm.config.max_position_embeddings
        return {"id": "little", "object": "model", "max_model_len": context}

    def scored(self, body, fault):
        choices = []
        for number, ids in enumerate(body["prompt"]):
            with torch.no_grad():
                logps = self.lm.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            values = [None, *(float(logps[i - 1, one]) for i, one in enumerate(ids) if i), -0.5]
            names = [f"token_id:{one}" for one in [*ids, 0]]
            if not body["return_tokens_as_token_ids"]:
                names = [self.lm.tokenizer.decode([one]) for one in [*ids, 0]]
            if fault == "short":
                values, names = values[-1:], names[-1:]  # as llama.cpp: of the new token alone
            if fault == "gap":
                values[-2] = None
            if fault == "nan":
                values[-2] = math.nan
            if fault == "least":
                values[-2] = -9999.0  # as vLLM writes minus infinity
            if fault == "no names":
                names = []
            if fault == "other tokens":
                names[1] = "token_id:77"
            said = {"tokens": names, "token_logprobs": values}
            text = {"index": number, "text": "", "finish_reason": "length", "logprobs": said}
            choices.append(text | ({"logprobs": None} if fault == "none" else {}))
        return choices[::-1] if fault != "fewer" else choices[1:]


@pytest.fixture(scope="module")
def little():
    return Little(SHORT["teacher"])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let pauses between tries be short."""
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)
    monkeypatch.delenv(module.KEY, raising=False)


def some(lm):
    ids = [lm.tokenizer(text)["input_ids"] + [1] for text in ("49-7=42;#42", "#11", "8=8;#8;;#")]
    return sequences_of(lm, ["49-7?", "5+1-2+3+4?", "8?"], ids)


def served(little):
    return Server(little.address, little.lm.tokenizer).connect()


def test_it_says_what_the_model_says_here(little):
    part = some(little.lm)
    wanted = policy_logps(little.lm, part)[0][part.completion_mask.bool()]
    server = served(little)
    torch.testing.assert_close(server.logps(part), wanted, atol=1e-5, rtol=1e-5)
    assert (server.model, server.context) == ("little", 512)
    assert len(little.asked[-1]["prompt"]) == 3  # in one request


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("fault", [500, "cut", "slow", "gap", "nan", "short", "none", "fewer"])
def test_a_fault_that_passes_costs_a_try(little, monkeypatch, fault):
    monkeypatch.setattr(module, "SECONDS", 0.5)
    part, server = some(little.lm), served(little)
    wanted = server.logps(part)
    little.asked.clear()
    little.faults.append(fault)
    assert torch.equal(server.logps(part), wanted)
    assert len(little.asked) == 2


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (500, ConnectionError, "no answer in 6 tries.*rlkd resume"),
        ("gap", ValueError, "None is not the log-probability"),
        ("nan", ValueError, "nan is not"),
        ("least", ValueError, "-9999.0 is not the log-probability"),
        ("no names", ValueError, "with 0 tokens"),
        ("short", ValueError, r"1 log-probabilities of \d+ tokens.*with echo, as vLLM"),
        ("none", ValueError, "no log-probabilities"),
        ("other tokens", ValueError, "an answer about the token 'token_id:77'"),
        ("fewer", ValueError, "2 answers to 3 texts"),
    ],
)
def test_a_fault_that_stays_is_told_in_words(little, fault, kind, words):
    server = served(little)
    little.faults.extend([fault] * 6)
    with pytest.raises(kind, match=words):
        server.logps(some(little.lm))
    little.faults.clear()


def test_a_wrong_key_is_told_and_not_shown(little, monkeypatch):
    server = served(little)
    little.key = SECRET
    with pytest.raises(
        ValueError, match="refuses the key: set the variable RLKD_TEACHER_KEY"
    ) as said:
        server.logps(some(little.lm))
    little.key = None
    assert SECRET not in str(said.value)


def test_nobody_there_and_no_such_model(little):
    with pytest.raises(ConnectionError, match="gave no answer"):
        Server("http://127.0.0.1:9/v1", little.lm.tokenizer).connect()
    with pytest.raises(ValueError, match="has no model 'big'; it has little"):
        Server(f"{little.address}#big", little.lm.tokenizer).connect()


def test_a_wrong_address_is_told_from_a_server_without_models(little, monkeypatch):
    with pytest.raises(ValueError, match=r"has no such page.*most end in /v1"):
        Server(little.address.removesuffix("/v1"), little.lm.tokenizer).connect()
    for page, words in ((b"<html>", "sent no JSON"), ({"data": []}, "lists no models")):
        monkeypatch.setattr(little, "page", page)
        with pytest.raises(ValueError, match=f"{words}.*most end in /v1"):
            served(little)


def test_another_tokenizer_shows_though_the_server_repeats_ids(little, tmp_path):
    stranger = Little(teacher_with(byte_pairs(), tmp_path / "stranger"))
    with pytest.raises(ValueError, match="an answer about the token"):
        Server(stranger.address, little.lm.tokenizer).connect()


def config_of(tiny, little, method="kdrl", **more):
    overrides = {"quant": "none", "samples_every": 1, "steps": 2, "checkpoint_every": 1, **more}
    return tiny(method, {}, **{"teacher": little.address, **overrides})


def test_a_run_with_it_is_the_run_with_the_model_here(tiny, tmp_path, little, monkeypatch):
    monkeypatch.setenv(module.KEY, SECRET)
    little.key = SECRET
    far = run(config_of(tiny, little), tmp_path / "far")
    little.key = None
    here = config_of(tiny, little, teacher=SHORT["teacher"], teacher_quant="none")
    near = run(here, tmp_path / "near")
    for name in ("loss/policy", "kl_teacher_k1", "kl_teacher_k2", "grad_norm", "reward"):
        both = [[row[name] for row in folder.rows()] for folder in (far, near)]
        assert both[0] == pytest.approx(both[1], abs=1e-3)
    assert "kl_teacher_rev" not in far.rows()[0]
    for file in (tmp_path / "far").rglob("*"):
        assert file.is_dir() or SECRET.encode() not in file.read_bytes()


def test_it_goes_away_comes_back_and_the_run_goes_on(tiny, tmp_path, little):
    config = config_of(tiny, little, "opd")
    whole = run(config, tmp_path / "whole")

    def cut(session, row):
        little.faults.extend([500] * 6)

    with pytest.raises(ConnectionError, match="rlkd resume"):
        run(config, tmp_path / "cut", on_step=cut)
    little.faults.clear()
    kept = ("loss/policy", "kl_teacher_k1", "grad_norm")
    rows = [
        [[row[name] for name in kept] for row in folder.rows()]
        for folder in (whole, resume(tmp_path / "cut"))
    ]
    assert rows[0] == rows[1]
    assert replay(tmp_path / "cut", tmp_path / "again").difference is None


def test_it_may_have_another_tokenizer(tiny, tmp_path, little):
    folder = teacher_with(byte_pairs(), tmp_path / "stranger")
    far = config_of(tiny, Little(folder), "opd", steps=1, teacher_tokenizer=folder)
    near = config_of(tiny, little, "opd", steps=1, teacher=folder, teacher_quant="none")
    rows = [run(one, tmp_path / f"{at}").rows()[0] for at, one in enumerate((far, near))]
    for name in ("kl_teacher_k1", "teacher/span_tokens", "grad_norm"):
        assert rows[0][name] == pytest.approx(rows[1][name], abs=1e-3)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("kd_forward", {}, "a server gives log-probabilities"),
        ("eopd", {}, "a server gives log-probabilities"),
        ("sft", {}, "needs texts of the teacher"),
        ("opd", {"knobs": {"temperature": 0.7}}, "at temperature 1"),
        ("opd", {"teacher": "http://me:pass@host/v1"}, "set the variable RLKD_TEACHER_KEY"),
        ("opd", {"teacher": "http://host/v1?key=1"}, "set the variable RLKD_TEACHER_KEY"),
        ("opd", {"teacher": "http:///v1"}, "write http://HOST:PORT/v1"),
        ("opd", {"teacher": "htp://host/v1"}, "write http://HOST:PORT/v1"),
        ("opd", {"teacher": "127.0.0.1:8000/v1"}, "write http://HOST:PORT/v1"),
        ("opd", {"teacher": "HTTP://me:x@host/v1"}, "set the variable RLKD_TEACHER_KEY"),
        ("opd", {"teacher": "student", "teacher_tokenizer": "student"}, "teacher on a server"),
        ("opd", {"teacher_home": "host"}, "whose weights are here"),
    ],
)
def test_what_a_server_cannot_give_is_refused_with_the_config(tiny, method, settings, words):
    with pytest.raises(ValueError, match=words):
        tiny(method, {}, **{"teacher": "http://localhost:8000/v1", **settings})
