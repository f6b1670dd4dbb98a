"""The built-in trackers: trackio, Weights & Biases, TensorBoard, MLflow.

Each reads its own environment variables (WANDB_MODE, MLFLOW_TRACKING_URI, ...) for the destination
and the account. Each is an extra with the same name, imported only when it is used.
"""

from __future__ import annotations

import itertools
import os
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from orbiter.train.errors import require
from orbiter.train.runlog.trackers import PROJECT, Tracked

_REFUSED_BY_MLFLOW = re.compile(r"[^A-Za-z0-9_\-. /]")
"""Characters that MLflow rejects in the name of a metric or a parameter."""


class Trackio:
    """Local-first: a SQLite file on this machine; `trackio show` draws it."""

    def start(self, run: Tracked) -> None:
        """Start or continue the run."""
        self._trackio: Any = require("trackio", extra="trackio")
        self._trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=run.name,
            config=dict(run.config),
            resume="allow",
            embed=False,
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step."""
        self._trackio.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Write what is left."""
        self._trackio.finish()


class Wandb:
    """Weights & Biases; WANDB_MODE=offline keeps everything in the run's folder."""

    def start(self, run: Tracked) -> None:
        """Start or continue the run."""
        wandb: Any = require("wandb", extra="wandb")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            id=run.id,
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step."""
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        """Send what is left."""
        self._run.finish()


class TensorBoard:
    """Event files in the run's folder; `tensorboard --logdir FOLDER` draws them."""

    def start(self, run: Tracked) -> None:
        """Open an event file."""
        summary: Any = require("tensorboard.summary", extra="tensorboard")
        self._writer: Any = summary.Writer(str(run.folder / "tensorboard"))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one point per metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """Write what is left."""
        self._writer.close()


class Mlflow:
    """MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME set the destination."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}

    def start(self, run: Tracked) -> None:
        """Start the run, or continue the one that has this run's tag."""
        mlflow: Any = require("mlflow", extra="mlflow")
        self._client: Any = mlflow.MlflowClient()
        experiment = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        tag = "orbiter-train.run"
        earlier = self._client.search_runs(
            [experiment.experiment_id], filter_string=f"tags.`{tag}` = '{run.id}'", max_results=1
        )
        if earlier:
            self._id = earlier[0].info.run_id
            # MLflow has no call that reopens a run, but its state may be set.
            self._client.set_terminated(self._id, status="RUNNING")
            return
        created = self._client.create_run(
            experiment.experiment_id, run_name=run.name, tags={tag: run.id}
        )
        self._id = created.info.run_id
        for name, value in run.config.items():
            # Longer values were refused by older servers.
            self._client.log_param(self._id, self._accepted(name), str(value)[:500])

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step."""
        for name, value in metrics.items():
            self._client.log_metric(self._id, self._accepted(name), value, step=step)

    def _accepted(self, name: str) -> str:
        """Return the name in the form MLflow accepts; different names stay different."""
        if name not in self._names:
            # MLflow takes names for paths, of at most 250 characters, and a number may follow.
            plain = posixpath.normpath(_REFUSED_BY_MLFLOW.sub("_", name)).strip("/.")[:240] or "_"
            taken = set(self._names.values())
            choices = itertools.chain([plain], (f"{plain}_{n}" for n in itertools.count(2)))
            self._names[name] = next(choice for choice in choices if choice not in taken)
        return self._names[name]

    def finish(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)
