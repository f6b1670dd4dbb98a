"""VeRLTrainer: train a language model by reward, in this process or on verl's workers.

The backends do the training (`backend.py`, `cluster/backend.py`); the model is loaded and saved in
`engine/trainer.py`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from orbiter.train.agents.environments.player import EnvironmentAgent
from orbiter.train.agents.episode import entry_of, runs
from orbiter.train.checks import WholeNumber
from orbiter.train.engine.plan import Workload
from orbiter.train.engine.progress import answering
from orbiter.train.engine.tasks import first_given
from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.errors import ConfigError
from orbiter.train.progress import working
from orbiter.train.trainer import TrainerState, TrainMetrics
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.backend import Backend, LocalBackend
from orbiter.train.verl.cluster.backend import ClusterBackend
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.distillation import check_distillation
from orbiter.train.verl.environments import reward_of
from orbiter.train.verl.judged import kept
from orbiter.train.verl.reward import OF_EPISODES, RewardSpec, judges_of
from orbiter.train.verl.tasks import as_tasks

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy
    from orbiter.train.verl.evaluate import Assessment
    from orbiter.train.verl.rehearsal import Rehearsal

BACKENDS: dict[str, type[Backend]] = {"local": LocalBackend, "verl": ClusterBackend}


class VeRLTrainer(ModelTrainer):
    """Trains a language model by reward, with PPO, GRPO or a relative.

    `dataset` is a TrajectoryDataset, a list of TrajectoryItem or a list of prompts. The model
    answers each item's `state` (or its `messages`, if it has any); the rewards score the answer.
    """

    config: VeRLConfig

    def __init__(
        self,
        config: VeRLConfig | None = None,
        rewards: Sequence[RewardSpec] = (),
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        environment: object = None,
        gold: RewardSpec | None = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Store the arguments; the model is loaded when it is first needed.

        Args:
            config: The settings; None means `VeRLConfig()`.
            rewards: The score of an output is the sum of weight · fn(output).
            dataset: The tasks; may also be passed to `train()`.
            eval_dataset: Held-out tasks, for `eval_every` and `evaluate()`.
            agent: A function of a task, sync or async, or an object with `run`: the policy is its
                model, and training uses its whole episodes. Alternatively an object without `run`
                whose `instructions` become the system prompt.
            environment: An environment that the policy acts in, instead of an agent: a class with
                `reset` and `get_reward` whose other public methods are tools, a function that makes
                such an object, or a list of tool functions (`agents/environments/`).
            gold: A more trusted reward, which is not trained by but measured every `gold_every`
                steps on a few held-out tasks: a warning says if the rewards rise without it.
            on_state_change: Called with the old and the new state of the lifecycle.

        Raises:
            ConfigError: the environment cannot be played, or there is an agent too.
        """
        config = VeRLConfig() if config is None else config
        if environment is not None:
            if agent is not None:
                raise ConfigError("give agent= or environment=, not both")
            # From here on an environment is an agent like any other, so no other file has to know
            # of it.
            agent = EnvironmentAgent(environment, system_prompt=config.system_prompt)
            rewards = [*rewards, *reward_of(agent, rewards)]
        super().__init__(
            config,
            dataset=dataset,
            eval_dataset=eval_dataset,
            agent=agent,
            on_state_change=on_state_change,
        )
        self.rewards = tuple(rewards)
        self.gold = gold
        self.method = ALGORITHMS[self.config.algorithm].title
        self._backend = BACKENDS[self.config.backend](self, self.config, self.rewards, gold)

    async def check_reward(self) -> bool:
        """Check that there are rewards with distinct names, and that one has a nonzero weight."""
        needed = ALGORITHMS[self.config.algorithm].needs_reward or self.config.backend == "verl"
        # An agent may give step rewards.
        if not self.rewards and self.running_agent is None and needed:
            raise ConfigError("rewards is empty: give at least one RewardSpec(name=..., fn=...)")
        for reward in self.rewards:
            if not isinstance(reward, RewardSpec):
                raise ConfigError(
                    f"rewards must hold RewardSpec(name=..., fn=...), got {type(reward).__name__}"
                )
        names = [reward.name for reward in self.rewards]
        if len(set(names)) < len(names):
            raise ConfigError(f"two rewards have the same name: {names}")
        # Weight 0 measures a reward without learning from it, but one of them has to teach.
        weighted = any(reward.weight for reward in self.rewards)
        if self.rewards and not weighted and needed:
            raise ConfigError("every reward has weight 0, so all outputs would be equal")
        for reward in self.rewards:
            self._check_signature(reward)
            self._check_judge(reward)
        self._check_gold()
        return True

    def _check_gold(self) -> None:
        """Make sure that the gold reward can be measured beside the others."""
        gold = self.gold
        if gold is None:
            return
        if not self.rewards and self.running_agent is None:
            raise ConfigError("gold= is compared with rewards=, which is empty")
        if not isinstance(gold, RewardSpec):
            raise ConfigError(f"gold must be a RewardSpec, got {type(gold).__name__}")
        if self.config.backend != "local":
            raise ConfigError(f"gold= needs backend='local', got {self.config.backend!r}")
        # Their names become keys of the same metrics: `gold/proxy` and `gold/<name>`.
        if gold.name in {"proxy", *(reward.name for reward in self.rewards)}:
            raise ConfigError(
                f"gold must have another name than 'proxy' and the rewards, got {gold.name!r}"
            )
        if gold.relative:
            raise ConfigError(
                f"gold {gold.name!r} compares answers with each other, so it cannot show whether "
                "they get better over the run; use a function or a Judge"
            )
        self._check_signature(gold)

    def _check_signature(self, reward: RewardSpec) -> None:
        """Make sure that the samples of this run have what a reward asks for."""
        if reward.requires("raw_output") and not self._answers_here:
            raise ConfigError(
                f"reward {reward.name!r} asks for raw_output, which only answers to prompts "
                "have that were sampled with backend='local'; leave the parameter out"
            )
        if reward.needs_episodes and self.running_agent is None:
            raise ConfigError(
                f"reward {reward.name!r} asks for {' or '.join(OF_EPISODES)}, which only "
                "episodes have; pass agent=, a function or an object with run"
            )

    def _check_judge(self, reward: RewardSpec) -> None:
        """Make sure that a judge can score the samples of this run."""
        config = self.config
        if reward.judge is None:
            return
        if config.backend != "local":
            raise ConfigError(
                f"reward {reward.name!r} is a judge, and backend={config.backend!r} calls rewards "
                "in its workers, which cannot reach the judge's model, cache and limits in this "
                "process; use backend='local', or write a function that asks your endpoint"
            )
        if reward.relative and config.group_size < 2:
            raise ConfigError(
                f"reward {reward.name!r} compares the samples of a task with each other, and "
                f"group_size={config.group_size} leaves nothing to compare; use a larger one"
            )
        if config.eval_every and all(each.relative for each in self.rewards):
            raise ConfigError(
                f"eval_every={config.eval_every} answers each held-out task once, and reward "
                f"{reward.name!r} can only compare several answers; add a reward that scores one "
                "answer, such as a Judge"
            )

    def _rewards_for(self, samples: int) -> tuple[RewardSpec, ...]:
        """Return the rewards that can score this many answers to a task.

        Raises:
            ConfigError: all of them compare several answers, and there is one.
        """
        # A single answer has nothing to be compared with.
        chosen = tuple(r for r in self.rewards if samples >= 2 or not r.relative)
        if self.rewards and not chosen:
            raise ConfigError(
                f"reward {self.rewards[0].name!r} compares several answers to a task; give "
                "evaluate(samples=2) or more, or a reward that scores one answer, such as a Judge"
            )
        return chosen

    @property
    def _answers_here(self) -> bool:
        """Whether the samples are answers to prompts that this process draws."""
        return self.running_agent is None and self.config.backend == "local"

    @property
    @override
    def running_agent(self) -> object:
        """The agent whose episodes are trained on; None if `agent` is absent or does not run."""
        return self.agent if runs(self.agent) else None

    @property
    @override
    def system_prompt(self) -> str | None:
        """The system prompt of single answers; an agent that runs writes its own."""
        if self.running_agent is None:
            return super().system_prompt
        return self.config.system_prompt

    @override
    async def check_agent(self) -> bool:
        """Make sure that an agent can be run, or that its instructions are a text."""
        if self.running_agent is None:
            return await super().check_agent()
        entry_of(self.agent)
        return True

    @override
    def _check_data(self, dataset: object) -> None:
        """Make sure that there is data; the tasks of an agent may be any objects."""
        if self.running_agent is None:
            super()._check_data(dataset)
        else:
            as_tasks(dataset)

    @override
    async def check_config(self) -> bool:
        """Make sure that the settings go with an agent, or without one."""
        config = self.config
        check_distillation(config, self.rewards, has_agent=self.running_agent is not None)
        if self.running_agent is None:
            if config.loss_aggregation == "episode":
                raise ConfigError("loss_aggregation='episode' needs agent=; use 'sequence'")
            # An answer to a prompt is one turn, so turns have nothing to share.
            if config.credit != "episode":
                raise ConfigError(f"credit={config.credit!r} needs agent=; an answer has one turn")
            return await super().check_config()
        if config.loss_aggregation == "sequence":
            raise ConfigError(
                "loss_aggregation='sequence' would count an episode once for each of its streams; "
                "use 'episode', 'token' or 'constant'"
            )
        if config.overlong_buffer:
            raise ConfigError(
                f"overlong_buffer={config.overlong_buffer} is for answers to prompts, and agent= "
                "plays episodes; on_truncation handles those that ran into a limit"
            )
        if config.backend == "verl" and getattr(config, "ratio", "token") == "sequence":
            raise ConfigError(
                "ratio='sequence' with agent= on verl would count an episode once for each of its "
                "streams; use ratio='token', or backend='local'"
            )
        if config.system_prompt is not None and not isinstance(self.agent, EnvironmentAgent):
            raise ConfigError("system_prompt has no effect with agent=, which writes its prompts")
        return await super().check_config()

    async def train(self, dataset: object = None) -> TrainMetrics:  # noqa: ARG002 - the lifecycle takes it
        """Train, and return the means of every metric over the last epoch.

        Raises:
            TrainingError: the run diverged, or there was nothing to learn from.
            CallbackError: a reward failed, and `on_reward_error` is "raise".
            DataError: a prompt does not fit, and `on_long_prompt` is "error".
            MissingExtraError: the backend is "verl", and its interpreter does not have verl.
        """
        return await self._backend.train()

    @override
    async def plan(self, dataset: object = None) -> Any:
        """Return the plan of a run, without starting it.

        With `backend="local"` it is a `TrainPlan`: steps, tokens, memory and time. For an agent
        that runs, an episode of each of the first two tasks is played to find out. With
        `backend="verl"` it is a cluster `Plan`: verl's settings, files and machines, checked by
        verl itself.

        Raises:
            ConfigError: the run cannot work; the message lists every reason.
            DataError: a prompt does not fit, and `on_long_prompt` is "error".
            CallbackError: both episodes of the agent failed.
            MissingExtraError: verl's interpreter does not have verl; says what to install.
        """
        if dataset is not None:
            self.dataset = dataset
        await self.validate()
        return await self._backend.plan()

    async def evaluate(
        self, dataset: object = None, *, samples: int = 0, success: float = 1.0
    ) -> TrainMetrics:
        """Answer held-out tasks and return their reward, with a 95 % interval over the tasks.

        With an agent that runs, play its episodes on them.

        Args:
            dataset: The tasks; None means `eval_dataset`, or else the training data.
            samples: With 0, each task is answered once, greedily. With k, it is answered k times at
                the config's temperature, and pass@1 and pass@k are measured.
            success: The smallest total reward that counts as a pass.
        """
        return (await self.assess(dataset, samples=samples, success=success)).metrics

    async def assess(
        self, dataset: object = None, *, samples: int = 0, success: float = 1.0
    ) -> Assessment:
        """Evaluate as `evaluate` does, and return every answer or episode with its score too.

        For a calibrated judge the corrected rate is measured too. The notes of the metrics name the
        judges that are not calibrated.
        """
        WholeNumber(at_least=0)("samples", samples)
        chosen = first_given(dataset, self.eval_dataset, self.dataset)
        await self.check_reward()
        rewards = self._rewards_for(samples)
        if self.running_agent is not None:
            return await self._assess_agent(chosen, samples=samples, success=success)
        policy, tasks = await self.policy(), await self.encode(chosen)
        from orbiter.train.verl.evaluate import (
            Assessment,
            attempts_of,
            judge,
            summary,
            with_corrections,
        )

        answers, longest = len(tasks) * max(1, samples), self.config.max_response_length
        with answering(answers, longest, wanted=self.config.progress) as report:
            async with kept(judges_of(rewards), self.config.output_dir):
                judged = await judge(
                    policy, self.config, rewards, tasks, samples=samples, report=report
                )
        outputs = [rollout.text for rollout in judged.rollouts]
        metrics = summary(judged, len(tasks), success=success)
        if self._has_teacher:
            from orbiter.train.verl.teaching import teaching, with_divergence

            async with teaching(self.config, policy) as teach:
                metrics = await with_divergence(self.config, policy, teach, tasks, metrics)
        assessment = Assessment(metrics, attempts_of(tasks.items, outputs, judged.scores))
        return with_corrections(assessment, judges_of(rewards), samples=max(1, samples))

    async def _assess_agent(self, dataset: object, *, samples: int, success: float) -> Assessment:
        await self.check_agent()
        tasks, policy = as_tasks(dataset), await self.policy()
        from orbiter.train.verl.evaluate import with_corrections
        from orbiter.train.verl.play import PlaySetting, assess

        rewards = self._rewards_for(samples)
        setting = PlaySetting(policy, self.config, self.running_agent, rewards)
        async with kept(judges_of(rewards), self.config.output_dir):
            assessment = await assess(setting, tasks, samples=samples, success=success)
        return with_corrections(assessment, judges_of(rewards), samples=max(1, samples))

    async def rehearse(self, tasks: object) -> Rehearsal:
        """Play one episode of the agent on each of a few tasks, and estimate what a step costs.

        Nothing is trained or written. A failed episode is returned, not raised.

        Raises:
            ConfigError: there is no agent that runs.
        """
        await self.check_agent()
        if self.running_agent is None:
            raise ConfigError("rehearse() plays episodes, and there is no agent= that runs")
        await self.check_reward()
        policy, chosen = await self.policy(), as_tasks(tasks)
        from orbiter.train.verl.play import PlaySetting
        from orbiter.train.verl.rehearsal import rehearse

        setting = PlaySetting(policy, self.config, self.running_agent, self.rewards)
        return await rehearse(setting, chosen)

    @override
    async def save(self, path: str | os.PathLike[str], *, merge: bool = False) -> Path:
        """Write the model with tokenizer and model card; return the folder.

        Hugging Face's layout; adapters in PEFT's, or merged into full weights with `merge=True`.

        Raises:
            StateError: the run ended in a TrainingError, and its model was discarded.
        """
        # The backend's files may hold adapters, so merging loads the model and writes it anew.
        saved = None if merge else await self._backend.save(Path(path))
        return await super().save(path, merge=merge) if saved is None else saved

    @override
    def _loaded(self) -> Policy:
        """Load the model that the backend has trained, or else the config's model."""
        if self._policy is None:
            self._policy = self._backend.load()
        policy = super()._loaded()
        if self._has_teacher and policy.teacher is None:
            from orbiter.train.verl.teaching import load_teacher

            with working(f"loading {self.config.teacher}", shown=self.config.progress):
                try:
                    policy.teacher = load_teacher(self.config, policy)
                except BaseException:
                    self._policy = None  # else the next call would train without a teacher
                    raise
        return policy

    @property
    def _has_teacher(self) -> bool:
        """Whether this process compares the policy with a teacher."""
        return self.config.algorithm == "distill" and self.config.backend == "local"

    @override
    def _policy_parts(self) -> dict[str, Any]:
        """Return whether the policy needs a value head and a reference."""
        value_head = ALGORITHMS[self.config.algorithm].value_head
        return {"value_head": value_head, "reference": self.config.kl_coef > 0}

    @override
    def _workload(self) -> Workload:
        local_teacher = self._has_teacher and self.config.teacher_url is None
        return Workload(
            method=self.method,
            samples=self.config.group_size,
            new_tokens=self.config.max_response_length,
            passes=self.config.ppo_epochs,
            updates=self.config.updates_per_step,
            teacher=self.config.teacher if local_teacher else None,
            compares_heads=local_teacher and not self.config.distills_sampled,
            **self._policy_parts(),
        )
