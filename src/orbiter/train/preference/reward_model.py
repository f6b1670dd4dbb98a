"""RewardModel: scores answers and episodes, as a reward, as a filter, or on held-out pairs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from orbiter.train.agents.logged import why_unusable
from orbiter.train.chat.message import text_of
from orbiter.train.engine.models.saved_files import CONFIG, names_classifier, read_object
from orbiter.train.engine.tasks import as_items
from orbiter.train.engine.thread import work, work_blocking
from orbiter.train.errors import ConfigError, DataError, StorageError, TrainError, require
from orbiter.train.preference.pairs import Attempt, make_pairs, read_attempts
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from orbiter.train.agents.episode import Episode
    from orbiter.train.preference.reward_model_quality import RewardQuality
    from orbiter.train.preference.reward_model_rows import Scorer

log = logging.getLogger(__name__)

SETTLE_ROUNDS = 4
"""Rounds of the event loop without a new call after which the waiting calls are scored."""
ROWS_AT_ONCE = 64
"""Rows that are scored between two checks for cancellation."""
_OF_ONE_ANSWER = ("finish_reason", "error")
"""Metadata entries that belong to an item's own answer, not to the one that is scored."""


class RewardModel:
    """A model that gives an answer a number: the higher, the better.

    It is a folder that RewardModelTrainer saved, or any sequence classifier of Transformers with
    one label; it is loaded when it is first needed. Used as a reward,

        RewardSpec("helpful", fn=RewardModel("runs/reward-model/model"))

    it scores the answers to prompts, and with an agent the last turn of each episode. Calls that
    wait at the same time are scored in one batch, in which equal prompts run once.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16"] = "float32",
        micro_batch_tokens: int = 4096,
        on_long_prompt: Literal["error", "truncate-left"] = "error",
        trust_remote_code: bool = False,
    ) -> None:
        """Store the arguments.

        Args:
            model: A folder, or a name on the hub.
            device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the first accelerator found.
            dtype: The type of the matrix products.
            micro_batch_tokens: Tokens of one forward pass.
            on_long_prompt: Whether a conversation that does not fit the context is an error, or
                loses its beginning.
            trust_remote_code: Run Python code that comes with the model.

        Raises:
            StorageError: `model` is a folder that does not hold a reward model.
        """
        from orbiter.train.engine.models.load import is_path

        self.model = os.fspath(model)
        self._device, self._dtype, self._trust = device, dtype, trust_remote_code
        self._micro_batch_tokens, self._on_long_prompt = micro_batch_tokens, on_long_prompt
        self._scorer: Scorer | None = None
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, list[_WaitingCall]] = (
            WeakKeyDictionary()
        )
        self._batches: set[asyncio.Task[None]] = set()
        self._in_memory_only = False
        if is_path(self.model):
            _require_reward_model(Path(self.model).expanduser())

    @classmethod
    def of(cls, scorer: Scorer, model: str, *, micro_batch_tokens: int) -> RewardModel:
        """Return a reward model that is in memory already; `model` is its name."""
        # Not through __init__, which would check a folder that this model does not have.
        made = cls.__new__(cls)
        made.model, made._scorer = model, scorer
        made._device, made._dtype = "auto", "float32"
        made._micro_batch_tokens, made._on_long_prompt = micro_batch_tokens, "error"
        made._waiting, made._batches = WeakKeyDictionary(), set()
        made._trust, made._in_memory_only = False, True
        return made

    def module_source(self) -> str:
        """Return a module that makes this reward model as `reward`, for another process.

        verl's workers run it (`verl/cluster/sources.py`). A folder is named by its full path.

        Raises:
            ConfigError: the model is in memory only, as that of a trainer that has not saved it.
        """
        from orbiter.train.engine.models.load import is_path

        if self._in_memory_only:
            raise ConfigError(
                f"this reward model ({self.model}) is in memory only, and another process cannot "
                "load it: save it, `await trainer.save(folder)`, and use RewardModel(folder)"
            )
        named = Path(self.model).expanduser().resolve() if is_path(self.model) else self.model
        return (
            "from orbiter.train.preference import RewardModel\n\n"
            "reward = RewardModel(\n"
            f"    {str(named)!r},\n"
            f"    device={self._device!r},\n"
            f"    dtype={self._dtype!r},\n"
            f"    micro_batch_tokens={self._micro_batch_tokens!r},\n"
            f"    on_long_prompt={self._on_long_prompt!r},\n"
            f"    trust_remote_code={self._trust!r},\n"
            ")\n"
        )

    @property
    def fingerprint(self) -> str:
        """What decides the scores, to recognise a changed reward when a run is resumed."""
        folder = Path(self.model).expanduser()
        manifest = folder / "manifest.json"
        if manifest.is_file():
            from orbiter.train.engine.models.folder import file_sha256

            return f"{folder.name}:{file_sha256(manifest)[:16]}:{self._dtype}"
        return f"{self.model}:{self._dtype}"

    async def __call__(
        self,
        output: str,
        item: TrajectoryItem,
        raw_output: str | None = None,
        episode: Episode | None = None,
    ) -> float:
        """Score an answer to an item's prompt, or the last turn of an episode.

        Args:
            output: The answer.
            item: The task; its state or messages are the prompt.
            raw_output: The answer with its special tokens, scored instead if given.
            episode: An agent's episode, scored instead of the answer.

        Raises:
            DataError: the conversation does not fit the model's context.
        """
        if episode is not None:
            return await self._score_with_others(_of_episode(episode))
        # With its special tokens, as the policy sampled it.
        answer = output if raw_output is None else raw_output
        return await self._score_with_others(_of_answer(item, answer))

    async def score(self, dataset: object, *, whole_episodes: bool = False) -> list[float]:
        """Return the score of each item's action, in order.

        With `whole_episodes`, the items of an episode get one score, that of its last turn; the
        result has one number for each episode and each item without one.

        Raises:
            DataError: an answer does not fit the model's context; names it.
        """
        attempts = read_attempts(as_items(dataset), whole_episodes=whole_episodes)
        scores: list[float] = []
        for first in range(0, len(attempts), ROWS_AT_ONCE):
            part = attempts[first : first + ROWS_AT_ONCE]
            scores += await work(self._scores, part, first)
        return scores

    def score_rows(self, rows: Sequence[Any]) -> list[float]:
        """Return the score of each item, waiting for it; `filter_by_score(key=model)` calls this.

        Raises:
            DataError: an answer does not fit the model's context, or a row is not an item.
        """
        attempts = read_attempts(as_items(rows), whole_episodes=False)
        return work_blocking(self._scores, attempts, 0)

    async def evaluate(
        self, dataset: object, *, whole_episodes: bool = True, min_margin: float = 0.0
    ) -> RewardQuality:
        """Measure the model on held-out pairs: accuracy, calibration and agreement with intervals.

        Args:
            dataset: Items with rewards, several to a state or task; or pairs of items.
            whole_episodes: Whether the items of an episode are one attempt; otherwise each is.
            min_margin: The smallest difference of two rewards of a pair.
        """
        from orbiter.train.preference.reward_model_quality import quality_of
        from orbiter.train.preference.reward_model_rows import encoded_pairs, score_pairs

        pairs = make_pairs(dataset, whole_episodes=whole_episodes, min_margin=min_margin).pairs

        def encode() -> Any:  # noqa: ANN401 - a list of EncodedPair
            policy = self.loaded().policy
            return encoded_pairs(
                policy.tokenizer,
                pairs,
                context=policy.context_length,
                on_long_prompt=self._on_long_prompt,
            )

        scorer = await work(self.loaded)
        encoded = await work(encode)
        scored = await score_pairs(scorer, encoded, micro_batch_tokens=self._micro_batch_tokens)
        return quality_of(scored)

    def loaded(self) -> Scorer:
        """Return the model, loading it at the first call; called on the engine's thread."""
        if self._scorer is None:
            require("torch", extra="train")
            from orbiter.train.engine.models.classifier import load_classifier
            from orbiter.train.engine.policy import make_policy
            from orbiter.train.preference.reward_model_rows import Scorer

            classifier = load_classifier(
                self.model, device=self._device, trust_remote_code=self._trust
            )
            policy = make_policy(
                classifier.model,
                classifier.tokenizer,
                value_head=classifier.head,
                device=str(classifier.model.device),
                dtype=self._dtype,
            )
            # It is never trained, and a graph over its weights would only take memory.
            policy.model.requires_grad_(False)
            self._scorer = Scorer(policy=policy, pad_token_id=classifier.pad_token_id)
        return self._scorer

    def _scores(self, attempts: Sequence[Attempt], first: int) -> list[float]:
        """Score attempts by their last turns; raise at the first that does not fit."""
        answers = self._try_scores(attempts, first)
        for answer in answers:
            # A data set is refused at its first bad answer; calls of a reward fail one by one
            # (`_score_waiting`).
            if isinstance(answer, TrainError):
                raise answer
        return [answer for answer in answers if isinstance(answer, float)]

    def _try_scores(self, attempts: Sequence[Attempt], first: int = 0) -> list[float | TrainError]:
        """Return the score of each attempt, or why it has none."""
        from orbiter.train.preference.encoding import AttemptEncoder
        from orbiter.train.preference.reward_model_rows import last_turn, score_row, scores_of

        scorer = self.loaded()
        # One token of the context is needed to read the score at the end.
        tokenizer, context = scorer.policy.tokenizer, scorer.policy.context_length - 1
        turns = [last_turn(attempt) for attempt in attempts]
        readable = [_with_usable_ids(turn, tokenizer) for turn in turns]
        cuts = self._on_long_prompt == "truncate-left"
        encoder = AttemptEncoder(
            tokenizer,
            readable,
            context=context,
            on_long_prompt="truncate-left" if cuts else "drop",
        )
        answers: list[float | TrainError] = []
        rows = {}
        for index, turn in enumerate(readable):
            try:
                encoded = encoder.encode([turn], f"answer {first + index}")
                if encoded is None:
                    raise DataError(
                        f"answer {first + index} does not fit the reward model's context of "
                        f"{context} tokens"
                        + (" even without its prompt" if cuts else "; ")
                        + ("" if cuts else "RewardModel(on_long_prompt='truncate-left') cuts it")
                    )
                rows[index] = score_row(encoded[0], scorer.pad_token_id)
                # Replaced below; it keeps the place of this attempt.
                answers.append(0.0)
            except TrainError as error:
                answers.append(error)
        if rows:
            scores = scores_of(
                scorer.policy, list(rows.values()), micro_batch_tokens=self._micro_batch_tokens
            )
            for index, score in zip(rows, scores, strict=True):
                answers[index] = score
        return answers

    async def _score_with_others(self, item: TrajectoryItem) -> float:
        """Score an item in one batch with the other calls that wait."""
        loop = asyncio.get_running_loop()
        call = _WaitingCall(Attempt(items=(item,), reward=None), loop.create_future())
        waiting = self._waiting.setdefault(loop, [])
        waiting.append(call)
        if len(waiting) == 1:
            # Only the first of the waiting calls starts a batch; the others are found in the list.
            batch = loop.create_task(self._score_waiting(waiting))
            self._batches.add(batch)  # the loop itself keeps only a weak reference
            batch.add_done_callback(self._batches.discard)
        return await call.score

    async def _score_waiting(self, waiting: list[_WaitingCall]) -> None:
        """Score the waiting calls, once no more arrive, until none is left."""
        while waiting:
            # Calls of one step arrive one after the other; a batch begins once no more come.
            known, quiet = len(waiting), 0
            while quiet < SETTLE_ROUNDS:
                await asyncio.sleep(0)
                known, quiet = (known, quiet + 1) if len(waiting) == known else (len(waiting), 0)
            calls = [call for call in waiting if not call.score.done()]  # done: cancelled
            try:
                answers = await work(self._try_scores, [call.attempt for call in calls])
            except BaseException as error:
                failure = error if isinstance(error, Exception) else asyncio.CancelledError()
                # One failure is that of all calls in the batch: each caller must hear of it, or
                # would wait for ever.
                answers = [failure] * len(calls)  # type: ignore[list-item] # whatever it was
            taken = set(map(id, calls))
            # In place, because other calls append to this same list.
            waiting[:] = [c for c in waiting if id(c) not in taken and not c.score.done()]
            for call, answer in zip(calls, answers, strict=True):
                # Its caller was cancelled meanwhile, and a future takes one result only.
                if call.score.done():
                    continue
                if isinstance(answer, BaseException):
                    call.score.set_exception(answer)
                else:
                    call.score.set_result(answer)


@dataclass(frozen=True, slots=True)
class _WaitingCall:
    """A call that waits for its score."""

    attempt: Attempt
    score: asyncio.Future[float]


def _of_answer(item: TrajectoryItem, answer: str) -> TrajectoryItem:
    """Return an item with another answer, without what belongs to its own."""
    kept = {name: v for name, v in item.metadata.items() if name not in _OF_ONE_ANSWER}
    return replace(
        item,
        action=answer,
        reward=None,
        metadata=kept,
        tool_calls=None,
        prompt_token_ids=None,
        token_ids=None,
        logprobs=None,
    )


def _of_episode(episode: Episode) -> TrajectoryItem:
    """Return the last turn of an episode as an item.

    Raises:
        DataError: it has no turn.
    """
    if not episode.turns:
        raise DataError("the episode has no turn that a reward model could score")
    turn = episode.turns[-1]
    calls: Any = turn.reply.get("tool_calls")
    asked = turn.messages[-1] if turn.messages else {}
    metadata: Mapping[str, object] = {"finish_reason": turn.finish_reason}
    return TrajectoryItem(
        state=text_of(asked.get("content")),
        action=text_of(turn.reply.get("content")),
        metadata=metadata,
        messages=turn.messages or None,
        tools=turn.tools or None,
        tool_calls=calls or None,
        prompt_token_ids=turn.prompt_token_ids,
        token_ids=turn.token_ids,
    )


def _with_usable_ids(attempt: Attempt, tokenizer: Any) -> Attempt:  # noqa: ANN401 - untyped
    """Return an attempt without token ids that belong to another tokenizer."""
    (item,) = attempt.items
    if item.token_ids is None or why_unusable(tokenizer, item) is None:
        return attempt
    plain = replace(item, prompt_token_ids=None, token_ids=None, logprobs=None)
    return Attempt(items=(plain,), reward=attempt.reward)


def _require_reward_model(folder: Path) -> None:
    """Refuse a folder that holds something else, before a run starts with it.

    Raises:
        StorageError: it does not hold a reward model.
    """
    if not (folder / CONFIG).is_file():
        raise StorageError(f"{folder} is not a reward model: it has no {CONFIG}")
    if not names_classifier(read_object(folder / CONFIG)):
        raise StorageError(
            f"{folder} is not a reward model: its {CONFIG} names no class that ends in "
            "ForSequenceClassification; RewardModelTrainer saves such folders"
        )
