"""RewardModelTrainer: learn from pairs to tell the better of two answers by a score.

The training loop is in `reward_model_local.py`; the model is loaded in `engine/trainer.py` and
saved by `engine/models/classifier.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.config import recorded_dtype
from orbiter.train.engine.plan import Workload
from orbiter.train.engine.tasks import first_given
from orbiter.train.engine.trainer import ModelTrainer, as_metrics
from orbiter.train.errors import StateError
from orbiter.train.preference.reward_model import RewardModel
from orbiter.train.preference.reward_model_config import RewardModelConfig
from orbiter.train.trainer import TrainerState, TrainMetrics
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orbiter.train.engine.models.export import Card
    from orbiter.train.engine.models.outline import Outline
    from orbiter.train.engine.policy import Policy
    from orbiter.train.preference.encoding import EncodedPair
    from orbiter.train.preference.reward_model_quality import RewardQuality
    from orbiter.train.preference.reward_model_rows import Scorer

log = logging.getLogger(__name__)


class RewardModelTrainer(ModelTrainer):
    """Trains a language model with a scalar head to score the better of two answers higher.

    The data set holds items with rewards or labels: several answers to one state, or several
    episodes of one `task_id`. It may also be a list of pairs of items. An episode is scored at the
    end of its last turn, whose prompt is the whole conversation.
    """

    config: RewardModelConfig
    method = "reward model"

    def __init__(
        self,
        config: RewardModelConfig | None = None,
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Store the arguments; the model is loaded when it is first needed.

        Args:
            config: The settings; None means `RewardModelConfig()`. Its `model` may be a reward
                model, which is then trained further.
            dataset: The items or pairs; may also be passed to `train()`.
            eval_dataset: Held-out items or pairs, for `eval_every` and `evaluate()`.
            agent: An object whose `instructions` become the system prompt.
            on_state_change: Called with the old and the new state of the lifecycle.
        """
        super().__init__(
            RewardModelConfig() if config is None else config,
            dataset=dataset,
            eval_dataset=eval_dataset,
            agent=agent,
            on_state_change=on_state_change,
        )
        self._pad_token_id: int | None = None

    @override
    def _check_data(self, dataset: object) -> None:
        """Check that the data make pairs."""
        from orbiter.train.preference.material import pairs_of

        pairs_of(dataset, self.config)

    @override
    def _check_held_out(self, dataset: object) -> None:
        from orbiter.train.preference.material import about_held_out_data

        with about_held_out_data():
            self._check_data(dataset)

    async def check_reward(self) -> bool:
        """Nothing is left to check: `check_dataset` needs the rewards to make pairs."""
        return True

    async def train(self, dataset: object = None) -> TrainMetrics:  # noqa: ARG002 - the lifecycle takes it
        """Train, and return the means of every metric over the last epoch.

        Raises:
            TrainingError: the run diverged.
            DataError: a pair does not fit and `on_long_prompt` is "error", or none is left.
            ConfigError: Transformers has no sequence classifier of this architecture.
        """
        policy = await self.policy()
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.preference.reward_model_local import (
            RewardModelJob,
            all_items,
            fit,
            order_of,
        )

        config = self.config
        pairs = await self._pairs(policy, self.dataset)
        held_out = pairs
        if self.eval_dataset is not None:
            held_out = await self._pairs(policy, self.eval_dataset)
        per_epoch = order_of(pairs).steps_per_epoch(config.batch_size)
        session = await work(Session, config, policy, all_items(pairs), steps_per_epoch=per_epoch)

        async def measure() -> Mapping[str, float]:
            return (await self._quality(policy, held_out)).measured()

        opening = self._opening(policy, pairs, session.steps)
        async with self.running(session, opening, data=f"{len(pairs)} pairs") as progress:
            job = RewardModelJob(
                config=config,
                pairs=pairs,
                scorer=self._scorer(policy),
                session=session,
                progress=progress,
                validate=self.validation(session, measure, lambda measured: -measured["loss"]),
            )
            await fit(job)
        return self.results()

    async def evaluate(self, dataset: object = None) -> TrainMetrics:
        """Measure the model on held-out pairs, as `quality` does, and return the numbers.

        `accuracy` is the share of pairs whose better answer has the higher score; `loss`, `brier`
        and `calibration_error` say whether its probabilities can be believed, and `agreement` is
        Kendall's tau with the rewards. Each comes with an interval over tasks (`accuracy_low`,
        `accuracy_high`, ...). Without `dataset`, `eval_dataset` is used, or else the training data.
        """
        return as_metrics((await self.quality(dataset)).measured())

    async def quality(self, dataset: object = None) -> RewardQuality:
        """Measure the model on held-out pairs, with intervals.

        Without `dataset`, `eval_dataset` is used, or else the training data.

        Raises:
            DataError: there are no pairs.
        """
        chosen = first_given(dataset, self.eval_dataset, self.dataset)
        policy = await self.policy()
        return await self._quality(policy, await self._pairs(policy, chosen))

    async def reward_model(self) -> RewardModel:
        """Return the model in its present state as a reward; later training changes its scores."""
        policy = await self.policy()
        return RewardModel.of(
            self._scorer(policy),
            f"{self.config.model} in training",
            micro_batch_tokens=self.config.micro_batch_tokens,
        )

    async def generate(self, *_: object, **__: object) -> list[str]:
        """Refuse: a reward model scores answers and gives none.

        Raises:
            StateError: always.
        """
        raise StateError(
            "a reward model gives no answers; score some with (await reward_model()).score(items)"
        )

    async def save(self, path: str | os.PathLike[str], *, merge: bool = True) -> Path:
        """Write the reward model with tokenizer and model card; return the folder.

        The layout is that of Transformers' AutoModelForSequenceClassification with one label.
        Adapters are added to the weights, whatever `merge` says.

        Raises:
            StateError: the run ended in a TrainingError, and its model was discarded.
        """
        del merge
        if self._discarded:
            raise StateError(
                "there is no trained model to save: the run ended with an error, and its weights "
                "were discarded; train again"
            )
        policy = await self.policy()
        from orbiter.train.engine.models.classifier import save_classifier
        from orbiter.train.engine.thread import work

        return await work(
            save_classifier, policy, path, self._card(), pad_token_id=self._pad_token_id
        )

    async def _quality(self, policy: Policy, pairs: Sequence[EncodedPair]) -> RewardQuality:
        from orbiter.train.preference.reward_model_quality import quality_of
        from orbiter.train.preference.reward_model_rows import score_pairs

        scored = await score_pairs(
            self._scorer(policy), pairs, micro_batch_tokens=self.config.micro_batch_tokens
        )
        return quality_of(scored)

    def _scorer(self, policy: Policy) -> Scorer:
        from orbiter.train.preference.reward_model_rows import Scorer

        return Scorer(policy=policy, pad_token_id=self._pad_token_id)

    async def _pairs(self, policy: Policy, dataset: object) -> list[EncodedPair]:
        from orbiter.train.engine.thread import work

        return await work(self._encoded, policy.tokenizer, policy.context_length, dataset)

    def _encoded(
        self, tokenizer: PreTrainedTokenizerBase, context: int, dataset: object
    ) -> list[EncodedPair]:
        from orbiter.train.preference.material import pairs_of
        from orbiter.train.preference.reward_model_rows import encoded_pairs

        config = self.config
        return encoded_pairs(
            tokenizer,
            pairs_of(dataset, config),
            context=context,
            longest_prompt=config.max_prompt_length,
            on_long_prompt=config.on_long_prompt,
            system=self.system_prompt,
        )

    @override
    def _check_model(self) -> None:
        """Accept a language model, which gets a head, and a reward model, which is trained on."""

    @override
    def _loaded(self) -> Policy:
        """Load the model with its head, or with a new one if it is no reward model yet."""
        from orbiter.train.engine.models.classifier import is_classifier, pad_token_of
        from orbiter.train.preference.reward_model_local import new_head

        if self._policy is None and is_classifier(self.config.model):
            self._policy = self._reward_model()
        if self._policy is None:
            policy = super()._loaded()
            self._policy = None  # not loaded unless it gets its head
            policy.value_head = new_head(policy, self.config.seed)
            self._pad_token_id = pad_token_of(policy.tokenizer)
            self._policy = policy
        return self._policy

    def _reward_model(self) -> Policy:
        """Load the reward model that is to be trained further."""
        from orbiter.train.engine.models.classifier import load_classifier
        from orbiter.train.engine.policy import make_policy

        config = self.config
        classifier = load_classifier(
            config.model, device=config.device, trust_remote_code=config.trust_remote_code
        )
        self._pad_token_id = classifier.pad_token_id
        return make_policy(
            classifier.model,
            classifier.tokenizer,
            value_head=classifier.head,
            lora_rank=config.lora_rank,
            lora_alpha=config.lora_alpha,
            dtype=recorded_dtype(config) or config.dtype,
            device=str(classifier.model.device),
            seed=config.seed,
        )

    @override
    def _items_to_train_on(self) -> Sequence[TrajectoryItem]:
        """Return the first item of each pair, whose number is that of the plan."""
        from orbiter.train.preference.material import pairs_of

        return [pair.chosen.first for pair in pairs_of(self.dataset, self.config)]

    @override
    def _held_out(self) -> int:
        from orbiter.train.preference.material import pairs_of

        given = self.eval_dataset
        return 0 if given is None else len(pairs_of(given, self.config))

    @override
    def _workload(self) -> Workload:
        return Workload(method=self.method, value_head=True, trained_tokens=2)

    @override
    def _lengths(self, outline: Outline, items: Sequence[TrajectoryItem]) -> list[int] | None:
        pairs = self._encoded(outline.tokenizer, outline.context_length, self.dataset)
        return [pair.length for pair in pairs]

    @override
    def _card(self) -> Card:
        from dataclasses import replace

        from orbiter.train.engine.models.classifier import AUTO_CLASS

        return replace(super()._card(), auto_class=AUTO_CLASS)

    def _opening(self, policy: Policy, pairs: Sequence[EncodedPair], total: int) -> list[str]:
        """Return the lines shown at the start of a run: its size, and its estimated memory."""
        from orbiter.train.engine.memory import memory_estimate

        config = self.config
        estimate = memory_estimate(
            policy,
            prompts=min(config.batch_size, len(pairs)),
            n=1,
            prompt_tokens=max(pair.length for pair in pairs),
            new_tokens=0,
            trained_tokens=2,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        plan = (
            f"{self.method} of {config.model}: {len(pairs)} pairs, {total} updates on "
            f"{config.batch_size}"
        )
        return [plan, f"memory: {estimate}"]
