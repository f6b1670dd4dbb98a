"""What a secret looks like, by its name or by its text, and taking secrets out of texts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
"""What is written in place of a secret."""
SHORTEST = 8
"""Characters below which a value is too short to be searched for in other texts."""

# Matched against snake_case. `token` alone counts only as the whole name, because `max_tokens` and
# `token_ids` are no secrets.
_NAME = re.compile(
    r"(?:^|_)(?:(?:api|access|secret|private|auth|signing|subscription|upstream)_?key"
    r"|(?:hf|hub|api|access|auth|bearer|refresh|session|github|gh|wandb|personal|tracking|id)"
    r"_?token"
    r"|secret|password|passwd|passphrase|credential|authorization|cookie)s?$|^token$"
)
# Without these names any variable that ends in _KEY would count, such as SORT_KEY.
_KEY_OF_A_SERVICE = re.compile(
    r"(?:^|_)(?:OPENAI|AZURE|ANTHROPIC|GROQ|MISTRAL|COHERE|GEMINI|GOOGLE|AWS|GCP|WANDB|LANGFUSE"
    r"|LANGSMITH|SERVICE|ACCOUNT|CLIENT|LICENSE|ENCRYPTION|MASTER|SSH|DEPLOY)_KEY$"
)
_VARIABLE = re.compile(
    r"(?:^|_)(?:key|token|secret|password|passwd|passphrase|credentials?|pat)$", re.IGNORECASE
)
# Forms that providers document for their keys, so they are found without a name beside them. A
# lower bound on the length keeps words such as `sk-learn` unmasked.
_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
    r"|\b(?:sk-[\w-]{16,}|[rsp]k_(?:live|test)_\w{16,}|gsk_\w{16,}|hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|AKIA[0-9A-Z]{16}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+)"
    r"|(?<=Bearer )[\w.~+/=-]{16,}|(?<=://)[^\s/:@]*:[^\s/@]+(?=@)",
    re.DOTALL,
)
_NAMED_IN_TEXT = re.compile(
    r"((?:[?&]|--)(?P<name>[A-Za-z][\w-]*)(?:=|\s+(?=[^\s-])))(?P<value>[^\s&#\"']+)"
)
"""A parameter of an address, or an option of a command line, with its value."""


_ASSIGNED = re.compile(
    r"(?<![\w-])(?P<name>[A-Za-z][\w-]{2,63})(?P<mark>\\?[\"']?\s{0,3}[:=]\s{0,3})"
    r"(?P<value>\\?\"[^\"\\\n]{6,}\\?\"|'[^'\n]{6,}'|[\w+/=.~-]{8,}(?![\w(\[{.]))"
)
"""A name and its value in a file: `API_KEY=...`, `"api_key": "..."`, `password: ...`."""
_EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_HOME = re.compile(
    r"(?P<before>(?<![\w.])(?:/mnt/[a-z]|/var|/export)?/(?:home|Users)/"
    r"|\b[A-Za-z]:(?:\\{1,4}|/)Users(?:\\{1,4}|/))(?P<user>[^\s/\\:\"'`<>|;,()\[\]{}$*?]+)"
)
"""The folder of a user."""
_HOME_IN_NAME = re.compile(r"(?P<before>(?<![\w-])-(?:home|Users)-)(?P<user>[^\W-]+)")
"""The same as Claude Code writes it in the name of a folder: `-home-ada-project`."""
_SHARED_HOMES = frozenset({"Shared", "Public", "Default", "runner", "user", "..."})
EMAIL_MASK, USER_MASK = "user@example.com", "user"
_KEY_LENGTH = 16
"""Characters from which the value of any variable such as `STRIPE_KEY` is taken for a secret."""

_HEADERS = frozenset({"headers", "extra_headers"})
_SCHEMAS = frozenset({"properties", "parameters", "input_schema", "json_schema", "schema"})
"""Where the names are those of parameters, and the texts describe them."""
Json = Any


def is_secret_name(name: str) -> bool:
    """Return whether what is kept under a name such as `apiKey` or `api-key` is a secret.

    A name in capitals is taken for an environment variable, such as AZURE_OPENAI_KEY.
    """
    if name.isupper() and _KEY_OF_A_SERVICE.search(name):
        return True
    # apiKey, api-key and API_KEY become the same name.
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    return _NAME.search(snake) is not None


def mask_text(text: str, secrets: Sequence[str] = ()) -> str:
    """Return a text without these secrets, and without what looks like one."""
    # The longest first (see `secrets_of_the_environment`): a short one may be part of a longer one.
    for secret in secrets:
        text = text.replace(secret, MASK)
    return _NAMED_IN_TEXT.sub(_named, _TEXT.sub(MASK, text))


def mask_texts(value: Json, secrets: Sequence[str] = ()) -> Json:
    """Return JSON in which every text is without secrets, however deep it lies."""
    if isinstance(value, str):
        return mask_text(value, secrets)
    if isinstance(value, Mapping):
        return {
            name: MASK
            if isinstance(inner, str) and is_secret_name(str(name))
            else mask_texts(inner, secrets)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_texts(inner, secrets) for inner in mask_arguments(value)]
    return value


def mask_private(text: str) -> str:
    """Return a text without secrets, e-mail addresses and the names of home folders.

    A home folder keeps its form: `/home/ada/x` becomes `/home/user/x`. The name of a person is not
    recognised anywhere else.
    """
    # A cheap test first: the pattern of assignments is by far the slowest, and most texts have
    # none.
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(_assigned, mask_text(text))
    else:
        text = mask_text(text)
    if "@" in text:
        text = _EMAIL.sub(_email, text)
    return _HOME_IN_NAME.sub(_home, _HOME.sub(_home, text))


def mask_arguments(values: Sequence[object]) -> list[object]:
    """Return a list with the value after each option such as `--api-key` masked."""
    masked: list[object] = []
    for index, value in enumerate(values):
        before = values[index - 1] if index else None
        option = isinstance(before, str) and before.startswith("-")
        named = option and "=" not in str(before) and is_secret_name(str(before).lstrip("-"))
        masked.append(MASK if named and isinstance(value, str) else value)
    return masked


def mask_named(value: Json) -> Json:
    """Return JSON without the texts that are kept under the name of a secret.

    All texts below `headers` count as secrets, because any header may carry a key. JSON schemas
    stay as they are: a tool may have a parameter that is called `headers`.
    """
    if isinstance(value, Mapping):
        return {name: _masked_entry(str(name), inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask_named(inner) for inner in mask_arguments(value)]
    return value


def secrets_of_the_environment() -> list[str]:
    """Return the values of variables that are named like secrets, the longest first."""
    named = (
        value
        for name, value in os.environ.items()
        if is_secret_name(name) or _VARIABLE.search(name)
    )
    return sorted({value for value in named if len(value) >= SHORTEST}, key=len, reverse=True)


def _masked_entry(name: str, inner: Json) -> Json:
    if isinstance(inner, str):
        return MASK if is_secret_name(name) else inner
    if name in _SCHEMAS:
        return inner
    if isinstance(inner, Mapping) and name.lower().replace("-", "_") in _HEADERS:
        return {
            key: MASK if isinstance(text, str) else mask_named(text) for key, text in inner.items()
        }
    return mask_named(inner)


def _assigned(match: re.Match[str]) -> str:
    """Mask a value whose name says that it is a secret, unless it is code or a placeholder."""
    name, mark, value = match["name"], match["mark"], match["value"]
    inner = value.strip("\\\"'")
    has_digit = any(char.isdigit() for char in inner)
    if not is_secret_name(name):
        # `SORT_KEY = "name"` has a name that ends in _KEY too; a real key is long and has digits.
        variable = name.isupper() and _VARIABLE.search(name) is not None
        if not (variable and has_digit and len(inner) >= _KEY_LENGTH):
            return match[0]
    elif inner == value and not name.isupper() and not has_digit:
        return match[0]  # a bare word, such as the type of a parameter
    # Masked already, a reference such as `$TOKEN` or `{token}`, or a placeholder such as `<key>`.
    if MASK in inner or inner.startswith(("$", "{", "<")):
        return match[0]
    return name + mark + value.replace(inner, MASK)


def _email(match: re.Match[str]) -> str:
    """Mask an address, but not the account in the address of a git server."""
    return match[0] if match[0].startswith("git@") else EMAIL_MASK


def _home(match: re.Match[str]) -> str:
    user = match["user"]
    return match[0] if user in _SHARED_HOMES else match["before"] + USER_MASK


def _named(match: re.Match[str]) -> str:
    return match[1] + MASK if is_secret_name(match["name"]) else match[0]
