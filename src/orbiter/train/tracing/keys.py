"""Maps the name of a span attribute to its place in an item, or to the message it is part of.

Each name is parsed only once, since most spans of a file have the same names. Not here: what the
values mean.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple


class Place(NamedTuple):
    """The place of an attribute in an item."""

    group: str
    number: int | None
    """The number of the message or tool, if the attribute is one piece of it."""
    name: str
    """The rest of the attribute's name."""


@lru_cache(maxsize=1 << 14)
def place_of(key: str) -> Place:
    """Return the place of an attribute, given its name."""
    if key in ENTRIES:
        return Place("entries", None, ENTRIES[key])
    if key in _TOLD:
        return Place("told", None, key)
    for prefix, group in _GROUPS.items():
        if key.startswith(prefix):
            return Place(group, None, key[len(prefix) :])
    for prefix in SPREAD:
        number, _, name = key.removeprefix(prefix).partition(".")
        if key.startswith(prefix) and number.isascii() and number.isdigit() and len(number) < 10:
            return Place(prefix, int(number), name)
    return Place("attributes", None, key)


SPREAD = (
    "gen_ai.prompt.",
    "gen_ai.completion.",
    "llm.request.functions.",
    "llm.input_messages.",
    "llm.output_messages.",
    "llm.tools.",
    "evaluations.",
    "annotations.",
)
"""The prefixes, before the number, of attributes that are pieces of a message or tool."""
_GROUPS = {"gen_ai.request.": "params", "gen_ai.usage.": "usage", "llm.token_count.": "usage"}
ENTRIES = {
    "gen_ai.response.model": "model",
    "gen_ai.request.model": "requested_model",
    "llm.model_name": "model",
    "langfuse.observation.model.name": "model",
    "gen_ai.provider.name": "provider",
    "gen_ai.system": "provider",
    "llm.provider": "provider",
    "gen_ai.response.id": "response_id",
    "gen_ai.response.finish_reasons": "finish_reason",
    "llm.finish_reason": "finish_reason",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.prompt_tokens": "input_tokens",
    "llm.token_count.prompt": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.completion_tokens": "output_tokens",
    "llm.token_count.completion": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cached_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "gen_ai.conversation.id": "conversation_id",
    "session.id": "conversation_id",
    "user.id": "user_id",
    "gen_ai.agent.id": "agent_id",
    "gen_ai.workflow.name": "workflow",
    "traceloop.workflow.name": "workflow",
    "llm.invocation_parameters": "invocation_parameters",
    "error.type": "error_type",
}
"""Attributes that become an entry of an item's metadata, with the name of the entry."""
_TOLD = frozenset(
    {
        "gen_ai.input.messages",
        "gen_ai.output.messages",
        "gen_ai.system_instructions",
        "gen_ai.tool.definitions",
        "gen_ai.operation.name",
        "gen_ai.agent.name",
        "agent.name",
        "openinference.span.kind",
        "llm.request.type",
        "langfuse.observation.type",
        "langfuse.observation.input",
        "langfuse.observation.output",
        "input.value",
        "input.mime_type",
        "output.value",
        "output.mime_type",
        "gen_ai.evaluation.name",
        "gen_ai.evaluation.score.value",
        "gen_ai.evaluation.score.label",
        "gen_ai.evaluation.explanation",
    }
)
"""Attributes that go to fields of an item, or that mark a span as an item."""
