"""The paths of a run on verl, and the sizes of its data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orbiter.train.verl.cluster.inside.shipment import AGENT
from orbiter.train.verl.config import VeRLConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Paths, data sizes and the first step of a run: values that are not in the config."""

    folder: Path
    """Folder of all files that the job reads and writes."""
    model: str
    """A folder, or a name on the hub."""
    prompts: int
    longest_prompt: int
    """Length of the longest prompt, in tokens."""
    validates: bool
    """Whether there is held-out data."""
    agent: bool = False
    """Whether an agent's episodes are trained on, not single answers."""
    start: int = 0
    """Steps finished before this start."""

    @property
    def train_file(self) -> Path:
        """The rows to train on."""
        return self.folder / "train.parquet"

    @property
    def held_out_file(self) -> Path:
        """The rows to validate on; verl needs a file even if it never validates."""
        return self.folder / "held_out.parquet" if self.validates else self.train_file

    @property
    def reward_file(self) -> Path:
        """The module with the rewards.

        The job runs in this folder, where "rewards.py" would hide the user's module of that name.
        """
        return self.folder / "orbiter_rewards.py"

    @property
    def agent_file(self) -> Path:
        """The agent, as the workers read it."""
        return self.folder / AGENT

    @property
    def loop_file(self) -> Path:
        """The list of agent loops that verl reads, with ours."""
        return self.folder / "agent_loop.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of verl's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The weights of the best validation, as verl saved them."""
        return self.folder / "best"

    @property
    def metrics_file(self) -> Path:
        """File of verl's metrics; each start has a new one, since verl truncates it."""
        return self._metrics_from(self.start)

    @property
    def earlier_metrics_files(self) -> list[Path]:
        """The files of verl's metrics of earlier starts, the earliest first."""
        files = map(self._metrics_from, range(self.start))
        return [file for file in files if file.exists()]

    def _metrics_from(self, start: int) -> Path:
        return self.folder / f"metrics-{start}.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of the samples that verl writes."""
        return self.folder / "samples"


def steps_per_epoch(config: VeRLConfig, prompts: int) -> int:
    """Return the number of steps in an epoch; verl drops an incomplete last batch."""
    return prompts // config.batch_size
