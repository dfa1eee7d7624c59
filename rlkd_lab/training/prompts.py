"""Prompts: what is checked before a run writes anything."""

from __future__ import annotations

from rlkd_lab.rollouts import check_length
from rlkd_lab.tasks import Example, check_weights
from rlkd_lab.training.config import of_teacher
from rlkd_lab.training.setup import Setup


def check_prompts(setup: Setup) -> None:
    """Refuse a task without prompts, and prompts that leave no room for a completion.

    Raises:
        ValueError: in one sentence. OSError: what the task raised.
    """
    config, models = setup.config, setup.models
    needed = [(config.difficulty, config.max_new_tokens)]
    if config.eval_every and models.task.ood_difficulty is not None:
        needed.append((models.task.ood_difficulty, 2 * config.max_new_tokens))
    for difficulty, room in needed:
        examples = _examples(setup, difficulty)
        prompts = [example.prompt for example in examples]
        check_length(models.policy, prompts, room)
        if models.teacher is not None and difficulty == config.difficulty:
            try:
                check_length(models.teacher.own, prompts, config.max_new_tokens)
            except ValueError as error:
                raise ValueError(of_teacher(config, error)) from None
        check_weights(models.task, config.reward, examples[0])


def _examples(setup: Setup, difficulty: tuple[int, int] | None) -> list[Example]:
    task = setup.models.task
    try:
        examples = task.examples(16, setup.config.seed, "train", difficulty)
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(
            f"the task {task.name}: examples raised {type(error).__name__}: {error}"
        ) from error
    if not examples:
        raise ValueError(f"the task {setup.config.task} has no training prompts")
    return examples
