"""Where a run on verl keeps its files, and how large what it learns from is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orbiter.train.verl.config import VeRLConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the overrides need to know beside the config: files, sizes of the data, the start."""

    folder: Path
    """Holds what the job reads and writes."""
    model: str
    """A folder, or a name on the hub."""
    prompts: int
    longest_prompt: int
    """Tokens."""
    validates: bool
    """Whether there is held-out data."""
    start: int = 0
    """Steps that are over."""

    @property
    def train_file(self) -> Path:
        """The rows to train on."""
        return self.folder / "train.parquet"

    @property
    def held_out_file(self) -> Path:
        """The rows to validate on; verl wants a file even where it never validates."""
        return self.folder / "held_out.parquet" if self.validates else self.train_file

    @property
    def reward_file(self) -> Path:
        """The module with the rewards."""
        return self.folder / "rewards.py"

    @property
    def checkpoints(self) -> Path:
        """Where verl keeps its checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """Where verl writes its metrics; of its own for each start, since verl truncates it."""
        return self.folder / f"metrics-{self.start}.jsonl"

    @property
    def samples(self) -> Path:
        """Where verl writes what was sampled."""
        return self.folder / "samples"


def steps_per_epoch(config: VeRLConfig, prompts: int) -> int:
    """Return the steps of an epoch; verl leaves out an incomplete last batch."""
    return prompts // config.batch_size
