"""The dry run of a training with an agent: play two episodes, show them, say what a step costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from orbiter.train.agents.episode import Episode
from orbiter.train.chat.message import text_of
from orbiter.train.chat.tool_calls import input_of, name_of
from orbiter.train.cli.job import Job
from orbiter.train.cli.output import Output, duration, shown
from orbiter.train.errors import CallbackError
from orbiter.train.verl import VeRLTrainer

EPISODES = 2
TEXT_CHARS = 600
"""Characters of a message that are shown."""
GIB = 1 << 30


async def rehearse(job: Job, output: Output) -> dict[str, Any] | None:
    """Play an episode of each of two tasks and show them; return the cost of a step.

    Raises:
        CallbackError: an episode failed, or a reward did.
    """
    trainer = job.trainer
    assert isinstance(trainer, VeRLTrainer), "only this trainer has agents"
    rehearsal = await trainer.rehearse(list(job.items)[:EPISODES])
    failed: list[str] = []
    for number, attempt in enumerate(rehearsal.attempts, start=1):
        episode = attempt.episode
        assert episode is not None, "a rehearsal plays episodes"
        for line in episode_lines(episode):
            output.say(line)
        parts = ", ".join(f"{name} {shown(value)}" for name, value in attempt.rewards.items())
        output.say(f"  reward  {shown(attempt.reward)}{f' ({parts})' if parts else ''}")
        output.say()
        if episode.failed:
            failed.append(f"episode {number}: {episode.stop_reason}, {episode.error or 'no error'}")
    if failed:
        raise CallbackError(
            f"{len(failed)} of {len(rehearsal.attempts)} episodes failed: " + "; ".join(failed)
        )
    played = [attempt.episode for attempt in rehearsal.attempts if attempt.episode is not None]
    if not trainer.rewards and not any(episode.step_rewards for episode in played):
        output.say(
            "note: nothing gave a reward, so nothing could be learned; set [reward], or let the "
            "agent give one (see docs/guide/train_agent.md)"
        )
    cost = rehearsal.cost
    assert cost is not None, "no episode failed"
    output.table(
        ("a step", "how much"),
        [
            ("episodes", str(cost.episodes)),
            ("tokens", f"{cost.sampled_tokens:,} sampled, {cost.trained_tokens:,} trained over"),
            ("time", f"about {duration(cost.seconds)}, within a factor of three"),
            ("memory", f"about {cost.memory_bytes / GIB:.1f} GiB at the peak"),
        ],
    )
    return cost._asdict()


def episode_lines(episode: Episode) -> Iterable[str]:
    """Return an episode turn by turn, as lines of text."""
    yield f"task      {_cut(str(episode.task))}"
    for number, turn in enumerate(episode.turns, start=1):
        # What the turn shares with the one that it continues, and the answer to that, was shown.
        known = 0 if turn.continues is None else len(episode.turns[turn.continues].messages) + 1
        branch = ", a new conversation" if turn.continues is None and number > 1 else ""
        yield f"  turn {number}{branch}"
        for message in turn.messages[known:]:
            yield from _message_lines(message)
        cut_off = ", cut off" if turn.finish_reason == "length" else ""
        yield from _message_lines(turn.reply, f"  ({len(turn.token_ids)} tokens{cut_off})")
    if not episode.failed:
        yield f"  result  {_cut(episode.output)}"
    error = f": {episode.error}" if episode.error else ""
    yield f"  ended   {episode.stop_reason}{error}, after {duration(episode.seconds)}"


def _message_lines(message: Mapping[str, Any], note: str = "") -> Iterable[str]:
    """Return a message and its calls, a line for each; the note goes to the first line."""
    calls = message.get("tool_calls") or []
    text = text_of(message.get("content"))
    lines = [(str(message.get("role", "")), text)] if text or not calls else []
    lines += [("calls", f"{name_of(call)} {input_of(call)}") for call in calls]
    for place, (label, shown_text) in enumerate(lines):
        yield f"    {label:<10}{_cut(shown_text)}{'' if place else note}"


def _cut(text: str) -> str:
    """Return a text on one line, without control characters, cut to what a terminal can show."""
    plain = "".join(c if c.isprintable() else " " for c in text.replace("\n", " ⏎ "))
    if len(plain) <= TEXT_CHARS:
        return plain
    return f"{plain[:TEXT_CHARS]} ... [{len(plain)} characters]"
