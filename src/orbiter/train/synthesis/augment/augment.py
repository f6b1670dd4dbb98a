"""Make more data from given data: the same input with typing errors, or input and output swapped.

Both functions change nothing that they are given and return the same kind of data; a derived row
names the row it came from in its metadata. Not here: paraphrases, which need a language model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from orbiter.train.chat import transcript
from orbiter.train.errors import ConfigError
from orbiter.train.synthesis.augment.noise import ALL_OPS, Noise, NoiseOp
from orbiter.train.synthesis.augment.protect import free_spans, names_in_calls
from orbiter.train.synthesis.comparison import turns_in
from orbiter.train.synthesis.records import D, Records, Row, action_of, derive, state_of
from orbiter.train.synthesis.report import CurationReport, Dropped
from orbiter.train.trajectory import TrajectoryItem


def augment_add_noise(
    data: D,
    noise_level: float = 0.1,
    *,
    seed: int = 0,
    copies: int = 1,
    ops: Sequence[NoiseOp] = ALL_OPS,
    protect: Sequence[str] = (),
) -> D:
    """Return the rows with typing noise in their state; action and reward are unchanged.

    `noise_level` is the expected character error rate: the Levenshtein distance to the original,
    divided by the number of characters that noise may touch. Code, JSON, calls, tags, URLs, paths,
    placeholders, numbers, identifiers (`ORD-12345`, `gpt-4o`, `main.py`) and the values that the
    action uses are left as they are, and so is one character on each side of them. Inserted letters
    are of the script around them; marks stay on their letters and emoji sequences whole.

    In a chat only the user's turns get noise; `messages` are kept and agree with the state. A text
    gets the same noise whatever else is in the data. A row with nothing to change is returned
    unchanged.

    Args:
        data: A `TrajectoryDataset`, a list of items, or a list of mappings.
        noise_level: In [0, 1]; 0 changes nothing, and above 0.7 the effect no longer grows.
        seed: Another seed gives other errors.
        copies: Number of noisy versions of each row; they follow each other in the result.
        ops: The kinds of errors, equally likely; name one twice to make it twice as likely.
        protect: Regular expressions for further text that must not be touched.

    Raises:
        ConfigError: a setting is invalid.
        DataError: a row is invalid.
    """
    noise = Noise.of(noise_level, ops)
    if copies < 1:
        raise ConfigError(f"copies must be at least 1, got {copies}")
    patterns = _compiled(protect)
    records = Records.of(data)
    # A separator that text does not hold, or seed 1 and copy 11 would equal seed 11 and copy 1.
    keys = [f"{seed}\x1f{copy}\x1f" for copy in range(copies)]
    noisy: list[Row] = []
    for row, state in zip(records.rows, records.states(), strict=True):
        # Values that the action uses must stay readable, or the action would no longer be right.
        names = names_in_calls(action_of(row), _calls_of(row))
        for key in keys:
            spoil = partial(_spoiled, noise=noise, patterns=patterns, names=names, key=key)
            changes = _noisy_chat(row, state, spoil)
            same = changes["state"] == state
            noisy.append(
                row if same else derive(row, changes, op="add_noise", seed=seed, same_step=True)
            )
    return records.rebuild(noisy)


def _spoiled(
    text: str, *, noise: Noise, patterns: Sequence[re.Pattern[str]], names: Sequence[str], key: str
) -> str:
    return noise.apply(text, free_spans(text, patterns, names), key)


def _noisy_chat(row: Row, state: str, spoil: Callable[[str], str]) -> dict[str, object]:
    """Return the state with noise in the user's words, and the messages that agree with it."""
    messages = row.messages if isinstance(row, TrajectoryItem) else row.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return {"state": _noisy_state(state, spoil)}
    noisy = [_noisy_message(message, spoil) for message in messages]
    changed = [message for message, _ in noisy]
    if all(isinstance(message, Mapping) for message in messages):
        # The words of a user may also occur in another turn, so they are not searched for.
        if state == transcript.state_of(messages):
            return {"state": transcript.state_of(changed), "messages": changed}
        if state == transcript.write_transcript(messages):
            return {"state": transcript.write_transcript(changed), "messages": changed}
    pieces: list[str] = []
    at = 0
    # The state is the messages as text, so each change is repeated in it, from left to right.
    for old, new in (texts for _, replaced in noisy for texts in replaced):
        position = state.find(old, at)
        if position < 0:  # the state does not contain this message verbatim
            continue
        pieces += [state[at:position], new]
        at = position + len(old)
    return {"state": "".join([*pieces, state[at:]]), "messages": changed}


def _noisy_message(
    message: Any,  # noqa: ANN401 - from the user's file
    spoil: Callable[[str], str],
) -> tuple[Any, list[tuple[str, str]]]:
    """Return a message with noise if the user wrote it, and its texts before and after.

    The texts of other roles are returned too, unchanged, so that a search in the state passes them.
    """
    if not isinstance(message, Mapping):
        return message, []
    content = message.get("content")
    if message.get("role") != "user":
        return message, [(content, content)] if isinstance(content, str) and content else []
    if isinstance(content, str):
        noisy = spoil(content)
        return {**message, "content": noisy}, [(content, noisy)]
    if not isinstance(content, list):
        return message, []
    replaced: list[tuple[str, str]] = []
    parts: list[object] = []
    for part in content:
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            old = str(part["text"])
            replaced.append((old, spoil(old)))
            parts.append({**part, "text": replaced[-1][1]})
        else:
            parts.append(part)
    return {**message, "content": parts}, replaced


def _noisy_state(state: str, spoil: Callable[[str], str]) -> str:
    """Return a state without messages: noise everywhere, or in the user turns of a transcript."""
    turns = turns_in(state)
    # Without roles, the whole state is what the user wrote.
    if len(turns) == 1 and not turns[0].role:
        return spoil(state)
    pieces: list[str] = []
    at = 0
    for turn in turns:
        if turn.role == "user" and turn.text:
            position = state.index(turn.text, at)
            pieces += [state[at:position], spoil(turn.text)]
            at = position + len(turn.text)
        else:
            # Past the mark first: the text of a turn may occur in an earlier one.
            at_turn = state.index(f"[{turn.role}]", at)
            end = at_turn + len(turn.role) + 2
            end = state.index(turn.text, end) + len(turn.text)
            pieces.append(state[at:end])
            at = end
    return "".join([*pieces, state[at:]])


def _calls_of(row: Row) -> Sequence[Mapping[str, object]] | None:
    calls = row.tool_calls if isinstance(row, TrajectoryItem) else row.get("tool_calls")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return None
    return [call for call in calls if isinstance(call, Mapping)]


def augment_swap_io(
    data: D,
    *,
    mode: Literal["swap", "inverse_prompt"] = "swap",
    template: str | None = None,
    report: CurationReport | None = None,
) -> D:
    """Return the rows with state and action exchanged, without a reward.

    The reward becomes None, since it judged the other direction. Swapping twice restores the
    original texts. A row without an action is left out, and `report` names it.

    Args:
        data: A `TrajectoryDataset`, a list of items, or a list of mappings.
        mode: "swap" uses the texts unchanged; "inverse_prompt" asks for the question that fits
            the answer (instruction back-translation, https://arxiv.org/abs/2308.06259).
        template: The text of "inverse_prompt", with one `{answer}` in it.
        report: Gets every row that was left out, with the reason.

    Raises:
        ConfigError: the mode is unknown, or it does not use a template.
        DataError: a row is invalid.
    """
    before, after = _around_answer(mode, template)
    records = Records.of(data)
    swapped: list[Row] = []
    for index, row in enumerate(records.rows):
        action = action_of(row)
        if action.strip():
            changes = {"state": before + action + after, "action": state_of(row), "reward": None}
            swapped.append(derive(row, changes, op=f"swap_io:{mode}", seed=0))
        elif report is not None:
            report.dropped.append(Dropped(index, row, "no_action", "it has no action to swap"))
    return records.rebuild(swapped)


INVERSE_PROMPT = (
    "Below is an answer. Write the question or instruction that it answers, and nothing else.\n\n"
    "{answer}"
)
"""The default template of "inverse_prompt"."""


def _around_answer(mode: str, template: str | None) -> tuple[str, str]:
    if mode not in {"swap", "inverse_prompt"}:
        raise ConfigError(f"mode must be 'swap' or 'inverse_prompt', got {mode!r}")
    if mode == "swap":
        if template is not None:
            raise ConfigError("template applies to mode='inverse_prompt' only; a swap adds no text")
        return "", ""
    words = INVERSE_PROMPT if template is None else template
    # Not str.format, since answers hold braces.
    if words.count("{answer}") != 1:
        raise ConfigError(f"template needs exactly one {{answer}}, got {words!r}")
    before, _, after = words.partition("{answer}")
    return before, after


def _compiled(patterns: Sequence[str]) -> list[re.Pattern[str]]:
    if isinstance(patterns, str):
        raise ConfigError(f"protect must be a list of patterns, got the text {patterns!r}")
    try:
        return [re.compile(pattern) for pattern in patterns]
    except re.error as error:
        raise ConfigError(f"protect holds an invalid regular expression: {error}") from error
