"""Load the language model of a config's [llm] section: local or at an endpoint."""

from __future__ import annotations

import os
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from orbiter.train.cli.settings.config_file import Settings
from orbiter.train.errors import ConfigError
from orbiter.train.llm import ChatModel, ClientConfig, LocalChatModel, Price, RemoteChatModel

_LOCAL = frozenset({"tiny", "smollm2-135m"})
"""Models that need neither a folder nor an organisation in their name."""
_HOSTED = re.compile(r"(^|/)(gpt-(?!oss|2|neo|j)|chatgpt|o[1-9](-|$)|claude|gemini|grok-)", re.I)
"""Models that only their vendors serve, also with an organisation's prefix."""


async def chat_model(settings: Settings, until: AsyncExitStack) -> ChatModel:
    """Return the model as `make_chat_model` does; `until` closes it."""
    model = make_chat_model(settings)
    if isinstance(model, RemoteChatModel):
        until.push_async_callback(model.close)
    return model


def make_chat_model(settings: Settings) -> ChatModel:
    """Return the model of [llm], which connects when it is first asked.

    With `base_url` it is at that endpoint (the key is OPENAI_API_KEY), otherwise on this machine.

    Raises:
        ConfigError: the section is missing, or a setting in it is wrong.
    """
    section, own = settings.section("llm"), settings.own("llm")
    if not section.get("model"):
        raise ConfigError('there is no language model: set model = "..." under [llm]')
    parameters = {name: own[name] for name in ("max_tokens", "temperature") if name in own}
    price = _price(settings, own.get("price"))
    if str(section.get("base_url")) in ("None", "none"):  # "none" was given on the command line
        settings.build("llm", ClientConfig)  # constructed only for its checks
        model = str(section["model"])
        _check_is_local(settings, model)
        return LocalChatModel(model, **parameters)  # type: ignore[arg-type] # checked by the model
    config = settings.build("llm", ClientConfig, parameters=parameters, price=price)
    cache = own.get("cache")
    key = os.environ.get("OPENAI_API_KEY")
    return RemoteChatModel(config, api_key=key, cache=None if cache is None else str(cache))


def _price(settings: Settings, value: Any) -> Price | None:  # noqa: ANN401 - what the user wrote
    if not value:
        return None
    where = settings.where("llm", "price")
    try:
        return Price(**{name: float(number) for name, number in value.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where}price must be {{ input = ..., output = ... }}, numbers per million tokens, "
            f"got {value!r} ({error})"
        ) from error


def _check_is_local(settings: Settings, model: str) -> None:
    """Refuse the name of a hosted model: without an endpoint it would be looked up on a hub."""
    if model in _LOCAL or Path(model).expanduser().exists():
        return
    # A name without an organisation is no hub name, so it is most likely a vendor's.
    if "/" not in model or _HOSTED.search(model):
        raise ConfigError(
            f"{settings.where('llm', 'model')}the model {model!r} needs an endpoint: set base_url "
            'under [llm]. A model on this machine is "smollm2-135m", "tiny", a folder, or a name '
            'on the hub such as "Qwen/Qwen3-0.6B"'
        )
