"""The language model of a config's [llm] section: here, or behind an endpoint."""

from __future__ import annotations

from contextlib import AsyncExitStack

from orbiter.train.cli.settings.config_file import Settings
from orbiter.train.errors import ConfigError
from orbiter.train.llm import ChatModel, ClientConfig, LocalChatModel, RemoteChatModel


async def chat_model(settings: Settings, until: AsyncExitStack) -> ChatModel:
    """Return the model; it is closed with `until`.

    With `base_url` it is behind that endpoint (the key is OPENAI_API_KEY), else on this machine.

    Raises:
        ConfigError: there is no such section, or a setting in it cannot be.
    """
    told, own = settings.section("llm"), settings.own("llm")
    if not told.get("model"):
        raise ConfigError('there is no language model: set model = "..." under [llm]')
    if told.get("base_url") is None:
        settings.build("llm", ClientConfig)  # for its checks
        limits = {name: own[name] for name in ("max_tokens", "temperature") if name in own}
        return LocalChatModel(str(told["model"]), **limits)  # type: ignore[arg-type] # checked by the model
    parameters = {name: own[name] for name in ("max_tokens", "temperature") if name in own}
    config = settings.build("llm", ClientConfig, parameters=parameters)
    import os

    cache = own.get("cache")
    key = os.environ.get("OPENAI_API_KEY") or "none"  # most servers of one's own ask for no key
    model = RemoteChatModel(config, api_key=key, cache=None if cache is None else str(cache))
    until.push_async_callback(model.close)
    return model
