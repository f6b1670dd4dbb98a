"""Check that a model can teach another one: it has the same tokens, and reads as far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from orbiter.train.engine.config import EngineConfig
from orbiter.train.engine.models.outline import Outline, make_outline
from orbiter.train.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TeacherNames(NamedTuple):
    """The names of two models, for error messages."""

    teacher: str
    student: str


@contextmanager
def naming_teacher(teacher: str) -> Iterator[None]:
    """Name the setting in errors of loading, since a run has two models."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"teacher={teacher!r}: {error}") from error


def make_teacher_outline(config: EngineConfig, teacher: str) -> Outline | None:
    """Return a teacher's outline, or None if it is not on this machine.

    Raises:
        ConfigError: the engine cannot run a model of its architecture.
        StorageError: there is no such model.
    """
    named = replace(config, model=teacher, lora_rank=0, lora_alpha=None)
    with naming_teacher(teacher):
        return make_outline(named, reference=False, value_head=False)


def require_same_tokenizer(
    names: TeacherNames, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase
) -> None:
    """Make sure that every token of the student means the same to the teacher.

    The teacher may have further tokens. Vocabularies that are only padded differently are equal.

    Raises:
        ConfigError: names a token that differs.
    """
    ours: dict[str, int] = student.get_vocab()
    theirs: dict[str, int] = teacher.get_vocab()
    odd = sorted(token for token, number in ours.items() if theirs.get(token) != number)
    if odd:
        token = odd[0]
        other = "does not have it" if token not in theirs else f"has it as {theirs[token]}"
        raise ConfigError(
            f"teacher={names.teacher!r} has another tokenizer than model={names.student!r}: "
            f"{len(odd)} of {len(ours)} tokens differ, such as {token!r}, which is token "
            f"{ours[token]} here; the teacher {other}. Distillation compares the two token by "
            "token, so choose a teacher of the same family, or learn from its texts with sft"
        )


def require_context(names: TeacherNames, longest: int, teacher: int) -> None:
    """Make sure that a teacher's context holds a prompt with its answer, in tokens.

    Raises:
        ConfigError: it is shorter.
    """
    if teacher < longest:
        raise ConfigError(
            f"teacher={names.teacher!r} has a context of {teacher} tokens, and a prompt with its "
            f"answer may have {longest}; lower max_prompt_length or max_response_length, which "
            "together must not be more"
        )
