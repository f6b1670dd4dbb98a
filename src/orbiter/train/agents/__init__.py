"""Whole episodes of agents as training data."""

from __future__ import annotations

from orbiter.train.agents.streams import AnsweredPrompt, Stream, token_weights, turns_to_streams

__all__ = ["AnsweredPrompt", "Stream", "token_weights", "turns_to_streams"]
