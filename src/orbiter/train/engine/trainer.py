"""The base class of all language-model trainers: it loads, samples from and saves the model.

The training methods are in `verl/` and `sft/`. This file does not import torch until it is needed,
so a trainer can be created and validated without it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orbiter.train.engine.config import (
    EngineConfig,
    longest_prompt,
    recorded_dtype,
    settings_of,
)
from orbiter.train.engine.models.saved_files import refuse_reward_model
from orbiter.train.engine.progress import answering
from orbiter.train.engine.tasks import Tasks, as_items, make_tasks, read_once
from orbiter.train.errors import ConfigError, DataError, StateError, TrainingError, require
from orbiter.train.evaluation import Interval
from orbiter.train.progress import Progress, make_progress, working
from orbiter.train.trainer import Trainer, TrainerState, TrainMetrics
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from orbiter.train.engine.models.export import Card
    from orbiter.train.engine.models.outline import Outline
    from orbiter.train.engine.plan import TrainPlan, Workload
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.session import Session


class Stoppable(Protocol):
    """A run that ends after its current step once `stopping` is set."""

    stopping: bool


class ModelTrainer(Trainer):
    """A trainer of a causal language model on this machine."""

    config: EngineConfig
    method = "training"
    """Name of the method, for logs and the model card."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Store the arguments; the model is loaded when it is first needed."""
        super().__init__(agent, dataset, None, config, on_state_change=on_state_change)
        self.eval_dataset = eval_dataset
        self.history: list[dict[str, float]] = []
        """The metrics of each step of the last training, in order."""
        self.stopped = False
        """Whether the last training ended early because `stop()` was called."""
        self._run: Stoppable | None = None
        """The run in progress."""
        self._policy: Policy | None = None
        self._discarded = False
        """Whether the last run diverged, so that there is no model to save."""
        self._results: dict[str, float] = {}
        self._data = ""

    @property
    def training(self) -> bool:
        """Whether a training that `stop()` can end is in progress."""
        return self._run is not None

    def stop(self) -> None:
        """End the training after its current step, with a checkpoint; callable from any thread.

        On verl the resulting model is that of the last checkpoint; see `save_every`.
        """
        if self._run is not None:
            # A flag that the loop reads between steps; setting it is safe in a signal handler too.
            self._run.stopping = True

    async def plan(self, dataset: object = None) -> TrainPlan:
        """Return the steps, tokens, memory and time a run would take, without starting it.

        A model that is not on this machine is not downloaded; fields that depend on it are None.

        Raises:
            ConfigError: the run cannot work; the message lists every reason.
            DataError: a prompt does not fit, and `on_long_prompt` is "error".
            StorageError: the model is a folder that does not hold a model.
        """
        if dataset is not None:
            self.dataset = dataset
        await self.validate()
        return await self.estimate()

    async def estimate(self) -> TrainPlan:
        """Estimate a run of this trainer, which must have been validated."""
        require("torch", extra="train")
        from orbiter.train.engine.estimate import make_plan
        from orbiter.train.engine.thread import work

        return await work(
            make_plan,
            self.config,
            self._workload(),
            self._items_to_train_on(),
            held_out=self._held_out(),
            system=self.system_prompt,
            lengths=self._lengths,
        )

    def _lengths(self, outline: Outline, items: Sequence[TrajectoryItem]) -> list[int] | None:
        """Return the tokens of each sequence to train on; None if prompts are answered instead."""
        del outline, items
        return None

    def _workload(self) -> Workload:
        """Return the work that one step requires of the model."""
        raise NotImplementedError(f"{type(self).__name__} does not implement _workload()")

    def _items_to_train_on(self) -> Sequence[TrajectoryItem]:
        return as_items(self.dataset)

    def _held_out(self) -> int:
        return 0 if self.eval_dataset is None else len(as_items(self.eval_dataset))

    # Checks that run before a model is loaded.

    async def check_agent(self) -> bool:
        """Check that the agent's instructions can become the system prompt."""
        self.system_prompt  # noqa: B018 - read for the error it raises
        return True

    async def check_dataset(self) -> bool:
        """Check that there is valid training data, and valid evaluation data if it is given."""
        if self.dataset is None:
            raise DataError(
                "there is no data set; pass one to train(), or as dataset= to the constructor"
            )
        self.dataset = read_once(self.dataset)
        self._check_data(self.dataset)
        if self.eval_dataset is not None:
            self.eval_dataset = read_once(self.eval_dataset)
            self._check_held_out(self.eval_dataset)
        return True

    def _check_data(self, dataset: object) -> None:
        """Raise a `DataError` if this trainer cannot learn from the data."""
        as_items(dataset)

    def _check_held_out(self, dataset: object) -> None:
        """The same for held-out data, of which the error may say so."""
        self._check_data(dataset)

    async def check_config(self) -> bool:
        """Check that `eval_every` comes with held-out data, and that the model can answer."""
        self._check_model()
        if self.config.eval_every and self.eval_dataset is None:
            raise ConfigError(
                f"eval_every={self.config.eval_every} needs eval_dataset=, the held-out items to "
                "validate on"
            )
        return True

    def _check_model(self) -> None:
        """Refuse a saved model of a kind that this trainer cannot train."""
        refuse_reward_model(Path(self.config.model).expanduser())

    @property
    def running_agent(self) -> object:
        """The agent that this trainer runs; None where it runs none."""
        return None

    @property
    def system_prompt(self) -> str | None:
        """The system prompt of every prompt: the config's, else the agent's instructions.

        Raises:
            ConfigError: the agent has no `instructions`, the only attribute that is read of it.
        """
        if self.agent is None:
            return self.config.system_prompt
        instructions = getattr(self.agent, "instructions", None)
        if not isinstance(instructions, str):
            if callable(self.agent) or callable(getattr(self.agent, "run", None)):
                # Ignoring the agent would train on single answers that it never produced.
                raise ConfigError(
                    f"{type(self).__name__} does not run agents, and agent= is one that runs "
                    f"({type(self.agent).__name__}): train it by reward with VeRLTrainer, or "
                    "capture its episodes with orbiter.train.capture.collect and train on the "
                    "items without agent="
                )
            raise ConfigError(
                "agent must have `instructions` as a text, which become the system prompt; "
                f"{type(self.agent).__name__} has {instructions!r}"
            )
        return instructions if self.config.system_prompt is None else self.config.system_prompt

    async def generate(
        self,
        prompts: Sequence[str | TrajectoryItem],
        *,
        temperature: float = 0.0,
        max_response_length: int | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> list[str]:
        """Answer every prompt `samples` times; the answers to one prompt are adjacent.

        Temperature 0 is greedy.

        Raises:
            DataError: a prompt does not fit the model's context.
        """
        if isinstance(prompts, str):
            raise DataError("generate() takes a list of prompts; put this one into a list")
        if not prompts:
            return []
        policy = await self.policy()
        from orbiter.train.engine.sample import sample
        from orbiter.train.engine.thread import work

        room = max_response_length or self.config.max_response_length
        tasks = await work(
            make_tasks,
            as_items(prompts),
            self._encoder(policy),
            # The answer shares the context with its prompt.
            room=lambda item: policy.context_length - room,  # noqa: ARG005 - the same for all
        )
        with answering(len(tasks) * samples, room, wanted=self.config.progress) as report:
            rollouts = await work(
                sample,
                policy,
                tasks.prompts,
                n=samples,
                max_new_tokens=room,
                temperature=temperature,
                seed=seed,
                report=report,
            )
        return [rollout.text for rollout in rollouts]

    async def save(self, path: str | os.PathLike[str], *, merge: bool = False) -> Path:
        """Write the model with tokenizer and model card; return the folder.

        Hugging Face's layout; adapters in PEFT's, or merged into full weights with `merge=True`.

        Raises:
            StateError: the run ended in a TrainingError, and its model was discarded.
        """
        if self._discarded:
            raise StateError(
                "there is no trained model to save: the run ended with an error, and its weights "
                "were discarded; train again"
            )
        policy = await self.policy()
        from orbiter.train.engine.models.export import save_policy
        from orbiter.train.engine.thread import work

        return await work(save_policy, policy, path, self._card(), merge=merge)

    async def policy(self) -> Policy:
        """Return the model, loading it at the first call.

        Raises:
            StorageError: the model cannot be loaded; the message lists what was tried.
            MissingExtraError: torch or transformers is not installed.
        """
        require("torch", extra="train")
        from orbiter.train.engine.thread import work

        return await work(self._loaded)

    def _loaded(self) -> Policy:
        """Load the model at the first call; runs on the engine's thread, so it loads only once."""
        config = self.config
        if self._policy is None:
            with working(f"loading {config.model}", shown=config.progress):  # imports torch, too
                from orbiter.train.engine.models.load import load_model
                from orbiter.train.engine.policy import make_policy

                loaded = load_model(
                    config.model, device=config.device, trust_remote_code=config.trust_remote_code
                )
            dtype = recorded_dtype(config) or config.dtype
            self._policy = make_policy(
                loaded.model,
                loaded.tokenizer,
                lora_rank=config.lora_rank,
                lora_alpha=config.lora_alpha,
                dtype=dtype,
                device=str(loaded.model.device),
                seed=config.seed,
                **self._policy_parts(),
            )
        return self._policy

    def _policy_parts(self) -> dict[str, Any]:
        """Return the arguments of `make_policy` that the training method adds."""
        return {}

    def _encoder(self, policy: Policy) -> Callable[[TrajectoryItem, int | None], list[int]]:
        from orbiter.train.engine.prompt import render, shorten

        system = self.system_prompt

        def encode(item: TrajectoryItem, longest: int | None) -> list[int]:
            if longest is None:
                return render(policy.tokenizer, item, system=system)
            return shorten(policy.tokenizer, item, longest, system=system)

        return encode

    async def encode(self, dataset: object) -> Tasks:
        """Return the data set's items with tokenized prompts, applying `on_long_prompt`."""
        policy = await self.policy()
        from orbiter.train.engine.thread import work

        longest = longest_prompt(self.config, policy.context_length)
        return await work(
            make_tasks, as_items(dataset), self._encoder(policy),
            room=lambda item: longest,  # noqa: ARG005 - the same for all
            on_long_prompt=self.config.on_long_prompt,
        )  # fmt: skip

    @asynccontextmanager
    async def running(
        self, session: Session, opening: Sequence[str], *, data: str
    ) -> AsyncIterator[Progress]:
        """Show a progress bar while the body trains on an open session, and close it afterwards.

        A cancelled run is saved at its current update if `save_every` is set; a diverged model is
        discarded. `data` describes the training data for the model card.
        """
        from orbiter.train.engine.thread import work

        config = self.config
        computes = await work(lambda: session.policy.computes)
        with self.running_elsewhere(session, session.history, data=data):
            try:
                with make_progress(
                    self.method,
                    session.steps,
                    done=session.position.step,
                    shown=None if config.progress else False,
                ) as progress:
                    for line in (f"computes in {computes}", *opening):
                        progress.say(line)
                    yield progress
                # Asked to stop during the last step, it has ended normally.
                self.stopped = session.stopping and session.position.step < session.steps
                if config.save_every or self.stopped:
                    await work(session.save)
            except asyncio.CancelledError:
                if config.save_every:
                    await work(session.save)
                raise
            except TrainingError:
                # Its weights are no longer finite, and saving them would replace a model that
                # works.
                self._policy, self._discarded = None, True
                raise
            finally:
                session.close()
        self._results = session.epoch_means

    @contextmanager
    def running_elsewhere(
        self, run: Stoppable, history: list[dict[str, float]], *, data: str
    ) -> Iterator[None]:
        """Expose a run's history, and let `stop()` reach the run while it lasts."""
        self.history, self._run, self._data = history, run, data
        self.stopped = self._discarded = False
        try:
            yield
        finally:
            self._run = None

    def results(
        self, measured: Mapping[str, float] | None = None, *, stopped: bool = False
    ) -> TrainMetrics:
        """Return the last run's metrics; a run on another backend passes them as `measured`."""
        if measured is not None:
            self._policy, self._results, self.stopped = None, dict(measured), stopped
        return as_metrics(self._results)

    def validation(
        self,
        session: Session,
        measure: Callable[[], Awaitable[Mapping[str, float]]],
        score: Callable[[Mapping[str, float]], float],
    ) -> Callable[[int], Awaitable[Mapping[str, float]]]:
        """Return a function for the loop to call after every step.

        Every `eval_every` steps it validates the policy, and saves it if it is the best so far.
        """

        async def validate(step: int) -> Mapping[str, float]:
            if not self.config.eval_every or step % self.config.eval_every:
                return {}
            measured = await measure()
            await self._keep_best(session, score(measured))
            return {f"eval/{k}": v for k, v in measured.items() if math.isfinite(v)}

        return validate

    def _card(self) -> Card:
        from orbiter.train.engine.models.export import Card

        settings = settings_of(self.config)
        return Card(
            base_model=str(settings.pop("model")),
            method=self.method,
            settings=settings,
            results=self._results,
            data=self._data,
        )

    async def _keep_best(self, session: Session, score: float) -> None:
        """Save the model to `output_dir`/best if its validation score is the best so far."""
        best = session.position.best
        if best is None or score > best:
            if self.config.output_dir is not None:
                await self.save(Path(self.config.output_dir) / "best")
            session.position.best = score


def as_metrics(
    measured: Mapping[str, float], *, reward_interval: Interval | None = None
) -> TrainMetrics:
    """Return named numbers as TrainMetrics; names without a field go to `extra`."""
    return TrainMetrics(
        measured.get("loss"),
        measured.get("accuracy"),
        measured.get("reward"),
        reward_interval=reward_interval,
        extra={k: v for k, v in measured.items() if k not in ("loss", "accuracy", "reward")},
    )
