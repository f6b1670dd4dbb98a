"""A trainer whose run takes place on verl: planned, run, and its model taken back.

Left out: the run itself (`cluster.py`). Loads no torch until it trains.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from typing_extensions import override

from orbiter.train.engine.progress import make_progress
from orbiter.train.engine.trainer import ModelTrainer, as_metrics
from orbiter.train.errors import ConfigError, StorageError, require
from orbiter.train.trainer import TrainMetrics
from orbiter.train.verl.config import VeRLConfig
from orbiter.train.verl.reward import RewardSpec

if TYPE_CHECKING:
    from orbiter.train.engine.policy import Policy
    from orbiter.train.verl.cluster.plan import Plan
    from orbiter.train.verl.cluster.run import Run


class ClusterTrainer(ModelTrainer):
    """What `VeRLTrainer` does where `backend="verl"`."""

    config: VeRLConfig
    rewards: Sequence[RewardSpec]

    _run: Run | None = None
    _final: Path | None = None
    """The model that verl has trained."""
    _adapter: Path | None = None
    """The same, where it is adapters alone."""
    _scratch: TemporaryDirectory[str] | None = None

    async def plan(self, dataset: object = None) -> Plan:
        """Say what a run with `backend="verl"` would set, write and take; start nothing.

        Raises:
            ConfigError: the run cannot work on verl; the message lists every reason.
            MissingExtraError: verl's interpreter lacks it; says what to install.
        """
        if self.config.backend != "verl":
            raise ConfigError(f"plan() is for backend='verl', got {self.config.backend!r}")
        if dataset is not None:
            self.dataset = dataset
        await self.validate()
        return (await self._prepare(Path(self.config.output_dir or "<output_dir>"))).plan

    async def _prepare(self, folder: Path) -> Run:
        """Check everything about a run on verl, without writing anything."""
        require("torch", extra="train")
        from orbiter.train.engine.session import work
        from orbiter.train.verl.cluster.run import prepare

        prepared = await work(prepare, self.config, self.rewards, folder)
        return await prepared.run(self.dataset, self.eval_dataset, self.system_prompt)

    async def _train_on_verl(self) -> TrainMetrics:
        """Let verl do it, and take the trained model back."""
        if self.config.output_dir is None:
            self._scratch = TemporaryDirectory(prefix="orbiter-verl-")
        folder = self._scratch.name if self._scratch else self.config.output_dir
        run = await self._prepare(Path(str(folder)))
        self._run, self.history, self.stopped = run, run.history, False
        self._data = f"{run.layout.prompts} prompts"
        try:
            with make_progress(
                self.method, run.plan.steps, done=run.layout.start, wanted=self.config.progress
            ) as progress:
                progress.say(f"{self.method} of {self.config.model} on verl {run.plan.verl}")
                self._final = await run.train(progress)
        finally:
            self._run = None
        self._adapter = self._final if self.config.lora_rank else None
        self.stopped = run.steps_done < run.plan.steps
        self._policy, self._results = None, run.means()
        return as_metrics(self._results)

    @override
    def stop(self) -> None:
        """End a training under way behind its present step, with a checkpoint; from any thread.

        On verl the model is that of the last checkpoint before, see `save_every`.
        """
        super().stop()
        if self._run is not None:
            self._run.stopping = True

    @override
    async def save(self, path: str | os.PathLike[str], *, merge: bool = False) -> Path:
        """Write the model as it stands, with tokenizer and model card; return the folder.

        Hugging Face's layout; adapters in PEFT's, or merged into full weights with `merge=True`.
        """
        if self._adapter is None or merge:
            return await super().save(path, merge=merge)
        from orbiter.train.engine.session import work

        return await work(_copy, self._adapter, Path(path))

    @override
    def _loaded(self) -> Policy:
        """Load the model that verl has trained, once there is one."""
        if self._final is None or self._policy is not None:
            return super()._loaded()
        from orbiter.train.engine.models.load import load_model
        from orbiter.train.engine.policy import make_policy

        device = "cpu" if self.config.device == "cpu" else "auto"
        loaded = load_model(self._final, device=device)
        self._policy = make_policy(
            loaded.model,
            loaded.tokenizer,
            dtype=self.config.dtype,
            device=str(loaded.model.device),
            **self._policy_parts(),
        )
        return self._policy


def _copy(adapter: Path, path: Path) -> Path:
    from orbiter.train.engine.models.folder import staged_folder

    if path.exists() and not (path / "adapter_config.json").is_file() and any(path.iterdir()):
        raise StorageError(f"{path} is there already and is no saved model; choose another path")
    with staged_folder(path) as staged:
        shutil.copytree(adapter, staged, dirs_exist_ok=True)
    return path
