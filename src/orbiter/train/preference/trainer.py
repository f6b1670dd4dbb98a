"""PreferenceTrainer: learn from pairs of a better and a worse answer, or from verdicts.

The training loop is in `local.py`; the model is loaded and saved in `engine/trainer.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.plan import Workload
from orbiter.train.engine.tasks import first_given
from orbiter.train.engine.trainer import ModelTrainer, as_metrics
from orbiter.train.preference.config import PreferenceConfig
from orbiter.train.trainer import TrainerState, TrainMetrics
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from orbiter.train.engine.models.outline import Outline
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.session import Session
    from orbiter.train.preference.encoding import EncodedAttempt
    from orbiter.train.preference.local import Preferences
    from orbiter.train.preference.material import Material
    from orbiter.train.preference.reference import ReferenceLogprobs

log = logging.getLogger(__name__)

ANSWERS_AT_ONCE = 64
"""Answers that the reference scores between two checks for cancellation."""


class PreferenceTrainer(ModelTrainer):
    """Trains a language model to prefer the better of two answers, or answers judged good.

    The data set holds items with rewards or labels: several answers to one state, or several
    episodes of one `task_id`. It may also be a list of pairs of items. Only answers are trained on;
    captured ones by the token ids that the server sampled.
    """

    config: PreferenceConfig

    def __init__(
        self,
        config: PreferenceConfig | None = None,
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Store the arguments; the model is loaded when it is first needed.

        Args:
            config: The settings; None means `PreferenceConfig()`.
            dataset: The items or pairs; may also be passed to `train()`.
            eval_dataset: Held-out items or pairs, for `eval_every` and `evaluate()`.
            agent: An object whose `instructions` become the system prompt.
            on_state_change: Called with the old and the new state of the lifecycle.
        """
        super().__init__(
            PreferenceConfig() if config is None else config,
            dataset=dataset,
            eval_dataset=eval_dataset,
            agent=agent,
            on_state_change=on_state_change,
        )
        self.method = self.config.method.upper()
        self._reference: ReferenceLogprobs | None = None
        self._moved: Policy | None = None
        """The policy, once its weights may differ from those that it began with."""
        self._weights = ""
        """A hash of the weights that the policy began with; "" if no reference is needed."""

    @override
    def _check_data(self, dataset: object) -> None:
        """Check that the data make pairs, or with KTO have good and bad answers."""
        from orbiter.train.preference.material import judged, pairs_of

        if self.config.method.is_paired:
            pairs_of(dataset, self.config)
        else:
            judged(dataset, self.config)

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
            StorageError: the run in `output_dir` had another reference.
        """
        policy = await self.policy()
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.preference.local import PreferenceJob, fit

        config = self.config
        learned = await self._preferences(policy, self.dataset)
        held_out = learned
        if self.eval_dataset is not None:
            held_out = await self._preferences(policy, self.eval_dataset)
        material = learned.material
        per_epoch = material.order.steps_per_epoch(config.batch_size)
        session = await work(
            Session, config, policy, material.everything, steps_per_epoch=per_epoch
        )
        if session.position.update:  # a checkpoint was restored
            self._moved = policy

        def measure_held_out() -> Awaitable[Mapping[str, float]]:
            return self._measure(policy, held_out)

        opening = self._opening(policy, material, session.steps)
        async with self.running(session, opening, data=self._size(material)) as progress:
            wanted = [*material.attempts, *held_out.material.attempts]
            if await self._refer(policy, wanted, session=session, say=progress.say):
                self._moved = policy
                job = PreferenceJob(
                    preferences=learned,
                    session=session,
                    progress=progress,
                    validate=self.validation(session, measure_held_out, _score),
                )
                await fit(job)
        return self.results()

    async def evaluate(self, dataset: object = None) -> TrainMetrics:
        """Measure how well the model ranks held-out answers.

        `accuracy` is the share of pairs whose better answer has the higher implicit reward, and
        `margin` the mean difference of the two, each with an interval over tasks (`accuracy_low`,
        `accuracy_high`, ...). An untrained model equals its reference: its margins are 0, and none
        counts as right. With KTO, `accuracy` is the share of answers on their side of the reference
        point. Without `dataset`, `eval_dataset` is used, or else the training data.
        """
        chosen = first_given(dataset, self.eval_dataset, self.dataset)
        policy = await self.policy()
        preferences = await self._preferences(policy, chosen)
        await self._refer(policy, preferences.material.attempts)
        return as_metrics(await self._measure(policy, preferences))

    async def _measure(self, policy: Policy, preferences: Preferences) -> Mapping[str, float]:
        from orbiter.train.preference.local import measure

        return (await measure(policy, preferences)).metrics()

    async def _preferences(self, policy: Policy, dataset: object) -> Preferences:
        from orbiter.train.engine.thread import work
        from orbiter.train.preference.local import Preferences
        from orbiter.train.preference.reference import ReferenceLogprobs, weights_digest

        material = await work(self._material, policy.tokenizer, policy.context_length, dataset)
        if self._reference is None:
            self._reference = ReferenceLogprobs()
            if self.config.method.needs_reference:
                self._weights = await work(weights_digest, policy)
        return Preferences(config=self.config, material=material, reference=self._reference)

    def _material(
        self, tokenizer: PreTrainedTokenizerBase, context: int, dataset: object
    ) -> Material:
        from orbiter.train.preference.material import make_material

        return make_material(
            tokenizer, dataset, self.config, context=context, system=self.system_prompt
        )

    async def _refer(
        self,
        policy: Policy,
        attempts: Sequence[EncodedAttempt],
        *,
        session: Session | None = None,
        say: Callable[[str], None] = log.debug,
    ) -> bool:
        """Compute the log probabilities under the reference that are not known yet.

        Those of a session are kept in its folder.

        Returns:
            False if the session was asked to stop before all were computed.
        """
        from orbiter.train.engine.thread import work
        from orbiter.train.preference.reference import logprobs_of

        if not self.config.method.needs_reference:
            return True
        assert self._reference is not None, "made by _preferences"
        output_dir = None if session is None else self.config.output_dir
        folder = None if output_dir is None else Path(output_dir)
        about = {"weights": self._weights, "dtype": policy.dtype}
        is_new = session is not None and session.position.update == 0
        with self._reference.kept_in(folder, about, is_new_run=is_new) as keep:
            missing = self._reference.missing(attempts)
            if not missing:
                return True
            say(f"reference: {len(missing)} answers are scored once, before the first update")
            begun = await work(self._begun_as, policy)
            for first in range(0, len(missing), ANSWERS_AT_ONCE):
                if session is not None and session.stopping:
                    return False
                part = missing[first : first + ANSWERS_AT_ONCE]
                numbers = await work(
                    logprobs_of,
                    begun,
                    part,
                    micro_batch_tokens=self.config.micro_batch_tokens,
                    reference=policy.adapted,
                )
                await work(keep, part, numbers)
        return True

    def _begun_as(self, policy: Policy) -> Policy:
        """Return the policy as it began; one with adapters has it within itself."""
        if policy.adapted or self._moved is not policy:
            return policy
        from orbiter.train.engine.models.load import load_model
        from orbiter.train.engine.policy import make_policy

        config = self.config
        loaded = load_model(
            config.model, device=config.device, trust_remote_code=config.trust_remote_code
        )
        return make_policy(
            loaded.model, loaded.tokenizer, dtype=policy.dtype, device=str(policy.device)
        )

    @override
    def _items_to_train_on(self) -> Sequence[TrajectoryItem]:
        """Return the first item of each pair or answer, whose number is that of the plan."""
        from orbiter.train.preference.material import judged, pairs_of

        if self.config.method.is_paired:
            return [pair.chosen.first for pair in pairs_of(self.dataset, self.config)]
        return [attempt.first for attempt in judged(self.dataset, self.config)]

    @override
    def _held_out(self) -> int:
        if self.eval_dataset is None:
            return 0
        from orbiter.train.preference.material import judged, pairs_of

        paired = self.config.method.is_paired
        return len((pairs_of if paired else judged)(self.eval_dataset, self.config))

    @override
    def _workload(self) -> Workload:
        return Workload(method=self.method)

    @override
    def _lengths(self, outline: Outline, items: Sequence[TrajectoryItem]) -> list[int] | None:
        material = self._material(outline.tokenizer, outline.context_length, self.dataset)
        return list(material.lengths)

    def _opening(self, policy: Policy, material: Material, total: int) -> list[str]:
        """Return the lines shown at the start of a run: its size, and its estimated memory."""
        from orbiter.train.engine.memory import memory_estimate

        config = self.config
        estimate = memory_estimate(
            policy,
            prompts=min(config.batch_size, len(material)),
            n=1,
            prompt_tokens=max(material.lengths),
            new_tokens=0,
            trained_tokens=material.most_trained,
            micro_batch_tokens=config.micro_batch_tokens,
        )
        plan = (
            f"{self.method} of {config.model}: {self._size(material)}, {total} updates on "
            f"{config.batch_size}, beta={config.strength:g}"
        )
        return [plan, f"memory: {estimate}"]

    def _size(self, material: Material) -> str:
        return f"{len(material)} {'pairs' if self.config.method.is_paired else 'answers'}"


def _score(measured: Mapping[str, float]) -> float:
    """Return by what the best model is kept: the loss on held-out pairs."""
    return -measured["loss"]
