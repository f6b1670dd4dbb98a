"""Turns the captured turns of an episode into token streams to train on.

A turn whose prompt extends an earlier stream exactly continues it. Any other turn, such as one
of a sub-agent, or one after the history was rewritten, begins a new stream. Only sampled tokens
are trained, and a sampled token that occurs in several streams is trained in the first of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, assert_never

from orbiter.train.errors import ConfigError, DataError

GIVEN = -1
"""Marks a token that no turn sampled: one of a prompt, a tool result, or a template."""

Normalisation = Literal["token", "episode", "constant"]


class AnsweredPrompt(Protocol):
    """The attributes of a turn that are used here; `serve.live.Turn` has them."""

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """Tokens of the whole prompt."""

    @property
    def token_ids(self) -> Sequence[int]:
        """Tokens that were sampled, with the one that ended the answer."""

    @property
    def logprobs(self) -> Sequence[float]:
        """Log probability of each sampled token when it was drawn, in nats."""


@dataclass(slots=True, kw_only=True)
class Stream:
    """One token sequence of an episode, with what is known about each token."""

    token_ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    """True means "train on this token"."""
    logprobs: list[float] = field(default_factory=list)
    """In nats, as recorded by the sampler; 0 where `mask` is False."""
    turn: list[int] = field(default_factory=list)
    """The turn that sampled each token, in this stream or an earlier one; else GIVEN."""

    @property
    def prompt_length(self) -> int:
        """The number of tokens before the first trained one; all of them if none is trained."""
        return self.mask.index(True) if True in self.mask else len(self.mask)

    def _append(self, token_ids: Sequence[int], turns: Sequence[int]) -> None:
        """Append tokens that are not trained here."""
        self.token_ids += token_ids
        self.mask += [False] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids)
        self.turn += turns


def turns_to_streams(turns: Sequence[AnsweredPrompt]) -> list[Stream]:
    """Merge the turns of one episode, in the order they were asked, into streams.

    Two calls that ask the same prompt are two samples: both are trained, in two streams. A turn
    without sampled tokens adds nothing.

    Raises:
        DataError: a turn has no prompt, or not one log probability for each sampled token.
    """
    streams: list[Stream] = []
    for number, turn in enumerate(turns):
        _check(turn, number)
        if not turn.token_ids:
            continue
        prompt = list(turn.prompt_token_ids)
        stream = _longest_beginning(streams, prompt)
        if stream is None:
            stream = Stream()
            # Tokens that an earlier stream sampled are context here: they are trained there.
            stream._append(prompt, _sampled_by(streams, prompt))
            streams.append(stream)
        else:
            new = prompt[len(stream.token_ids) :]
            # These are tool results and the template's text, which the policy did not choose.
            stream._append(new, [GIVEN] * len(new))
        stream.token_ids += turn.token_ids
        # Sampled in this turn, so trained here and nowhere else.
        stream.mask += [True] * len(turn.token_ids)
        stream.logprobs += turn.logprobs
        stream.turn += [number] * len(turn.token_ids)
    return streams


def shared_beginnings(streams: Sequence[Stream]) -> list[int]:
    """Return for each stream how many tokens at its beginning an update should treat as its prompt.

    An update runs equal prompts once. The prompts of different tasks often begin alike, with the
    same instructions and tools, and so do those of an episode's branches. Where at least half of
    such prompts is common, only that part is taken as the prompt; the rest then belongs to the
    rows, where it costs little. The gradient is the same either way.
    """
    # Trained tokens must not be in a prompt, because a prompt is run once for several rows.
    prompts = [stream.token_ids[: stream.prompt_length] for stream in streams]
    beginnings = [0] * len(streams)
    cluster: list[int] = []
    common = longest = 0
    # Sorting puts prompts with a common beginning next to each other.
    for at in sorted(range(len(streams)), key=prompts.__getitem__):
        prompt = prompts[at]
        # Prompts are sorted, so the first and the last of a cluster share the least.
        same = _common(prompts[cluster[-1]][:common], prompt) if cluster else 0
        # Less than half would be shared, so a longer separate prompt costs less.
        if not cluster or 2 * same < max(longest, len(prompt)):
            cluster, same, longest = [], len(prompt), 0
        cluster.append(at)
        common, longest = same, max(longest, len(prompt))
        for each in cluster:
            beginnings[each] = common
    return beginnings


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two sequences have in common at their beginnings."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def token_weights(
    episodes: Sequence[Sequence[Stream]],
    normalisation: Normalisation,
    *,
    max_tokens: int | None = None,
) -> list[list[list[float]]]:
    """Return the share of each token in a step's loss, as [episode][stream][token].

    With E episodes of T_e trained tokens each, over all streams of the episode, a token's share is

        token      1 / sum_e T_e         (DAPO, arXiv:2503.14476)
        episode    1 / (E T_e)           every episode counts the same
        constant   1 / (E max_tokens)    (Dr. GRPO, arXiv:2503.20783)

    The loss is the sum of share * token loss, so it does not depend on how rows are split into
    minibatches, nor on how many streams an episode has. Episodes without trained tokens do not
    count towards E.

    Raises:
        ConfigError: "constant" without `max_tokens`, or an unknown normalisation.
        DataError: no episode has a trained token.
    """
    if normalisation not in ("token", "episode", "constant"):
        raise ConfigError(
            f'normalisation must be "token", "episode" or "constant", got {normalisation!r}'
        )
    trained = [sum(sum(stream.mask) for stream in streams) for streams in episodes]
    counted = sum(1 for tokens in trained if tokens)
    if not counted:
        raise DataError(f"none of the {len(trained)} episodes has a sampled token to train on")

    def share(tokens: int) -> float:
        match normalisation:
            case "token":
                return 1 / sum(trained)
            case "episode":
                return 1 / (counted * tokens)
            case "constant":
                if max_tokens is None or max_tokens < 1:
                    raise ConfigError(
                        f'normalisation="constant" needs max_tokens >= 1, got {max_tokens}'
                    )
                return 1 / (counted * max_tokens)
            case _:
                assert_never(normalisation)

    return [
        [[share(tokens) if trains else 0.0 for trains in stream.mask] for stream in streams]
        for streams, tokens in zip(episodes, trained, strict=True)
    ]


def _check(turn: AnsweredPrompt, number: int) -> None:
    if not turn.prompt_token_ids:
        raise DataError(f"turn {number} of the episode has no prompt tokens")
    if len(turn.logprobs) != len(turn.token_ids):
        raise DataError(
            f"turn {number} of the episode has {len(turn.token_ids)} sampled tokens and "
            f"{len(turn.logprobs)} log probabilities; each token needs one"
        )


def _longest_beginning(streams: Sequence[Stream], prompt: list[int]) -> Stream | None:
    """Return the longest stream that the prompt begins with."""
    # All tokens must match: a history that was rewritten anywhere begins a new stream.
    beginnings = [s for s in streams if prompt[: len(s.token_ids)] == s.token_ids]
    return max(beginnings, key=lambda stream: len(stream.token_ids), default=None)


def _sampled_by(streams: Sequence[Stream], prompt: list[int]) -> list[int]:
    """Return the turn that sampled each token of a prompt that branches off, else GIVEN.

    A token equals an earlier one only if all tokens before it are equal too.
    """
    turns = [GIVEN] * len(prompt)
    longest = 0
    for stream in streams:
        common = _common(prompt, stream.token_ids)
        if common > longest:
            longest = common
            turns[:common] = stream.turn[:common]
    return turns
