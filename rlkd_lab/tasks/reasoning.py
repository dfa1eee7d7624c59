"""Knights & Knaves from reasoning-gym, with reasoning-gym's own verifier. Difficulty is the number of people."""

from __future__ import annotations

import random
from typing import Any

from rlkd_lab.tasks.base import Example, Score, Split, check_split, seeded, split_of

_INSTRUCTION = "\nThink step by step, then give the answer between <answer> and </answer>.\n"


class KnightsKnavesTask:
    """Who is a knight and who is a knave: 2–4 people in training, 5–6 out of distribution.

    Parts: ``accuracy``, 1 where everybody is named rightly; ``format``, 1 where there is one ``<answer>…</answer>``.
    """

    name = "knights_knaves"
    train_difficulty = (2, 4)
    ood_difficulty: tuple[int, int] | None = (5, 6)

    def examples(self, n: int, seed: int, split: Split = "train", difficulty: tuple[int, int] | None = None) -> list[Example]:
        low, high = difficulty or self.train_difficulty
        if not 2 <= low <= high <= 10:
            raise ValueError(f"difficulty is a range of people within 2–10; got {low}–{high}")
        check_split(split)
        rng = seeded(self.name, seed, split, low, high)
        found: list[Example] = []
        while len(found) < n:
            people = rng.randint(low, high)
            # a dataset of one puzzle: every puzzle has a seed of its own
            row = _dataset(people, rng.randrange(2**31))[0]
            prompt = row["question"] + _INSTRUCTION
            if split_of(prompt) == split:
                found.append(Example(prompt, row["answer"], people, prompt, {"answer": row["answer"], "metadata": row["metadata"]}))
        return found

    def score(self, completion: str, example: Example) -> Score:
        # from the back, and without a pattern: a pattern that looks for pairs takes quadratic time on a thousand open tags
        before, opening, rest = completion.rpartition("<answer>")
        answer, closing, _ = rest.partition("</answer>")
        whole = bool(opening) and bool(closing)
        parts = {"accuracy": 0.0, "format": float(whole and "<answer>" not in before)}
        if whole:
            # reasoning-gym gives partial credit for some of the people; accuracy is for all of them
            parts["accuracy"] = float(_verifier().score_answer(answer.strip()[:2000], example.meta) == 1.0)
        return Score(parts, " ".join(answer.lower().split()) if whole else None)


def _dataset(people: int, seed: int) -> Any:
    state = random.getstate()
    import reasoning_gym  # a second to import, and the arithmetic task has no need of it; and its import draws from the global random stream

    random.setstate(state)
    return reasoning_gym.create_dataset("knights_knaves", seed=seed, size=1, n_people=people, depth_constraint=2, width_constraint=2)


_VERIFIER: list[Any] = []


def _verifier() -> Any:
    if not _VERIFIER:
        _VERIFIER.append(_dataset(2, 0))
    return _VERIFIER[0]
