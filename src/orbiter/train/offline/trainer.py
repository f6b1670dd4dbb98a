"""OfflineTrainer: learn from logged episodes, without running an agent or sampling anything.

The training loop is in `local.py`; the model is loaded and saved in `engine/trainer.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.plan import Workload
from orbiter.train.engine.tasks import Tasks, as_items, first_given
from orbiter.train.engine.trainer import ModelTrainer, as_metrics
from orbiter.train.errors import DataError
from orbiter.train.offline.config import OfflineConfig
from orbiter.train.trainer import TrainerState, TrainMetrics
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from orbiter.train.agents.logged import LoggedEpisode
    from orbiter.train.engine.models.outline import Outline
    from orbiter.train.engine.policy import Policy
    from orbiter.train.offline.local import Log

log = logging.getLogger(__name__)


class OfflineTrainer(ModelTrainer):
    """Trains a language model on logged episodes and their rewards.

    `dataset` holds captured items with token ids; the items of an episode share an `episode_id`,
    the attempts at a task a `task_id`. The recorded tokens are used unchanged: nothing is rendered
    again, and only sampled tokens are trained on.
    """

    config: OfflineConfig

    def __init__(
        self,
        config: OfflineConfig | None = None,
        *,
        dataset: object = None,
        eval_dataset: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Store the arguments; the model is loaded when it is first needed.

        Args:
            config: The settings; None means `OfflineConfig()`.
            dataset: The logged items; may also be passed to `train()`.
            eval_dataset: Held-out logged items, for `eval_every` and `evaluate()`.
            on_state_change: Called with the old and the new state of the lifecycle.
        """
        super().__init__(
            OfflineConfig() if config is None else config,
            dataset=dataset,
            eval_dataset=eval_dataset,
            on_state_change=on_state_change,
        )
        self.method = f"offline {self.config.method}"

    async def check_reward(self) -> bool:
        """Check that some logged episode has a reward."""
        if self.dataset is not None and all(item.reward is None for item in as_items(self.dataset)):
            raise DataError(
                "no logged item has a reward; give each episode one, or imitate them with "
                "SFTTrainer"
            )
        return True

    async def train(self, dataset: object = None) -> TrainMetrics:  # noqa: ARG002 - the lifecycle takes it
        """Train, and return the means of every metric over the last epoch.

        Raises:
            TrainingError: the run diverged.
            DataError: token ids or log probabilities are missing or of another tokenizer, the
                effective sample size is too small, or there is nothing to learn from.
        """
        policy = await self.policy()
        from orbiter.train.engine.session import Session
        from orbiter.train.engine.thread import work
        from orbiter.train.offline.local import OfflineJob, fit, require_signal

        config = self.config
        episodes = await self._log(policy, as_items(self.dataset))
        require_signal(episodes, config)
        held_out = episodes
        if self.eval_dataset is not None:
            held_out = await self._log(policy, as_items(self.eval_dataset))
        # By task, since the episodes of a task are compared with each other.
        order = episodes.order
        per_epoch = order.steps_per_epoch(config.batch_size)
        session = await work(
            Session, config, policy, _all_items(episodes), steps_per_epoch=per_epoch
        )
        # A resumed policy has moved away on purpose.
        if session.position.step == 0:
            await self._require_overlap(policy, episodes)

        def measure_held_out() -> Awaitable[Mapping[str, float]]:
            return self._measure(policy, held_out)

        opening = self._opening(policy, episodes, session.steps)
        async with self.running(session, opening, data=_size(episodes)) as progress:
            job = OfflineJob(
                config=config,
                log=episodes,
                session=session,
                progress=progress,
                validate=self.validation(session, measure_held_out, _score),
            )
            await fit(job)
        return self.results()

    async def evaluate(self, dataset: object = None) -> TrainMetrics:
        """Estimate from held-out logged episodes how well the policy would do.

        `reward` is the mean reward of the episodes, weighted by how much likelier the policy is to
        sample each than the policy that did (self-normalised importance sampling), with
        `effective_share`, the share of the episodes that this estimate rests on. Without stored log
        probabilities only `loss` is measured: the negative log likelihood in nats a token.
        """
        chosen = first_given(dataset, self.eval_dataset, self.dataset)
        policy = await self.policy()
        return as_metrics(await self._measure(policy, await self._log(policy, as_items(chosen))))

    async def _measure(self, policy: Policy, episodes: Log) -> Mapping[str, float]:
        from orbiter.train.offline.local import measure

        # One episode without them would count with a wrong weight.
        known = all(_has_logprobs(episode) for episode in episodes.episodes)
        measured = await measure(policy, self.config, episodes, ratios=known)
        metrics = {"loss": measured.loss}
        if measured.log_ratio is not None:
            # The softmax of log ratios is the ratios divided by their sum.
            weight = measured.log_ratio.double().softmax(0)
            rewards = weight.new_tensor([episode.reward for episode in episodes.episodes])
            metrics["reward"] = float((weight * rewards).sum())
            metrics["effective_share"] = _effective_share(measured.log_ratio)
        return metrics

    async def _require_overlap(self, policy: Policy, episodes: Log) -> None:
        """Refuse episodes that the policy would hardly ever sample.

        Raises:
            DataError: the effective sample size is below `min_effective_share`.
        """
        from orbiter.train.offline.local import measure

        config = self.config
        if not config.method.needs_logprobs:
            return
        measured = await measure(policy, config, episodes, ratios=True)
        assert measured.log_ratio is not None
        share, count = _effective_share(measured.log_ratio), len(episodes.episodes)
        log.info("effective sample size: %.3g of %d logged episodes", share * count, count)
        if share < config.min_effective_share:
            raise DataError(
                f"the effective sample size of the {count} logged episodes is {share * count:.3g}, "
                f"{share:.2%} of them and below min_effective_share="
                f"{config.min_effective_share:g}: this model is too different from the one that "
                "sampled them (other weights, or other temperature than temperature="
                f"{config.temperature:g}). Start from the model that sampled, or use "
                "method='awr' or 'imitate', which do not compare the two"
            )

    async def _log(self, policy: Policy, items: Sequence[TrajectoryItem]) -> Log:
        from orbiter.train.engine.thread import work

        return await work(self._read, policy, items)

    def _read(self, policy: Policy, items: Sequence[TrajectoryItem]) -> Log:
        from orbiter.train.offline.local import make_log

        return make_log(self._episodes(policy.tokenizer, policy.context_length, items), self.config)

    def _episodes(
        self, tokenizer: PreTrainedTokenizerBase, context: int, items: Sequence[TrajectoryItem]
    ) -> list[LoggedEpisode]:
        """Read the episodes; drop or refuse those that do not fit the context."""
        from orbiter.train.agents.logged import logged_episodes

        config = self.config
        # The stored log probabilities are those of the temperature that the server drew with.
        _warn_of_temperatures(items, config.temperature)
        logged = logged_episodes(
            items,
            tokenizer,
            logprobs=config.method.needs_logprobs,
            failed_too=config.failed_episodes,
        )
        left_out = dict(logged.left_out)
        kept = [episode for episode in logged.episodes if _longest(episode) <= context]
        if too_long := len(logged.episodes) - len(kept):
            if config.on_long_prompt == "error":
                most = max(map(_longest, logged.episodes))
                raise DataError(
                    f"{too_long} of {len(logged.episodes)} logged episodes do not fit the model's "
                    f"context of {context} tokens; the longest has {most}; set "
                    "on_long_prompt='drop' to leave them out"
                )
            left_out["too long"] = too_long
        if left_out:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            log.warning("logged episodes left out: %s", reasons)
        if not kept:
            raise DataError("no logged episode fits the model's context")
        return kept

    @override
    def _items_to_train_on(self) -> Sequence[TrajectoryItem]:
        return as_items(self.dataset)

    @override
    def _workload(self) -> Workload:
        # The ratios take a forward pass before each update.
        return Workload(method=self.method, passes=2 if self.config.method.needs_logprobs else 1)

    @override
    def _lengths(self, outline: Outline, items: Sequence[TrajectoryItem]) -> list[int] | None:
        from orbiter.train.offline.local import make_log

        episodes = self._episodes(outline.tokenizer, outline.context_length, items)
        groups = make_log(episodes, self.config).groups
        return [
            sum(len(s.token_ids) for position in group for s in episodes[position].streams)
            for group in groups
        ]

    def _opening(self, policy: Policy, episodes: Log, total: int) -> list[str]:
        """Return the lines shown at the start of a run: its size, and its estimated memory."""
        from orbiter.train.engine.memory import memory_estimate

        largest = max(map(len, episodes.groups))
        estimate = memory_estimate(
            policy,
            prompts=min(self.config.batch_size, len(episodes)) * largest,
            n=1,
            prompt_tokens=max(map(_longest, episodes.episodes)),
            new_tokens=0,
            trained_tokens=episodes.longest,
            micro_batch_tokens=self.config.micro_batch_tokens,
        )
        plan = (
            f"{self.method} of {self.config.model}: {_size(episodes)}, {total} updates on "
            f"{self.config.batch_size} tasks"
        )
        return [plan, f"memory: {estimate}"]


def _all_items(episodes: Log) -> Tasks:
    """Return all training items, by which a resumed run recognises its data."""
    items = [item for episode in episodes.episodes for item in episode.items]
    return Tasks(items, [[]] * len(items))


def _size(episodes: Log) -> str:
    return f"{len(episodes.episodes)} logged episodes of {len(episodes)} tasks"


def _longest(episode: LoggedEpisode) -> int:
    return max(len(stream.token_ids) for stream in episode.streams)


def _has_logprobs(episode: LoggedEpisode) -> bool:
    return all(item.logprobs is not None for item in episode.items)


def _effective_share(log_ratio: Tensor) -> float:
    from orbiter.train.rl.off_policy import effective_sample_size

    return float(effective_sample_size(log_ratio)) / len(log_ratio)


def _score(measured: Mapping[str, float]) -> float:
    """Return the score that selects the best model: estimated reward, or else likelihood."""
    # The best model has the highest score, and the lowest loss.
    return measured.get("reward", -measured["loss"])


def _warn_of_temperatures(items: Sequence[TrajectoryItem], expected: float) -> None:
    """Warn about answers that were captured at a different temperature than the config's."""
    seen: Counter[object] = Counter()
    for item in items:
        params = item.metadata.get("params")
        asked = params.get("temperature") if isinstance(params, Mapping) else None
        if isinstance(asked, int | float) and abs(asked - expected) > 1e-6:
            seen[asked] += 1
    for asked, count in seen.most_common(1):
        log.warning(
            "%d of %d answers were asked for at temperature %s, and temperature=%g here; if the "
            "server followed the request and its log probabilities are those of the distribution "
            "it drew from, set temperature=%s",
            *(count, len(items), asked, expected, asked),
        )
