"""Sweeps: arms × seeds, and before them trials that choose the settings of each arm.

A sweep is a TOML file:

    preset = "tiny"                 # as `rlkd train --preset`
    steps = 60
    seeds = 5                       # 0 … 4, or a list
    settings = {interference_every = 5}    # of every arm: what `rlkd train --set` takes

    [evaluate]             # each run's last checkpoint, on test prompts; left out: not evaluated
    prompts = 256
    samples = 8

    [tune]                          # left out: nothing is chosen
    seed = 1000                     # or a list: the mean over them decides
    grid = {learning_rate = [0.0005, 0.001]}    # instead of trials: of every arm
    finalists = 3                   # left out: every trial has all seeds

    [[arms]]
    name = "kdrl"
    method = "kdrl"
    settings = {teacher = "teacher-concise"}
    # the best on validation prompts is run with all seeds
    trials = [{kd_coef = 0.05}, {kd_coef = 0.2}]

    [[arms]]
    name = "trrd"
    method = "trrd"
    # an arm for every combination: trrd,trrd_alpha=0.3 …; no trials then
    grid = {trrd_alpha = [0.3, 0.5, 0.7]}

:mod:`rlkd_lab.study.workers` runs it, :mod:`rlkd_lab.study.results` reads what came out.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import tomllib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from rlkd_lab.training import RunConfig, make_config
from rlkd_lab.training.fingerprint import fingerprint
from rlkd_lab.training.make_config import as_text
from rlkd_lab.training.validated import in_words, validated

MOST = 10_000
"""Most seeds of a sweep, and most arms of a grid."""


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError("a setting is a text, a number, true or false")


def _whole(value: object) -> object:
    """Check with one error, where pydantic would give one for each branch of a union."""
    if (type(value) is int and value <= MOST) or (
        isinstance(value, list) and all(type(one) is int for one in value)
    ):
        return value
    raise ValueError(f"how many seeds, at most {MOST}, or a list of them")


Setting = Annotated[str | int | float | bool | None, PlainValidator(_plain)]
Grid = dict[str, Annotated[list[Setting], Field(min_length=1)]]
CHOSEN = "tuned.json"
"""File in a sweep's folder: what its trials led to."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Evaluation(_Strict):
    """How each run's student is evaluated, see :class:`rlkd_lab.study.Settings`."""

    prompts: Annotated[int, Field(ge=1)] = 256
    samples: Annotated[int, Field(ge=1)] = 8
    split: Literal["test", "validation"] = "test"
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    greedy: bool = False
    ood: bool = True
    best: bool = False
    """Whether the best checkpoint on validation prompts is evaluated too."""

    @property
    def asked(self) -> dict[str, Any]:
        """What one evaluation asks."""
        return self.model_dump(exclude={"best"})


class Tuning(_Strict):
    """How each arm's settings are chosen: by the final accuracy of its trials on validation.

    With several seeds every trial is run with each, and the mean decides. With ``finalists`` the
    first seed runs all trials, and the other seeds only those that were best with it.
    """

    seed: Annotated[int, Field(ge=0)] | list[Annotated[int, Field(ge=0)]] = 1000
    prompts: Annotated[int, Field(ge=1)] = 256
    samples: Annotated[int, Field(ge=1)] = 4
    grid: Grid = {}
    """Settings that every arm tries, with each combination of its own grid."""
    finalists: Annotated[int, Field(ge=1)] | None = None
    """How many trials of an arm all seeds run; ``None`` is all."""

    @property
    def seeds(self) -> list[int]:
        """The seeds as a list."""
        return self.seed if isinstance(self.seed, list) else [self.seed]


class Arm(_Strict):
    """One line of the comparison; a grid makes several."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9 ._-]*[A-Za-z0-9_-])?$")]
    method: str
    settings: dict[str, Setting] = {}
    grid: Grid = {}
    trials: list[dict[str, Setting]] = []


class Sweep(_Strict):
    """The content of a sweep file."""

    preset: str = "tiny"
    steps: Annotated[int, Field(ge=1)] = 60
    seeds: Annotated[int | list[int], PlainValidator(_whole)] = 5
    settings: dict[str, Setting] = {}
    evaluate: Evaluation | None = None
    tune: Tuning | None = None
    arms: Annotated[list[Arm], Field(min_length=1)]

    @property
    def all_seeds(self) -> list[int]:
        """The seeds as a list.

        Raises:
            ValueError: there is no seed, or one stands twice.
        """
        seeds = list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds={self.seeds}: a sweep needs seeds, each once")
        return seeds

    def trials_of(self, arm: Arm) -> list[dict[str, Setting]]:
        """Return what an arm tries: its list or its grid, each with each combination of [tune]'s.

        Raises:
            ValueError: the arm has a list and a grid, or a grid and [tune] has none.
        """
        assert self.tune is not None
        if arm.grid and (arm.trials or not self.tune.grid):
            raise ValueError(
                f"arm {arm.name} has a grid: what [tune] chooses from are trials, a list"
                " of settings, unless [tune] has a grid for every arm and this arm no trials"
            )
        shared, own = _product(self.tune.grid), arm.trials or _product(arm.grid)
        tried = [one | other for one in shared for other in own]
        return tried if tried != [{}] else []

    def tuning(self) -> Sweep:
        """Return the trials as a sweep.

        Raises:
            ValueError: the arms list unequal numbers of trials, see also :meth:`trials_of`, or the
                seed of the trials is among the seeds that count.
        """
        assert self.tune is not None
        if both := sorted(set(self.tune.seeds) & set(self.all_seeds)):
            raise ValueError(
                f"seed {both[0]} chooses the settings, so it cannot be among the seeds"
                " that count: give [tune] another one"
            )
        if self.tune.finalists and len(self.tune.seeds) < 2:
            raise ValueError("[tune] has finalists and one seed: give it two seeds or more")
        tried = {arm.name: len(self.trials_of(arm)) for arm in self.arms}
        first = self.arms[0].name
        for name, count in tried.items():
            if not count or (count != tried[first] and not self.tune.grid):
                raise ValueError(
                    f"arm {first} has {tried[first]} trials and arm {name}"
                    f" {count}: every arm gets the same number, at least 1"
                )
        quiet: dict[str, Setting] = {"eval_every": 0, "interference_every": 0, "samples_every": 0}
        return Sweep(
            preset=self.preset,
            steps=self.steps,
            seeds=self.tune.seeds,
            settings=self.settings | quiet,
            evaluate=Evaluation(
                prompts=self.tune.prompts, samples=self.tune.samples, split="validation", ood=False
            ),
            arms=[
                Arm(
                    name=f"{arm.name}.{number}",
                    method=arm.method,
                    settings=arm.settings | trial | quiet,
                )
                for arm in self.arms
                for number, trial in enumerate(self.trials_of(arm), 1)
            ],
        )

    def first_round(self) -> Sweep:
        """Return the trials that are run first: with one seed where there are finalists."""
        assert self.tune is not None
        seeds = self.tune.seeds[:1] if self.tune.finalists else self.tune.seeds
        return self.tuning().model_copy(update={"seeds": seeds})

    def finals(self, names: Container[str]) -> Sweep:
        """Return the trials with these names, with all seeds but the first."""
        assert self.tune is not None
        arms = [arm for arm in self.tuning().arms if arm.name in names]
        return self.tuning().model_copy(update={"seeds": self.tune.seeds[1:], "arms": arms})

    def tuned(self, best: dict[str, int]) -> Sweep:
        """Return the sweep that counts; ``best`` has each arm's best trial, counted from 1."""
        arms = [
            arm.model_copy(
                update={
                    "settings": arm.settings | self.trials_of(arm)[best[arm.name] - 1],
                    "trials": [],
                    "grid": {},
                }
            )
            for arm in self.arms
        ]
        return self.model_copy(update={"arms": arms, "tune": None})

    def jobs(self) -> list[Job]:
        """Return every run of the sweep, seed by seed.

        So a sweep that is stopped early has some seeds of every arm.

        Raises:
            ValueError: a knob, setting or method is unknown, a value is out of range, two arms
                have one name or the same settings, there is no seed or one twice, or trials have
                not been run.
        """
        if self.tune is not None:
            raise ValueError("the settings of this sweep are not chosen yet: run its trials first")
        seeds = self.all_seeds
        for arm in self.arms:
            if arm.trials:
                raise ValueError(
                    f"arm {arm.name} has trials, and the file no [tune] that would choose"
                    " among them"
                )
        arms: dict[str, RunConfig] = {}
        same, places = dict[str, str](), dict[str, str]()
        for arm in self.arms:
            if math.prod(len(values) for values in arm.grid.values()) > MOST:
                raise ValueError(f"arm {arm.name}: its grid has more than {MOST} combinations")
            for name, settings in _combinations(arm):
                if name in arms:
                    raise ValueError(
                        f"two arms are called {name}: their runs would lie in one folder"
                    )
                # some systems take a and A for one name
                beside = places.setdefault(_place(name).casefold(), name)
                if beside != name:
                    raise ValueError(
                        f"arms {beside} and {name} would lie in one folder, {_place(name)}:"
                        " give them names that differ in more"
                    )
                try:
                    every = (self.settings | settings).items()
                    texts = {key: as_text(key, value) for key, value in every}
                    arms[name] = make_config(arm.method, self.preset, texts, steps=self.steps)
                    if arms[name].patience:
                        raise ValueError("patience: a sweep compares runs of equal length")
                    if self.evaluate and self.evaluate.best and not arms[name].eval_every:
                        raise ValueError("best in [evaluate] needs eval_every above 0")
                except ValueError as error:
                    raise ValueError(f"arm {name}: {error}") from None
                other = same.setdefault(fingerprint(arms[name]), name)
                if other != name:
                    raise ValueError(
                        f"arms {other} and {name} have the same settings: they would be one"
                        " run, counted twice"
                    )
        try:
            return [
                Job(name, seed, validated({**config.model_dump(), "seed": seed}), self.evaluate)
                for seed in seeds
                for name, config in arms.items()
            ]
        except ValueError as error:
            raise ValueError(f"seeds: {error}") from None


@dataclass(frozen=True)
class Job:
    """One run with its evaluation."""

    arm: str
    seed: int
    config: RunConfig
    evaluate: Evaluation | None

    @property
    def questions(self) -> str:
        """A text that is the same for jobs that ask the same prompts."""
        names = {"task", "task_settings", "prompt_template", "difficulty"}
        return json.dumps(self.config.model_dump(include=names), default=str, sort_keys=True)

    def folder(self, out: Path) -> Path:
        """Return the run folder in the sweep's folder."""
        return out / "runs" / _place(self.arm) / f"seed_{self.seed}"


def _place(arm: str) -> str:
    """Return the name of an arm's folder."""
    return re.sub(r"[^\w .,=+-]", "_", arm)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        FileNotFoundError: there is no file.
        ValueError: the file is no TOML, or has a field that a sweep does not have.
    """
    try:
        return Sweep(**tomllib.loads(Path(path).read_text(encoding="utf-8-sig")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {in_words(error)}") from None


def _product(grid: Grid) -> list[dict[str, Setting]]:
    """Return every combination of a grid's values; of no grid one that sets nothing."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _combinations(arm: Arm) -> Iterator[tuple[str, dict[str, Setting]]]:
    for chosen in _product(arm.grid):
        yield (
            ",".join([arm.name, *(f"{key}={as_text(key, one)}" for key, one in chosen.items())]),
            arm.settings | chosen,
        )


def settled(sweep: Sweep, out: Path) -> Sweep | None:
    """Return the sweep with chosen settings; ``None`` before its trials are over.

    Raises:
        ValueError: the trials in ``out`` were others.
    """
    if sweep.tune is None:
        return sweep
    if not (out / CHOSEN).exists():
        return None
    try:
        chosen = json.loads((out / CHOSEN).read_text(encoding="utf-8"))
        best = {name: entry["best"] for name, entry in chosen["arms"].items()}
        tuning, finalists = chosen["tuning"], chosen.get("finalists")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f"{out / CHOSEN} is damaged: delete it, and the trials that are there are judged again"
        ) from None
    same = tuning == json.loads(sweep.tuning().model_dump_json())
    if not same or finalists != sweep.tune.finalists:
        raise ValueError(
            f"{out / CHOSEN} was chosen from other trials than this sweep's: choose another"
            " --out, or delete it"
        )
    return sweep.tuned(best)
