"""Find the tokens that end an assistant's turn, and the answers that end with them.

Many templates end a turn with another token than the tokenizer's end of text: `<|im_end|>`,
`<end_of_turn>`, `<|eot_id|>`, and some end tool calls with a third one. A model that was trained on
such answers stops with these tokens, so sampling has to stop there too.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from orbiter.train.engine.encoding import encode_after, marks_of, special_ids
from orbiter.train.engine.prompt import answer_text
from orbiter.train.errors import DataError
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PROBE = "orbiter-probe"
"""An answer whose end is easy to find in the template's text."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {}},
    },
}
_CALL = {"id": "call", "type": "function", "function": {"name": "probe", "arguments": "{}"}}
CUT_OFF = frozenset(
    {"length", "max_tokens", "max_output_tokens", "incomplete", "model_context_window_exceeded"}
)
"""Reasons, as the APIs name them, for which an answer ended before the model ended it."""


class TurnEnds(NamedTuple):
    """The tokens that end a turn, as the chat template writes them; None where it writes none."""

    text: int | None
    """After an answer in words."""
    calls: int | None
    """After tool calls."""
    blank: str
    """White space after an answer in words, if the template writes nothing else there."""


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> TurnEnds:
    """Return the tokens that end an assistant's turn."""
    return _turn_ends(tokenizer, str(tokenizer.chat_template))


def stop_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer: those of the template, and the end of text."""
    ends = turn_ends(tokenizer)
    known = (ends.text, ends.calls, tokenizer.eos_token_id)
    return frozenset(token_id for token_id in known if token_id is not None)


def configured_stops(model: PreTrainedModel | PeftModel) -> frozenset[int]:
    """Return the tokens that end an answer by the model's own generation configuration."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token_id for token_id in listed if token_id is not None)


def render_action(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> list[int]:
    """Return the answer of an item as token ids, with the token that ends the turn.

    It begins where `prompt.render` ends. An answer that was cut off when it was captured has no
    token that ends the turn, since the model did not end it there.
    """
    prompt, answer = answer_text(tokenizer, item)
    ended = _ended(tokenizer, answer, turn_ends(tokenizer))
    # Appending an end would teach the model to stop in the middle of a sentence.
    if was_cut_off(item):
        return encode_after(tokenizer, prompt, answer[: ended.content])
    token_ids = encode_after(tokenizer, prompt, ended.text)
    return token_ids if ended.append is None else [*token_ids, ended.append]


def render_action_text(tokenizer: PreTrainedTokenizerBase, item: TrajectoryItem) -> str:
    """Return the answer of an item as text, with the template's end-of-turn marker."""
    answer = answer_text(tokenizer, item).answer
    ended = _ended(tokenizer, answer, turn_ends(tokenizer))
    return answer[: ended.content] if was_cut_off(item) else ended.text


def was_cut_off(item: TrajectoryItem) -> bool:
    """Return whether an item's answer was captured incomplete: too long, or interrupted."""
    reason = item.metadata.get("finish_reason")
    if isinstance(reason, list | tuple):
        reason = reason[0] if reason else None
    return str(reason).lower() in CUT_OFF or bool(item.metadata.get("error"))


class _Ended(NamedTuple):
    """An answer up to where its turn ends."""

    text: str
    """With the mark that ends the turn, if the template writes one."""
    content: int
    """Characters of the text before that mark."""
    append: int | None
    """The token to put after the text if the template writes no mark."""


def _ended(tokenizer: PreTrainedTokenizerBase, answer: str, ends: TurnEnds) -> _Ended:
    """Cut an answer after the first token that ends its turn.

    What templates write after that token (a line break, the end of the whole text) is never
    sampled. If the template writes no such token, the tokenizer's end of text is appended.
    """
    closing = _closing_marks(answer, _special_marks(tokenizer, ends))
    if closing:
        # Marks of the calls themselves may come first, and do not end the turn.
        of_text = [mark for mark in closing if mark.token_id == ends.text]
        mark = of_text[0] if of_text else closing[-1]
        return _Ended(answer[: mark.end], mark.start, None)
    if ends.blank:
        answer = answer.removesuffix(ends.blank)
    elif tokenizer.chat_template is not None:
        answer = answer.rstrip("\n")
    end = ends.text if ends.text is not None else tokenizer.eos_token_id
    return _Ended(answer, len(answer), end)


class _Mark(NamedTuple):
    start: int
    end: int
    token_id: int


def _closing_marks(answer: str, marks: Mapping[str, int]) -> list[_Mark]:
    """Return the marks at the end of an answer, in order; white space may be between them."""
    texts = tuple(mark for mark in marks if mark.strip())
    closing: list[_Mark] = []
    # White space between marks is formatting of the template, not part of the answer.
    rest = answer.rstrip()
    while rest.endswith(texts):
        # The longest mark, as one mark may be the end of another.
        last = max((text for text in texts if rest.endswith(text)), key=len)
        closing.append(_Mark(len(rest) - len(last), len(rest), marks[last]))
        rest = rest[: -len(last)].rstrip()
    return closing[::-1]


@functools.lru_cache(maxsize=16)
def _special_marks(tokenizer: PreTrainedTokenizerBase, ends: TurnEnds) -> dict[str, int]:
    """Return the texts of special tokens and of the ends of turns, with their ids."""
    wanted = special_ids(tokenizer) | {ends.text, ends.calls}
    return {text: token_id for text, token_id in marks_of(tokenizer).items() if token_id in wanted}


@functools.lru_cache(maxsize=16)
def _turn_ends(tokenizer: PreTrainedTokenizerBase, template: str) -> TurnEnds:
    del template  # part of the cache's key only: a tokenizer may get another template
    if tokenizer.chat_template is None:
        return TurnEnds(None, None, "")
    try:
        written = answer_text(tokenizer, TrajectoryItem("?", _PROBE)).answer
    except DataError:  # a template for something else than a question and its answer
        written = ""
    # The last occurrence, in case the template also repeats the answer elsewhere.
    closing = written.rpartition(_PROBE)[2]
    text = _first_mark(tokenizer, closing) if _PROBE in written else None
    blank = closing if closing.isspace() and _PROBE in written else ""
    return TurnEnds(text, _end_of_calls(tokenizer, text), blank)


def _first_mark(tokenizer: PreTrainedTokenizerBase, closing: str) -> int | None:
    """Return the token with which a text begins, white space aside, if it is matched as a whole."""
    begun = closing.lstrip()
    matching = [mark for mark in marks_of(tokenizer) if mark.strip() and begun.startswith(mark)]
    return marks_of(tokenizer)[max(matching, key=len)] if matching else None


def _end_of_calls(tokenizer: PreTrainedTokenizerBase, of_text: int | None) -> int | None:
    """Return the token that ends a turn with calls, where it is another one than after words.

    A token that occurs between two calls ends the first call, not the turn.
    """
    two = TrajectoryItem("?", "", tools=[_TOOL], tool_calls=[_CALL, _CALL])
    try:
        if "tool_calls" not in tokenizer.get_chat_template(tools=[_TOOL]):
            return None
        answer = answer_text(tokenizer, two).answer
    except Exception:  # a template may fail on a probe in a way that only it knows
        return None
    closing = _closing_marks(answer, marks_of(tokenizer))
    if not closing or any(mark.token_id == of_text for mark in closing):
        return None
    last = closing[-1]
    # A mark that occurs once closes the turn; one per call would occur twice.
    return last.token_id if answer.count(answer[last.start : last.end]) == 1 else None
