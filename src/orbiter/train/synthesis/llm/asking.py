"""Asks a language model for data: one question per candidate, and the checks of its answer.

The questions are in `synthesisers.py`; scoring an item is in `judge.py`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, cast

from typing_extensions import override

from orbiter.train.callback import map_bounded
from orbiter.train.chat.message import REASONING, Message
from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.llm.chat import Answer, ChatModel, ask, sample_of
from orbiter.train.llm.failure import BudgetError
from orbiter.train.seeding import sub_random
from orbiter.train.synthesis.llm.novelty import nearest
from orbiter.train.synthesis.pipeline.result import Rejection
from orbiter.train.synthesis.records import derive
from orbiter.train.synthesis.synthesiser import DataSynthesiser, SynthesisContext
from orbiter.train.trajectory import TrajectoryItem

Made = TrajectoryItem | Rejection

TASK_REASONING = "task_reasoning"
"""The metadata entry for the model's reasoning about a task; that about an answer is REASONING."""

_MARKED = re.compile(r"<task>(.*?)</task>", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(r"(?:^|[:.!?])\s*<task>", re.IGNORECASE | re.MULTILINE)
_FENCED = re.compile(r"```\w*\n(.*?)\n?```", re.DOTALL)
_NOUN = r"(?:tasks?|questions?|instructions?|prompts?|requests?|problems?|exercises?)"
_COURTESY = r"(?:sure(?: thing)?|certainly|of course|absolutely|ok(?:ay)?|alright|great|yes)"
_ONE = rf"(?:{_NOUN}|one|version|variation|alternative|you go)"
_BEGINS = (
    r"(?:here(?:['\u2019]s| is| are)?|below (?:is|are)|this is|i(?:['\u2019]ve| have) written)\b"
)
_LEAD_IN = re.compile(
    rf"(?:{_COURTESY}[,.!;]?\s*)?(?:{_BEGINS}[^\n:]*\b{_ONE}\b[^\n:]*)?:[ \t*_]*\n+", re.IGNORECASE
)
"""A first line that announces the task: "Here is a new task:"."""
_COURTESY_LINE = re.compile(rf"{_COURTESY}(?:[.!]?|\b[^\n:]{{0,40}}[.!])[ \t]*\n+", re.IGNORECASE)
_LABEL = re.compile(
    rf"[\s#*_>-]*(?:(?:the|my|your)\s+)?(?:(?:new|next|rewritten|evolved)\s+)?{_NOUN}\s*\d*"
    r"(?:[*_]*\s*:[*_]*\s*|[*_]*[ \t]*\n+(?:[=-]{3,}[ \t]*\n+)?)",
    re.IGNORECASE,
)
"""A label before the task ("Task 2: ") or a heading above it."""
_NUMBER = re.compile(r"\W{0,3}\d{1,3}[.):]\s+")
_NUMBERED_LINE = re.compile(r"^\W{0,3}\d{1,3}[.):]\s", re.MULTILINE)
_QUOTES = (('"', '"'), ("“", "”"), ("«", "»"), ("„", "“"), ("「", "」"))


class ChatSynthesiser(DataSynthesiser):
    """Makes one candidate from each source item by asking a model, a whole batch at once."""

    finite: ClassVar[bool] = False
    """Whether each source is used only once, so that the source ends."""

    def __init__(self, model: ChatModel, *, system: str | None = None) -> None:
        """Ask `model`, with `system` as the system message."""
        self.model = model
        self.system = system

    @override
    async def generate(  # type: ignore[override]  # a pipeline counts a Rejection as a candidate
        self, count: int, *, context: SynthesisContext | None = None
    ) -> Sequence[Made]:
        """Return `count` candidates made from the context's items, or else from its seeds.

        In a pipeline an item that cannot be made is a `Rejection`, and the others are kept.

        Raises:
            CallbackError: the model raised, and there is no pipeline to report it to.
        """
        context = context or SynthesisContext()
        sources = self._sources(count, context)

        async def make_one(position: int) -> Made:
            try:
                return await self.make(sources[position], position, context)
            except (CallbackError, DataError, BudgetError) as error:
                if context.report_failure is None:
                    raise
                context.report_failure(error)
                is_budget = isinstance(error, BudgetError)
                return Rejection(sources[position], "budget" if is_budget else "failed", str(error))

        # All at once: the client limits how many requests are in progress.
        made = await map_bounded(range(len(sources)), make_one, concurrency=max(1, count))
        return self.screened(made, [item.state for item in (*context.seeds, *context.accepted)])

    @abstractmethod
    async def make(self, source: TrajectoryItem, position: int, context: SynthesisContext) -> Made:
        """Make one candidate from one source."""

    def screened(self, made: Sequence[Made], pool: list[str]) -> Sequence[Made]:  # noqa: ARG002 - for subclasses that compare
        """Check the batch as a whole; `pool` has the states that exist already."""
        return made

    def _sources(self, count: int, context: SynthesisContext) -> Sequence[TrajectoryItem]:
        if context.items:
            return list(context.items)[:count]
        if not context.seeds:
            raise ConfigError(
                f"{type(self).__name__} has no source items: give the pipeline seed data, or put "
                f"a step before it"
            )
        # By the offset, so that each source is used once over all batches.
        if self.finite:
            return list(context.seeds[context.offset : context.offset + count])
        # Both in a fixed order, on which the draw depends.
        pool = [*context.seeds, *context.accepted]
        rng = sub_random(context.seed, "source")
        return [rng.choice(pool) for _ in range(count)]

    async def ask(self, text: str, index: int, context: SynthesisContext) -> Answer:
        """Return the model's `index`-th answer to `text`, and report its cost."""
        messages: list[Message] = [{"role": "user", "content": text}]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        answer = await ask(sample_of(self.model, index), messages)
        context.spend(answer.cost)
        return replace(answer, text=answer.text.strip())


def new_task(source: TrajectoryItem, answer: Answer, op: str, seed: int, **changes: object) -> Made:
    """Return the task in an answer as an item derived from `source`."""
    text = task_in(answer.text)
    # A task without its end would be trained on as if it were whole.
    if text is None or is_cut_off(answer):
        return Rejection(source, "invalid", f"{op}: the answer was cut off: {answer.text!r:.60}")
    if not text:
        return Rejection(source, "invalid", f"{op}: the model's answer is empty")
    return derived(source, {"state": text, **changes}, op, seed, {TASK_REASONING: answer.reasoning})


def is_cut_off(answer: Answer) -> bool:
    """Return whether the model stopped only because it ran out of tokens."""
    return answer.finish_reason in ("length", "max_tokens")


def task_in(answer: str) -> str | None:
    """Return the whole task in an answer, or None if the answer was cut off inside its marks.

    The task is what the last <task> and </task> enclose. Without these marks it is the whole
    answer, except a line that announces it, a label, a number, and quotes or a fence around it.
    """
    marked = [text for text in _MARKED.findall(answer) if text.strip()]
    if marked:
        # The last one: a model that thinks aloud may quote the marks before.
        return str(marked[-1]).strip()
    if _OPENED.search(answer):
        return None
    text = answer.strip()
    for lead_in in (_COURTESY_LINE, _LEAD_IN, _LABEL):
        # A line that announces a task but has nothing after it is the task itself.
        if (match := lead_in.match(text)) and text[match.end() :].strip():
            text = text[match.end() :].strip()
    if len(_NUMBERED_LINE.findall(text)) == 1:  # with several, the list is the task
        text = _NUMBER.sub("", text, count=1) if _NUMBER.match(text) else text
    fenced = _FENCED.fullmatch(text)
    return _unquoted((fenced[1] if fenced else text).strip())


def _unquoted(text: str) -> str:
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if len(text) > 1 and text[0] == opening and text[-1] == closing:
            # '"A" or "B"?' begins and ends with quotes that are not around the whole.
            return inner.strip() if opening not in inner and closing not in inner else text
    return text


def derived(
    source: TrajectoryItem,
    changes: Mapping[str, object],
    op: str,
    seed: int,
    notes: Mapping[str, str],
) -> TrajectoryItem:
    """Return the item with some fields changed, its lineage recorded and its reward removed.

    `notes` are further entries of its metadata; empty ones are left out.
    """
    made = cast("TrajectoryItem", derive(source, {**changes, "reward": None}, op=op, seed=seed))
    kept = {name: text for name, text in notes.items() if text}
    return replace(made, metadata={**made.metadata, **kept}) if kept else made


def new_answer(source: TrajectoryItem, answer: Answer, op: str, seed: int) -> TrajectoryItem:
    """Return the task with an answer; the model's reasoning goes to the metadata."""
    return derived(source, {"action": answer.text}, op, seed, {REASONING: answer.reasoning})


def if_novel(candidate: Made, pool: Sequence[str], novelty: float) -> Made:
    """Return the candidate, or reject it if it is too similar to a text of `pool`."""
    if isinstance(candidate, Rejection):
        return candidate
    match = nearest(candidate.state, pool)
    if match.similarity <= novelty:
        return candidate
    detail = f"{candidate.state!r:.60} is {match.similarity:.2f} similar to {match.text!r:.60}"
    return Rejection(candidate, "duplicate", detail)


def check_slot(instruction: str, slot: str) -> None:
    """Refuse an instruction without the field that its subject is inserted into."""
    if f"{{{slot}}}" not in instruction:
        raise ConfigError(f"the instruction must hold {{{slot}}}, got {instruction!r:.80}")


def sample_index(seed: int) -> int:
    """Return the sample index for a seed: the same question with another seed is another sample."""
    return seed & 0x7FFFFFFF
