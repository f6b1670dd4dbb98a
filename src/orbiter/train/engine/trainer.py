"""What the trainers of the local engine share: one model, loaded once, asked, saved and described.

Left out: what is learned and how (`verl/`, `sft/`). This file loads no torch by itself; a trainer
can be made and checked without it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orbiter.train.engine.config import EngineConfig, settings_of
from orbiter.train.engine.progress import Progress, make_progress
from orbiter.train.engine.tasks import Tasks, as_items, make_tasks
from orbiter.train.errors import ConfigError, DataError, StateError, TrainingError, require
from orbiter.train.evaluation import Interval
from orbiter.train.runlog.log import RUN_FILE, read_config
from orbiter.train.trainer import Trainer, TrainerState, TrainMetrics
from orbiter.train.trajectory import TrajectoryItem

if TYPE_CHECKING:
    from orbiter.train.engine.models.export import Card
    from orbiter.train.engine.policy import Policy
    from orbiter.train.engine.session import Session


class ModelTrainer(Trainer):
    """A trainer of a causal language model on this machine."""

    config: EngineConfig
    method = "training"
    """How it trains, in a word, for the model card."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        dataset: object = None,
        eval_dataset: object = None,
        agent: object = None,
        on_state_change: Callable[[TrainerState, TrainerState], object] | None = None,
    ) -> None:
        """Take what to train on; nothing is loaded before it is needed."""
        super().__init__(agent, dataset, None, config, on_state_change=on_state_change)
        self.eval_dataset = eval_dataset
        self.history: list[dict[str, float]] = []
        """The metrics of every step of the last training, in order."""
        self.stopped = False
        """Whether the last training ended early because `stop()` was called."""
        self._session: Session | None = None
        self._policy: Policy | None = None
        self._thrown_away = False
        self._results: dict[str, float] = {}
        self._data = ""

    def stop(self) -> None:
        """End a training under way behind its present step, with a checkpoint; from any thread."""
        if self._session is not None:
            self._session.stopping = True

    # The checks: all before a model is loaded.

    async def check_agent(self) -> bool:
        """Make sure that an agent's instructions can stand before every prompt."""
        self.system_prompt  # noqa: B018 - asked for its error
        return True

    async def check_dataset(self) -> bool:
        """Make sure that there is something to learn from, and to validate on where asked for."""
        if self.dataset is None:
            raise DataError("there is no data set; give train() one, or dataset= at construction")
        as_items(self.dataset)
        if self.eval_dataset is not None:
            as_items(self.eval_dataset)
        return True

    async def check_config(self) -> bool:
        """Make sure that a validation during training has data of its own."""
        if self.config.eval_every and self.eval_dataset is None:
            raise ConfigError(
                f"eval_every={self.config.eval_every} needs eval_dataset=, the held-out items to "
                "validate on"
            )
        return True

    @property
    def system_prompt(self) -> str | None:
        """What stands before every prompt: the config's words, else the agent's instructions."""
        if self.config.system_prompt is not None or self.agent is None:
            return self.config.system_prompt
        instructions = getattr(self.agent, "instructions", None)
        if not isinstance(instructions, str):
            if callable(self.agent) or callable(getattr(self.agent, "run", None)):
                return None  # what `collect` runs puts its own words into the conversations
            raise ConfigError(
                "agent must have `instructions` as a text, which become the system prompt; "
                f"{type(self.agent).__name__} has {instructions!r}"
            )
        return instructions

    async def generate(
        self,
        prompts: Sequence[str | TrajectoryItem],
        *,
        temperature: float = 0.0,
        max_response_length: int | None = None,
        samples: int = 1,
        seed: int = 0,
    ) -> list[str]:
        """Answer every prompt; `samples` answers each stand side by side. Temperature 0 is greedy.

        Raises:
            DataError: a prompt does not fit the model's context.
        """
        if isinstance(prompts, str):
            raise DataError("generate() takes a list of prompts; put this one into a list")
        if not prompts:
            return []
        policy = await self.policy()
        from orbiter.train.engine.rollout import sample
        from orbiter.train.engine.session import work

        room = max_response_length or self.config.max_response_length
        tasks = await work(
            make_tasks,
            as_items(prompts),
            self._encoder(policy),
            room=lambda item: policy.context_length - room,  # noqa: ARG005 - the same for all
        )
        rollouts = await work(
            sample,
            policy,
            tasks.prompts,
            n=samples,
            max_new_tokens=room,
            temperature=temperature,
            seed=seed,
        )
        return [rollout.text for rollout in rollouts]

    async def save(self, path: str | os.PathLike[str], *, merge: bool = False) -> Path:
        """Write the model as it stands, with tokenizer and model card; return the folder.

        Hugging Face's layout; adapters in PEFT's, or merged into full weights with `merge=True`.

        Raises:
            StateError: the run ended in a TrainingError, and its model was thrown away.
        """
        if self._thrown_away:
            raise StateError(
                "there is no trained model to save: the run ended in an error, which threw its "
                "weights away; train again"
            )
        policy = await self.policy()
        from orbiter.train.engine.models.export import save_policy
        from orbiter.train.engine.session import work

        return await work(save_policy, policy, path, self._card(), merge=merge)

    async def policy(self) -> Policy:
        """Return the model, which is loaded at the first call.

        Raises:
            StorageError: it cannot be had; says what was tried.
            MissingExtraError: torch or transformers is not installed.
        """
        require("torch", extra="train")
        from orbiter.train.engine.session import work

        return await work(self._loaded)

    def _loaded(self) -> Policy:
        """Load the model at the first call; on the engine's thread, so that it is loaded once."""
        from orbiter.train.engine.models.load import load_model
        from orbiter.train.engine.policy import make_policy

        if self._policy is None:
            config = self.config
            dtype = _recorded_dtype(config) or config.dtype
            loaded = load_model(config.model, device=config.device)
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
        """Say what the policy needs beside its weights."""
        return {}

    def _encoder(self, policy: Policy) -> Callable[[TrajectoryItem, int | None], list[int]]:
        from orbiter.train.engine.prompt import render, shorten

        system = self.system_prompt

        def encode(item: TrajectoryItem, longest: int | None) -> list[int]:
            if longest is None:
                return render(policy.tokenizer, item, system=system)
            return shorten(policy.tokenizer, item, longest, system=system)

        return encode

    async def _tasks(self, dataset: object) -> Tasks:
        """Encode a data set's prompts, as far as they fit beside the response."""
        policy = await self.policy()
        from orbiter.train.engine.session import work

        longest = self._longest_prompt(policy)
        return await work(
            make_tasks,
            as_items(dataset),
            self._encoder(policy),
            room=lambda item: longest,  # noqa: ARG005 - the same for all
            on_long_prompt=self.config.on_long_prompt,
        )

    def _longest_prompt(self, policy: Policy) -> int:
        config = self.config
        room = policy.context_length - config.max_response_length
        wanted = room if config.max_prompt_length is None else config.max_prompt_length
        if wanted > room or room < 1:
            raise ConfigError(
                f"max_prompt_length={wanted} + max_response_length={config.max_response_length} = "
                f"{wanted + config.max_response_length} tokens, and the context of {config.model} "
                f"holds {policy.context_length}; lower one of them"
            )
        return wanted

    async def _learn(
        self, session: Session, opening: Sequence[str], loop: Callable[[Progress], Awaitable[None]]
    ) -> TrainMetrics:
        """Run the loop on an open session under a progress bar, and close it whatever happens.

        A cancelled run is saved where it stands; a diverged model is thrown away.
        """
        from orbiter.train.engine.session import work

        config = self.config
        self.history, self._session, self._thrown_away = session.history, session, False
        try:
            with make_progress(
                self.method, session.steps, done=session.position.step, wanted=config.progress
            ) as progress:
                for line in (computes_on(session.policy), *opening):
                    progress.say(line)
                await loop(progress)
            self.stopped = session.stopping and session.position.step < session.steps
            if config.save_every or self.stopped:
                await work(session.save)
        except asyncio.CancelledError:
            if config.save_every:
                await work(session.save)
            raise
        except TrainingError:
            self._policy, self._thrown_away = None, True
            raise
        finally:
            self._session = None
            session.close()
        self._results = session.epoch_means
        return as_metrics(self._results)

    def _validation(
        self,
        session: Session,
        measure: Callable[[], Awaitable[Mapping[str, float]]],
        score: Callable[[Mapping[str, float]], float],
    ) -> Callable[[int], Awaitable[Mapping[str, float]]]:
        """Return what a loop asks behind every step: a validation, which keeps the best model."""

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
        """Save the model to `output_dir`/best where a validation came out better than ever."""
        best = session.position.best
        if best is None or score > best:
            if self.config.output_dir is not None:
                await self.save(Path(self.config.output_dir) / "best")
            session.position.best = score


def _recorded_dtype(config: EngineConfig) -> str | None:
    """Return the dtype that the run in `output_dir` began with, where "auto" is to resume it.

    The choice for a new run may differ: another machine, another torch.
    """
    if config.dtype != "auto" or not config.resume or config.output_dir is None:
        return None
    folder = Path(config.output_dir)
    recorded = read_config(folder).get("dtype") if (folder / RUN_FILE).exists() else None
    return recorded if recorded in ("float32", "bfloat16") else None


def computes_on(policy: Policy) -> str:
    """Say in one line which processor or accelerator computes in which dtype, and why."""
    from orbiter.train.engine.arithmetic import processor

    on = str(processor()) if policy.device.type == "cpu" else str(policy.device)
    return f"computes in {policy.dtype} on {on} ({policy.dtype_reason})"


def as_metrics(
    measured: Mapping[str, float], *, reward_interval: Interval | None = None
) -> TrainMetrics:
    """Return named numbers as TrainMetrics: its own fields apart, all others in `extra`."""
    return TrainMetrics(
        measured.get("loss"),
        measured.get("accuracy"),
        measured.get("reward"),
        reward_interval=reward_interval,
        extra={k: v for k, v in measured.items() if k not in ("loss", "accuracy", "reward")},
    )
