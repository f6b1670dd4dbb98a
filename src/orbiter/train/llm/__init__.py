"""Language models with one interface, local or at an endpoint."""

from orbiter.train.chat.message import Message
from orbiter.train.llm.chat import Answer, ChatModel, Sampling, ask, name_of, sample_of
from orbiter.train.llm.client import RemoteChatModel
from orbiter.train.llm.config import ClientConfig, Price, Usage
from orbiter.train.llm.failure import BudgetError, ChatError
from orbiter.train.llm.local import LocalChatModel
from orbiter.train.llm.reasoning import SplitAnswer, split_reasoning, strip_reasoning
from orbiter.train.llm.structured import Structured, UnfitAnswersError, ask_for

__all__ = [
    "Answer",
    "BudgetError",
    "ChatError",
    "ChatModel",
    "ClientConfig",
    "LocalChatModel",
    "Message",
    "Price",
    "RemoteChatModel",
    "Sampling",
    "SplitAnswer",
    "Structured",
    "UnfitAnswersError",
    "Usage",
    "ask",
    "ask_for",
    "name_of",
    "sample_of",
    "split_reasoning",
    "strip_reasoning",
]
