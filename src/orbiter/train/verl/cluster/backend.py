"""The backend that trains on verl: it makes the plan, runs the job, and loads the trained model.

This file does not import torch until it trains.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.trainer import ModelTrainer
from orbiter.train.errors import StorageError, require
from orbiter.train.progress import make_progress
from orbiter.train.trainer import TrainMetrics
from orbiter.train.verl.algorithms import ALGORITHMS
from orbiter.train.verl.backend import Backend
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy
    from orbiter.train.verl.cluster.plan import ClusterPlan
    from orbiter.train.verl.cluster.run import ClusterRun


class ClusterBackend(Backend):
    """Trains on verl's workers."""

    def __init__(
        self,
        trainer: ModelTrainer,
        config: VeRLConfig,
        rewards: Sequence[RewardSpec],
        gold: RewardSpec | None = None,
    ) -> None:
        super().__init__(trainer, config, rewards, gold)
        self._final: Path | None = None
        """Folder of the model that verl has trained."""
        self._scratch: TemporaryDirectory[str] | None = None

    @override
    async def plan(self) -> ClusterPlan:
        # A plan writes nothing, so a folder that is not known yet can be a placeholder in its
        # paths.
        return (await self._prepare(Path(self.config.output_dir or "<output_dir>"))).plan

    @override
    async def train(self) -> TrainMetrics:
        trainer, config = self.trainer, self.config
        folder = config.output_dir
        if folder is None:
            # Held by the backend: the trained model is in it, and must live as long as the trainer.
            self._scratch = TemporaryDirectory(prefix="orbiter-verl-")
            folder = self._scratch.name
        run = await self._prepare(Path(folder))
        kind = "tasks" if run.layout.agent else "prompts"
        with (
            trainer.running_elsewhere(run, run.history, data=f"{run.layout.prompts} {kind}"),
            make_progress(
                trainer.method,
                run.plan.steps,
                done=run.layout.start,
                shown=None if config.progress else False,
            ) as progress,
        ):
            progress.say(f"{trainer.method} of {config.model} on verl {run.plan.verl}")
            self._final = await run.train(progress)
        return trainer.results(run.means(), stopped=run.steps_done < run.plan.steps)

    async def _prepare(self, folder: Path) -> ClusterRun:
        """Check everything about a run on verl, without writing anything."""
        require("torch", extra="train")
        from orbiter.train.engine.thread import work
        from orbiter.train.verl.cluster.run import prepare

        trainer = self.trainer
        prepared = await work(prepare, self.config, self.rewards, folder, trainer.running_agent)
        return await prepared.run(trainer.dataset, trainer.eval_dataset, trainer.system_prompt)

    @override
    def load(self) -> Policy | None:
        """Load the model that verl has trained; None before a training."""
        if self._final is None:
            return None
        from orbiter.train.engine.models.load import load_model
        from orbiter.train.engine.policy import make_policy

        # The trained model may be loaded on another machine than the workers'.
        device = "cpu" if self.config.device == "cpu" else "auto"
        loaded = load_model(self._final, device=device)
        return make_policy(
            loaded.model,
            loaded.tokenizer,
            dtype=self.config.dtype,
            device=str(loaded.model.device),
            value_head=ALGORITHMS[self.config.algorithm].value_head,
            reference=self.config.kl_coef > 0,
        )

    @override
    async def save(self, path: Path) -> Path | None:
        """Copy the trained adapters; full weights are written by the trainer."""
        if self._final is None or not self.config.lora_rank:
            return None
        from orbiter.train.engine.thread import work

        return await work(_copy, self._final, path)


def _copy(adapter: Path, path: Path) -> Path:
    from orbiter.train.engine.models.folder import staged_folder

    # Only a saved model may be replaced.
    if path.exists() and not (path / "adapter_config.json").is_file() and any(path.iterdir()):
        raise StorageError(f"{path} exists and is not a saved model; choose another path")
    with staged_folder(path) as staged:
        shutil.copytree(adapter, staged, dirs_exist_ok=True)
    return path
