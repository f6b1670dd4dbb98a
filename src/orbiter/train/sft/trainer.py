"""SFTTrainer: fine-tune a language model on captured actions, on this machine.

The training loop is in `local.py`; the model is loaded and saved in `engine/trainer.py`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.plan import Workload
from orbiter.train.engine.tasks import as_items, first_given
from orbiter.train.engine.trainer import ModelTrainer, as_metrics
from orbiter.train.errors import DataError
from orbiter.train.sft.config import SFTConfig
from orbiter.train.trainer import TrainerState, TrainMetrics
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orbiter.train.engine.models.outline import Outline
    from orbiter.train.engine.policy import Policy
    from orbiter.train.sft.lessons import Lessons

log = logging.getLogger(__name__)


class SFTTrainer(ModelTrainer):
    """Trains a language model to answer each item's `state` with its `action`.

    The loss is the negative log likelihood of the action's tokens and of the token that ends the
    turn; the prompt is context and is not trained on. Captured answers are imitated by the token
    ids that the server sampled, and the turns of an episode as one sequence; see `lessons.py`.
    """

    config: SFTConfig
    method = "SFT"

    def __init__(
        self,
        config: SFTConfig | None = None,
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Store the arguments; the model is loaded when it is first needed.

        Args:
            config: The settings; None means `SFTConfig()`.
            dataset: The items; may also be passed to `train()`.
            eval_dataset: Held-out items, for `eval_every` and `evaluate()`.
            agent: An object whose `instructions` become the system prompt.
            on_state_change: Called with the old and the new state of the lifecycle.
        """
        super().__init__(
            SFTConfig() if config is None else config,
            dataset=dataset,
            eval_dataset=eval_dataset,
            agent=agent,
            on_state_change=on_state_change,
        )

    @override
    def _check_data(self, dataset: object) -> None:
        """Check that every item has an action or tool calls to imitate."""
        for index, item in enumerate(as_items(dataset)):
            if not item.action and not item.tool_calls:
                raise DataError(
                    f"item {index} has no action to imitate (state {item.state[:60]!r})"
                )

    async def check_reward(self) -> bool:
        """Check that the items have the rewards that the config requires."""
        if self.dataset is not None:
            self._chosen(as_items(self.dataset))
        return True

    async def train(self, dataset: object = None) -> TrainMetrics:  # noqa: ARG002 - the lifecycle takes it
        """Train, and return the means of every metric over the last epoch.

        Raises:
            TrainingError: the run diverged.
            DataError: an item does not fit and `on_long_prompt` is "error", or no item is left.
        """
        policy = await self.policy()
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.sft.local import ImitationJob, fit

        config = self.config
        lessons = await self._lessons(policy, self._chosen(as_items(self.dataset)))
        held_out = lessons
        if self.eval_dataset is not None:
            held_out = await self._lessons(policy, as_items(self.eval_dataset))
        per_epoch = lessons.order.steps_per_epoch(config.batch_size)
        opening = self._opening(policy, lessons, config.epochs * per_epoch)
        session = await work(Session, config, policy, lessons.items, steps_per_epoch=per_epoch)

        def measure() -> Awaitable[Mapping[str, float]]:
            return self._measure(policy, held_out)

        data = f"{len(lessons.items)} items"
        async with self.running(session, opening, data=data) as progress:
            job = ImitationJob(
                config=config,
                lessons=lessons,
                session=session,
                progress=progress,
                validate=self.validation(session, measure, lambda measured: -measured["loss"]),
            )
            await fit(job)
        return self.results()

    async def evaluate(self, dataset: object = None) -> TrainMetrics:
        """Measure how well the model predicts the answers of held-out items.

        `loss` is in nats per token; `accuracy` is the share of tokens that are the model's
        likeliest choice. Without `dataset`, `eval_dataset` is used, or else the training data.
        """
        chosen = first_given(dataset, self.eval_dataset, self.dataset)
        policy = await self.policy()
        lessons = await self._lessons(policy, as_items(chosen))
        return as_metrics(await self._measure(policy, lessons))

    async def _measure(self, policy: Policy, lessons: Lessons) -> Mapping[str, float]:
        from orbiter.train.sft.local import imitated

        loss, accuracy = await imitated(policy, self.config, lessons)
        # exp overflows from about 710 on.
        return {"loss": loss, "accuracy": accuracy, "perplexity": math.exp(min(loss, 700.0))}

    def _chosen(self, items: Sequence[TrajectoryItem]) -> list[TrajectoryItem]:
        """Return the items to imitate: those with at least `min_reward`.

        Raises:
            DataError: a reward that the config needs is missing or negative, or no item is left.
        """
        config = self.config
        if config.min_reward is None and not config.reward_weighted:
            return list(items)
        for index, item in enumerate(items):
            if item.reward is None or (config.reward_weighted and item.reward < 0):
                raise DataError(
                    f"item {index} has reward {item.reward}; min_reward and reward_weighted need a "
                    "reward for every item, and weights must not be negative"
                )
        least = -math.inf if config.min_reward is None else config.min_reward
        kept = [item for item in items if item.reward is not None and item.reward >= least]
        if not kept or (config.reward_weighted and not any(item.reward for item in kept)):
            raise DataError(
                f"none of {len(items)} items is left to imitate with min_reward={least:g} and a "
                "weight above 0"
            )
        log.info("imitating %d of %d items", len(kept), len(items))
        return kept

    async def _lessons(self, policy: Policy, items: Sequence[TrajectoryItem]) -> Lessons:
        from orbiter.train.engine.thread import work

        return await work(self._encode, policy, items)

    def _encode(self, policy: Policy, items: Sequence[TrajectoryItem]) -> Lessons:
        """Encode the items; those that do not fit the context are left out or refused."""
        return self._lessons_for(policy.tokenizer, policy.context_length, items)

    def _lessons_for(
        self,
        tokenizer: PreTrainedTokenizerBase,
        context: int,
        items: Sequence[TrajectoryItem],
    ) -> Lessons:
        from orbiter.train.sft.lessons import make_lessons

        return make_lessons(
            tokenizer, items, self.config, context=context, system=self.system_prompt
        )

    @override
    def _lengths(self, outline: Outline, items: Sequence[TrajectoryItem]) -> list[int] | None:
        lessons = self._lessons_for(outline.tokenizer, outline.context_length, items)
        return [len(stream.token_ids) for stream in lessons.streams]

    @override
    def _items_to_train_on(self) -> Sequence[TrajectoryItem]:
        return self._chosen(as_items(self.dataset))

    @override
    def _workload(self) -> Workload:
        return Workload(method=self.method)

    def _opening(self, policy: Policy, lessons: Lessons, total: int) -> list[str]:
        """Return the lines shown at the start of a run: its size, and its estimated memory."""
        from orbiter.train.engine.memory import memory_estimate

        estimate = memory_estimate(
            policy,
            prompts=min(self.config.batch_size, len(lessons.streams)),
            n=1,
            prompt_tokens=lessons.longest,
            new_tokens=0,
            trained_tokens=lessons.most_trained,
            micro_batch_tokens=self.config.micro_batch_tokens,
        )
        plan = (
            f"SFT of {self.config.model}: {len(lessons.items)} items in {len(lessons.streams)} "
            f"sequences, {total} updates on {self.config.batch_size}"
        )
        return [plan, f"memory: {estimate}"]
