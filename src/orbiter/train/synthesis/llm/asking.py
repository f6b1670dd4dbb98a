"""Asks a language model for one candidate per question, and checks each answer.

Not here: the questions (`synthesisers.py`) and the judging of items (`judge.py`).
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import override

from orbiter.train.callback import map_bounded
from orbiter.train.chat.message import Message
from orbiter.train.errors import ConfigError
from orbiter.train.llm.chat import Answer, ChatModel, ask, name_of, sample_of
from orbiter.train.seeding import sub_random
from orbiter.train.synthesis.llm.novelty import nearest
from orbiter.train.synthesis.pipeline.result import Rejection
from orbiter.train.synthesis.records import derive
from orbiter.train.synthesis.synthesiser import DataSynthesiser, SynthesisContext
from orbiter.train.trajectory import TrajectoryItem

Made = TrajectoryItem | Rejection

_LABEL = re.compile(r"^(?:\W*\d+[.):]|(?:new )?(?:task|question|instruction)\s*\d*:)\s*", re.I)


class ChatSynthesiser(DataSynthesiser):
    """Makes one candidate of each source item by asking a model; a whole batch at once."""

    finite: ClassVar[bool] = False
    """Whether each source is used once, so that there is an end."""

    def __init__(self, model: ChatModel, *, system: str | None = None) -> None:
        """Ask `model`, with `system` as the system turn."""
        self.model = model
        self.system = system

    @property
    def settings(self) -> list[object]:
        """What, beside the model, decides what is made."""
        return [self.system]

    @property
    @override
    def fingerprint(self) -> str:
        """Name of the model and of all that is asked of it."""
        told = json.dumps([name_of(self.model), *self.settings])
        digest = hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
        return f"{type(self).__qualname__}:{digest}"

    @override
    async def generate(  # type: ignore[override]  # a pipeline counts a Rejection as a candidate
        self, count: int, *, context: SynthesisContext | None = None
    ) -> Sequence[Made]:
        """Return `count` candidates made from the context's items, else from its seeds."""
        context = context or SynthesisContext()
        sources = self._sources(count, context)

        async def one(place: int) -> Made:
            return await self.make(sources[place], place, context)

        made = await map_bounded(range(len(sources)), one, concurrency=max(1, count))
        return self.screened(made, [item.state for item in (*context.seeds, *context.accepted)])

    @abstractmethod
    async def make(self, source: TrajectoryItem, place: int, context: SynthesisContext) -> Made:
        """Make one candidate of one source."""

    def screened(self, made: Sequence[Made], pool: list[str]) -> Sequence[Made]:  # noqa: ARG002 - for those who compare
        """Look at the batch as a whole; `pool` has the states that are there."""
        return made

    def _sources(self, count: int, context: SynthesisContext) -> Sequence[TrajectoryItem]:
        if context.items:
            return list(context.items)[:count]
        if not context.seeds:
            raise ConfigError(
                f"{type(self).__name__} has nothing to start from: give the pipeline seed data, or "
                "put a step before it"
            )
        if self.finite:
            return list(context.seeds[context.offset : context.offset + count])
        pool = [*context.seeds, *context.accepted]
        rng = sub_random(context.seed, "source")
        return [rng.choice(pool) for _ in range(count)]

    async def ask(self, text: str, index: int, context: SynthesisContext) -> str:
        """Return the model's `index`-th answer to `text`; the context hears what it cost."""
        messages: list[Message] = [{"role": "user", "content": text}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        answer: Answer = await ask(sample_of(self.model, index), messages)
        context.spend(answer.cost)
        return answer.text.strip()


def task_in(answer: str) -> str:
    """Return the task in an answer: the first paragraph, without a label, a number or quotes."""
    first = answer.strip().split("\n\n")[0].strip()
    bare = _LABEL.sub("", first).strip()
    return bare[1:-1].strip() if len(bare) > 1 and bare[0] == bare[-1] == '"' else bare


def derived(source: TrajectoryItem, changes: dict[str, object], op: str, seed: int) -> Made:
    """Return the item with some fields changed, its lineage told and its reward open."""
    if not str(changes.get("state", source.state)).strip():
        return Rejection(source, "invalid", f"{op}: the model answered with nothing")
    made = derive(source, {**changes, "reward": None}, op=op, seed=seed)
    assert isinstance(made, TrajectoryItem), "an item's derivative is an item"
    return made


def if_novel(candidate: Made, pool: Sequence[str], novelty: float) -> Made:
    """Return the candidate, or turn it down where it is too like one of `pool`."""
    if isinstance(candidate, Rejection):
        return candidate
    match = nearest(candidate.state, pool)
    if match.similarity <= novelty:
        return candidate
    detail = f"{candidate.state!r:.60} is {match.similarity:.2f} like {match.text!r:.60}"
    return Rejection(candidate, "duplicate", detail)


def check_slot(instruction: str, slot: str) -> None:
    """Refuse an instruction with no place for what it is about."""
    if f"{{{slot}}}" not in instruction:
        raise ConfigError(f"the instruction must hold {{{slot}}}, got {instruction!r:.80}")


def sample_index(seed: int) -> int:
    """Return which sample a seed stands for: the same question with another seed is another one."""
    return seed & 0x7FFFFFFF
