"""What a run learns from: encoded pairs, or encoded answers with a verdict for KTO."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orbiter.train.agents.streams import Stream
from orbiter.train.engine.tasks import Tasks, as_items
from orbiter.train.errors import DataError
from orbiter.train.preference.config import PairConfig, PreferenceConfig
from orbiter.train.preference.encoding import (
    AttemptEncoder,
    EncodedAttempt,
    encode_pairs,
)
from orbiter.train.preference.pairs import (
    Attempt,
    PreferencePair,
    by_task,
    given_pairs,
    listed,
    make_pairs,
    read_attempts,
    rewarded,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@contextmanager
def about_held_out_data() -> Iterator[None]:
    """Let a `DataError` from inside say that the held-out data caused it, and what to do."""
    try:
        yield
    except DataError as error:
        raise DataError(
            f"in the held-out data (eval_dataset, or [data] eval): {error}. Leave them out, or "
            "give them attempts to compare as well"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Pairs, or single answers with verdicts."""

    units: Sequence[Sequence[EncodedAttempt]]
    """The sides of each pair, the chosen one first; with KTO, single answers."""
    task: Sequence[int]
    """The number of each unit's task; units of a task are not independent."""
    desirable: Sequence[bool] = ()
    """With KTO: whether each answer is good."""
    mismatched: Sequence[EncodedAttempt] = ()
    """With KTO: after the prompt of each answer, the answer to another prompt."""
    lengths: Sequence[int] = field(default_factory=list)
    """Tokens of each unit that go through the model; a prompt that is shared counts once."""

    def __len__(self) -> int:
        return len(self.units)

    @property
    def order(self) -> Tasks:
        """The units as tasks, to draw the order of training from."""
        # The prompts are not needed: only the order of the items is.
        return Tasks([unit[0].attempt.first for unit in self.units], [[]] * len(self))

    @property
    def everything(self) -> Tasks:
        """All items that are learned from, by which a resumed run recognises its data."""
        items = [item for unit in self.units for side in unit for item in side.attempt.items]
        return Tasks(items, [[]] * len(items))

    @property
    def attempts(self) -> list[EncodedAttempt]:
        """All token sequences whose log probability under the reference is needed."""
        return [side for unit in self.units for side in unit] + list(self.mismatched)

    @property
    def most_trained(self) -> int:
        """Most answer tokens of a unit."""
        return max(sum(side.tokens for side in unit) for unit in self.units)


def make_material(
    tokenizer: PreTrainedTokenizerBase,
    dataset: object,
    config: PreferenceConfig,
    *,
    context: int,
    system: str | None,
) -> Material:
    """Choose and encode what a run learns from.

    Args:
        tokenizer: The tokenizer of the model in training.
        dataset: Items, or pairs of items.
        config: The settings.
        context: Largest number of tokens of prompt and answer together.
        system: The system prompt of every item; None keeps each item's own.

    Raises:
        DataError: there is nothing to learn from, or something does not fit the context.
    """

    def encoder(attempts: Sequence[Attempt]) -> AttemptEncoder:
        return AttemptEncoder(
            tokenizer,
            attempts,
            context=context,
            longest_prompt=config.max_prompt_length,
            on_long_prompt=config.on_long_prompt,
            system=system,
        )

    if config.method.is_paired:
        pairs = pairs_of(dataset, config)
        encoded = encode_pairs(encoder([side for pair in pairs for side in pair.sides]), pairs)
        return Material(
            units=[pair.sides for pair in encoded],
            task=[pair.task for pair in encoded],
            lengths=[pair.length for pair in encoded],
        )
    groups = by_task(judged(dataset, config), whole_episodes=config.compare == "episode")
    attempts = [attempt for group in groups for attempt in group]
    encode = encoder(attempts)
    # None marks an attempt that did not fit.
    singles = [encode.encode([each], f"answer {index}") for index, each in enumerate(attempts)]
    encode.report(len(attempts))
    task = [number for number, group in enumerate(groups) for _ in group]
    kept = [(unit, of) for unit, of in zip(singles, task, strict=True) if unit is not None]
    units = [unit for unit, _ in kept]
    mismatched = _mismatched([unit[0] for unit in units], context)
    return Material(
        units=units,
        task=[of for _, of in kept],
        desirable=[is_good(unit[0].attempt, config) for unit in units],
        mismatched=mismatched,
        lengths=[unit[0].length for unit in units],
    )


def pairs_of(dataset: object, config: PairConfig) -> list[PreferencePair]:
    """Return the pairs of a data set under the settings.

    Raises:
        DataError: there is no pair.
    """
    return make_pairs(
        dataset,
        whole_episodes=config.compare == "episode",
        min_margin=config.min_margin,
        per_task=config.pairs_per_task,
    ).pairs


def judged(dataset: object, config: PreferenceConfig) -> list[Attempt]:
    """Return the attempts whose reward or label says whether they are good.

    Raises:
        DataError: no attempt has a verdict, or all are good, or all are bad.
    """
    given = given_pairs(dataset)
    items = as_items(dataset) if given is None else [item for pair in given for item in pair]
    left_out: Counter[str] = Counter()
    attempts = read_attempts(items, whole_episodes=config.compare == "episode")
    kept = list(rewarded(attempts, left_out))
    if left_out:
        log.warning("not learned from: %s", listed(left_out))
    if not kept:
        raise DataError(f"no answer has a verdict to learn from: {listed(left_out)}")
    good = sum(is_good(attempt, config) for attempt in kept)
    if good in (0, len(kept)):
        raise DataError(
            f"method='kto' learns from good and bad answers, and all {len(kept)} are "
            f"{'good' if good else 'bad'}: their rewards are "
            f"{'at least' if good else 'below'} good_reward={config.good_reward:g}; change "
            "good_reward, or add answers of the other kind"
        )
    _warn_of_balance(good, len(kept) - good, config)
    return kept


def is_good(attempt: Attempt, config: PreferenceConfig) -> bool:
    """Return whether KTO takes an attempt as desirable."""
    return attempt.reward is not None and attempt.reward >= config.good_reward


def _warn_of_balance(good: int, bad: int, config: PreferenceConfig) -> None:
    """Warn if the weights do not make up for different numbers of good and bad answers."""
    if not config.desirable_weight or not config.undesirable_weight:
        return
    ratio = good * config.desirable_weight / (bad * config.undesirable_weight)
    # The range that the paper's section 4.2 recommends.
    if not 1 <= ratio <= 4 / 3 and good != bad:
        log.warning(
            "%d good and %d bad answers: the paper advises a ratio of their weighted numbers "
            "between 1 and 4/3, here it is %.3g; desirable_weight=%.3g would make it 1",
            *(good, bad, ratio, bad * config.undesirable_weight / good),
        )


def _mismatched(attempts: Sequence[EncodedAttempt], context: int) -> list[EncodedAttempt]:
    """Return each prompt followed by the answer to the next different prompt.

    Raises:
        DataError: all prompts are the same.
    """
    prompts = [attempt.prompt for attempt in attempts]
    # prompts[-1] is the last one, so the list is treated as a ring.
    changes = [index for index in range(len(prompts)) if prompts[index] != prompts[index - 1]]
    if not changes:
        raise DataError(
            "method='kto' estimates the KL divergence from answers to other prompts, and all "
            f"{len(attempts)} answers are to the same prompt; use more tasks"
        )
    following = [next((c for c in changes if c > at), changes[0]) for at in range(len(prompts))]
    return [
        _joined(attempt, attempts[other], context)
        for attempt, other in zip(attempts, following, strict=True)
    ]


def _joined(asked: EncodedAttempt, answered: EncodedAttempt, context: int) -> EncodedAttempt:
    """Return the prompt of one attempt with the first sequence of answers of another."""
    prompt, stream = asked.prompt, answered.streams[0]
    first, room = stream.prompt_length, context - len(asked.prompt)
    # Cut at the end: the joined sequence only serves the KL estimate.
    token_ids = stream.token_ids[first:][:room]
    mask = stream.mask[first:][:room]
    joined = Stream(
        token_ids=prompt + token_ids,
        mask=[False] * len(prompt) + mask,
        logprobs=[0.0] * (len(prompt) + len(mask)),
        turn=[0] * (len(prompt) + len(mask)),
    )
    return EncodedAttempt(attempt=asked.attempt, streams=[joined])
