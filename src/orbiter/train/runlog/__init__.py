"""A run's folder: its configuration, metrics and samples."""

from orbiter.train.redact import MASK
from orbiter.train.runlog.log import Run, RunLog, read_config, read_numbers, read_run
from orbiter.train.runlog.trackers import Tracked, Tracker

__all__ = ["MASK", "Run", "RunLog", "Tracked", "Tracker", "read_config", "read_numbers", "read_run"]
