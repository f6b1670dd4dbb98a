"""Asking a language model: one Protocol for all of them."""

from orbiter.train.llm.chat import Answer, ChatModel, Message, Sampling, ask, sample_of

__all__ = ["Answer", "ChatModel", "Message", "Sampling", "ask", "sample_of"]
