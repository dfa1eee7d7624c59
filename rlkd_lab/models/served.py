"""A teacher behind a server: log-probabilities of given tokens over an OpenAI-compatible API.

vLLM and SGLang return them for a prompt of token ids with ``echo`` and ``logprobs``. The package
``openai`` sends the requests, waits and tries again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlkd_lab.models.sequences import Sequences

KEY = "RLKD_TEACHER_KEY"
"""Variable with the key of the server. A key never stands in a run's files."""
SECONDS = 120.0
"""Time limit of one request."""
TRIES = 6
"""Of a request that gets no answer; the pauses between them grow to 8 seconds."""
TRIES_ODD = 3
"""Of a request whose answer cannot be used."""
AT_ONCE = 32
"""Completions in one request."""
ADDRESS = "Give the address of an OpenAI-compatible server; most end in /v1"
LEAST = -9000.0
"""Nats; vLLM writes −9999 for minus infinity, which no gap can be made of."""
ENDLESS = 2**31
"""Context where a server says none."""
PROBE = "49-7+4-2? So x = 4"


def is_served(name: str) -> bool:
    """Return whether a teacher's name is the address of a server."""
    return name.lower().startswith(("http://", "https://"))


def check_address(name: str) -> None:
    """Refuse an address that cannot be asked or that holds a secret.

    Raises:
        ValueError: in one sentence.
    """
    found = urlsplit(name)
    if not found.hostname:
        raise ValueError(f"teacher={name}: write http://HOST:PORT/v1, or with #MODEL after it")
    if found.password or found.username or found.query:
        raise ValueError(
            "the address of a teacher's server stands in the run's files, so it may hold no key:"
            f" set the variable {KEY}"
        )


@dataclass
class Server:
    """A model on a server.

    Args:
        address: ``http://HOST:PORT/v1``, with ``#MODEL`` where the server has several.
        tokenizer: of that model.
    """

    address: str
    tokenizer: PreTrainedTokenizerBase
    model: str = ""
    """Its name on the server."""
    context: int = ENDLESS
    """Its context in tokens, where the server says it."""
    _client: Any = field(default=None, repr=False)

    def connect(self) -> Server:
        """Find the model, and let it score a short text.

        Raises:
            ConnectionError: the server does not answer.
            ValueError: it has no such model, or does not return what is needed.
        """
        try:
            import openai
        except ImportError:
            raise ValueError(
                "a teacher on a server needs the package openai: pip install 'rlkd_lab[served]'"
            ) from None
        url, _, wanted = self.address.partition("#")
        key = os.environ.get(KEY, "none")
        self._client = openai.OpenAI(
            base_url=url, api_key=key, timeout=SECONDS, max_retries=TRIES - 1
        )
        try:
            listed = {one.id: one for one in self._ask(self._client.models.list)}
        except (AttributeError, TypeError):
            listed = {}
        if not listed:
            raise ValueError(f"{url} lists no models. {ADDRESS}")
        if wanted and wanted not in listed:
            raise ValueError(f"{url} has no model {wanted!r}; it has {', '.join(listed)}")
        if not wanted and len(listed) != 1:
            raise ValueError(
                f"{url} has {len(listed)} models: write {url}#NAME with one of {', '.join(listed)}"
            )
        self.model = wanted or next(iter(listed))
        most = getattr(listed[self.model], "max_model_len", None)
        self.context = most if isinstance(most, int) and most > 0 else self.context
        ids = self.tokenizer(PROBE, add_special_tokens=False)["input_ids"]
        self.scores([(list(ids[:1]), list(ids[1:]))], named=True)
        return self

    def logps(self, part: Sequences) -> Tensor:
        """Return the log-probabilities of the completions' tokens, (N,) in nats, at T = 1."""
        rows = []
        for row in range(len(part.completion_ids)):
            prompt = part.prompt_ids[row][part.prompt_mask[row].bool()].tolist()
            kept = part.completion_mask[row].bool()
            rows.append((prompt, part.completion_ids[row][kept].tolist()))
        found: list[float] = []
        for start in range(0, len(rows), AT_ONCE):
            found += chain.from_iterable(self.scores(rows[start : start + AT_ONCE]))
        return torch.tensor(found, device=part.completion_ids.device)

    def scores(
        self, rows: Sequence[tuple[list[int], list[int]]], named: bool = False
    ) -> list[list[float]]:
        """Return the log-probabilities of completions after prompts, as token ids.

        Where ``named``, the server says which text each token is. Ids that come back cannot show
        that its model has another tokenizer.

        Raises:
            ConnectionError: no answer after some tries.
            ValueError: no answer that can be used.
        """
        problem = ""
        for _ in range(TRIES_ODD):
            answer = self._ask(
                self._client.completions.create,
                model=self.model,
                prompt=[[*prompt, *completion] for prompt, completion in rows],
                max_tokens=1,  # some servers refuse 0
                temperature=1.0,
                echo=True,
                logprobs=1,
                extra_body={"return_tokens_as_token_ids": not named},  # of vLLM; others ignore it
            )
            try:
                return self._read(answer, rows)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                problem = str(error)
        raise ValueError(
            f"the answers of the teacher's server {self.address} cannot be used:"
            f" {problem}. It must return logprobs of the prompt with echo, as vLLM does"
        )

    def _ask(self, request: Any, **arguments: Any) -> Any:
        import openai

        try:
            return request(**arguments)
        except (openai.APIConnectionError, openai.InternalServerError) as error:
            raise ConnectionError(
                f"the teacher's server {self.address} gave no answer in {TRIES} tries"
                f" ({type(error).__name__}: {error}). Start it and the run again;"
                " `rlkd resume` goes on with one that had begun"
            ) from error
        except openai.AuthenticationError as error:
            raise ValueError(f"{self.address} refuses the key: set the variable {KEY}") from error
        except openai.NotFoundError as error:
            raise ValueError(f"{self.address} has no such page: {error}. {ADDRESS}") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.address} sent no JSON: {error}. {ADDRESS}") from error
        except openai.OpenAIError as error:
            raise ValueError(f"the teacher's server {self.address} refuses: {error}") from error

    def _read(self, answer: Any, rows: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Return the values of an answer, each checked.

        Raises:
            ValueError: something is missing, or is no log-probability.
        """
        choices = {choice.index: choice.logprobs for choice in answer.choices}
        if sorted(choices) != list(range(len(rows))):
            raise ValueError(f"{len(choices)} answers to {len(rows)} texts")
        found = []
        for number, (prompt, completion) in enumerate(rows):
            if choices[number] is None:
                raise ValueError("no log-probabilities")
            values = list(choices[number].token_logprobs or [])
            if not 0 <= len(values) - len(prompt) - len(completion) <= 1:
                sent = len(prompt) + len(completion)
                raise ValueError(f"{len(values)} log-probabilities of {sent} tokens")
            names = list(choices[number].tokens or [])
            if len(names) != len(values):
                raise ValueError(f"{len(values)} log-probabilities with {len(names)} tokens")
            self._compare(names, [*prompt, *completion])
            mine = values[len(prompt) : len(prompt) + len(completion)]
            for value in mine:
                if value is None or not LEAST < value <= 1e-3:  # a NaN is not
                    raise ValueError(f"{value} is not the log-probability of a token")
            found.append([float(value) for value in mine])
        return found

    def _compare(self, names: Sequence[str], ids: Sequence[int]) -> None:
        """Refuse an answer about other tokens than were sent."""
        for name, number in zip(names, ids, strict=False):
            if name == f"token_id:{number}":
                continue
            text = str(self.tokenizer.decode([number]))
            own = {text, text.strip(), self.tokenizer.convert_ids_to_tokens(number)}
            if (
                not {name, name.strip()} & own
                and "\ufffd" not in text
                and not name.startswith("bytes:")
            ):
                raise ValueError(f"an answer about the token {name!r} where {text!r} was sent")
