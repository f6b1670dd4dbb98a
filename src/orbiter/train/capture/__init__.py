"""Capture live agents: every model call becomes a step of an episode."""

from orbiter.train.capture.collect import Collected, Run, collect
from orbiter.train.capture.episode import Episode
from orbiter.train.capture.proxy import proxy_app, run_proxy
from orbiter.train.capture.record import record
from orbiter.train.capture.tokens import TokenReport, add_token_ids
from orbiter.train.capture.traced import traced

__all__ = [
    "Collected",
    "Episode",
    "Run",
    "TokenReport",
    "add_token_ids",
    "collect",
    "proxy_app",
    "record",
    "run_proxy",
    "traced",
]
