"""Turn Python functions into tools: their JSON schema, and calls that are checked against it."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from orbiter.train.agents.plain import as_plain_or_text
from orbiter.train.callback import call
from orbiter.train.errors import ConfigError

T = TypeVar("T")

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Raises|Yields|Examples?|Notes?):\s*$")
_ENTRY = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


class ToolError(Exception):
    """A call that cannot be carried out; its message is for the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function that a model may call."""

    name: str
    description: str
    parameters: dict[str, Any]
    """JSON schema of the arguments."""
    run: Callable[[str], Awaitable[str]]
    """Takes the arguments in JSON and returns the result as text; raises a `ToolError` if the
    arguments are wrong, and any error of the function itself."""

    def described(self) -> dict[str, Any]:
        """Return the tool as chat completions describe it."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }
        return {"type": "function", "function": function}


def make_tool(fn: Callable[..., object], *, owner: str = "") -> Tool:
    """Return a function as a tool.

    Its docstring becomes the description, with an `Args:` section for the parameters; its type
    hints become the JSON schema.

    Args:
        fn: A function or a bound method, sync or async.
        owner: The class that it belongs to, for errors.

    Raises:
        ConfigError: there is no docstring, a parameter has no type hint or one that JSON cannot
            express, or parameters can only be passed by position.
    """
    name = getattr(fn, "__name__", "")
    where = f"tool {owner + '.' if owner else ''}{name or repr(fn)}"
    if not name.isidentifier():
        raise ConfigError(f"{where} has no name; pass a function defined with def")
    text = inspect.getdoc(fn) or ""
    summary, of_parameters = _read_docstring(text)
    if not summary:
        raise ConfigError(
            f"{where} has no docstring; the model reads it to learn what the tool is for. Begin "
            "the name of a method that is no tool with an underscore"
        )
    struct, by_name = _argument_type(fn, name, where)

    async def run(arguments: str) -> str:
        checked = decode_arguments(arguments, struct, name)
        given = {
            parameter: value
            for parameter, field in by_name.items()
            if (value := getattr(checked, field)) is not msgspec.UNSET
        }
        if inspect.iscoroutinefunction(fn):
            return tool_text(await fn(**given))
        # A plain function may block, so it runs in a thread.
        return tool_text(await call(lambda: fn(**given)))

    return Tool(
        name=name,
        description=summary,
        parameters=_schema(struct, of_parameters, where),
        run=run,
    )


def decode_arguments(arguments: str, kind: type[T], name: str) -> T:
    """Return the arguments of a call of the tool `name`, checked against a type.

    Raises:
        ToolError: they do not fit it.
    """
    try:
        # Some models write nothing at all for a call without arguments.
        return msgspec.json.decode(arguments or "{}", type=kind, dec_hook=_pydantic_value)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ToolError(f"wrong arguments for {name}: {error}") from error


def tool_text(result: object) -> str:
    """Convert a tool's return value to the text that the model reads; None becomes ""."""
    if result is None or isinstance(result, str):
        return result or ""
    try:
        return msgspec.json.encode(result, enc_hook=as_plain_or_text).decode()
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return json.dumps(result, ensure_ascii=False, default=as_plain_or_text)
    except (TypeError, ValueError, RecursionError):
        # It has keys that JSON does not, or contains itself; the tool itself has worked.
        return str(result)


def _pydantic_value(kind: type, value: object) -> object:
    """Convert JSON to a pydantic model; msgspec knows every other type that JSON can express."""
    validate = getattr(kind, "model_validate", None)
    if validate is None:
        raise NotImplementedError(f"{kind.__name__} has no JSON form")
    try:
        return validate(value)
    except ValueError as error:
        # One line for the model, without links to pydantic's documentation.
        errors: list[Any] = getattr(error, "errors", list)()
        lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in errors]
        # msgspec reports a ValueError as wrong arguments.
        raise ValueError("; ".join(lines) or str(error)) from error


def _argument_type(
    fn: Callable[..., object], name: str, where: str
) -> tuple[type[msgspec.Struct], dict[str, str]]:
    """Return a type with a field for each parameter, and the name of each field."""
    try:
        # include_extras keeps Annotated, which carries a field's limits.
        hints = typing.get_type_hints(fn, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigError(f"{where} has type hints that cannot be resolved: {error}") from error
    fields: list[tuple[str, Any, Any]] = []
    by_name: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for number, parameter in enumerate(inspect.signature(fn).parameters.values()):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            raise ConfigError(
                f"{where} takes {stars}{parameter.name}; a tool needs a name for each argument"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise ConfigError(f"{where} takes {parameter.name!r} by position only")
        if parameter.name not in hints:
            raise ConfigError(
                f"{where} has no type hint for {parameter.name!r}; write for example "
                f"`{parameter.name}: str`"
            )
        field = f"argument_{number}"  # a parameter's own name may be one that msgspec reserves
        by_name[parameter.name], renamed[field] = field, parameter.name
        hint = hints[parameter.name]
        if parameter.default is parameter.empty:
            fields.append((field, hint, msgspec.field(name=parameter.name)))
        else:  # an absent argument is left to the function's default, which JSON may not express
            absent = msgspec.field(default=msgspec.UNSET, name=parameter.name)
            fields.append((field, typing.Union[hint, msgspec.UnsetType], absent))  # noqa: UP007
    try:
        struct = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where} cannot be a tool: {error}") from error
    return struct, by_name


def _schema(
    struct: type[msgspec.Struct], of_parameters: Mapping[str, str], where: str
) -> dict[str, Any]:
    """Return the JSON schema of the arguments, with the descriptions from the docstring."""
    of_pydantic: dict[str, Any] = {}
    unknown: list[str] = []

    def pydantic_schema(kind: type) -> dict[str, Any]:
        read = getattr(kind, "model_json_schema", None)
        if read is None:
            unknown.append(kind.__name__)
            raise NotImplementedError
        schema: dict[str, Any] = read()
        # Its references begin at the root too, so its definitions have to be there.
        of_pydantic.update(schema.pop("$defs", {}))
        return schema

    try:
        schemas, definitions = msgspec.json.schema_components(
            [struct], schema_hook=pydantic_schema, ref_template="#/$defs/{name}"
        )
        definitions.update(of_pydantic)
        msgspec.json.Decoder(struct)  # msgspec refuses unions whose members JSON cannot distinguish
    except (TypeError, NotImplementedError) as error:
        # msgspec hides what its hook says behind a text about hooks.
        first = ", ".join(unknown) or str(error).partition("\n")[0]
        raise ConfigError(f"{where} has a type hint that JSON cannot express: {first}") from error
    # The schema comes as a reference into its own definitions; models need it at the top level.
    reference = str(schemas[0].get("$ref", "")).removeprefix("#/$defs/")
    merged = dict(definitions.pop(reference, schemas[0]))
    properties = {
        name: {**schema, **_description(of_parameters.get(name))}
        for name, schema in merged.get("properties", {}).items()
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": merged.get("required", []),
        "additionalProperties": False,
    }
    return {**schema, "$defs": definitions} if definitions else schema


def _description(text: str | None) -> dict[str, str]:
    return {"description": text} if text else {}


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Split a docstring in Google's style into its text and the text of each parameter."""
    summary: list[str] = []
    of_parameters: dict[str, str] = {}
    section, current = "", ""
    for line in text.splitlines():
        header = _SECTION.match(line)
        if header:
            section, current = header[1], ""
        elif not section:
            summary.append(line)
        elif section in ("Args", "Arguments", "Parameters"):
            entry = _ENTRY.match(line.strip())
            indent = len(line) - len(line.lstrip())
            # A deeper indented line continues the description, even if it looks like "word:
            # text".
            if entry and (not current or indent <= 4):
                current = entry[1]
                of_parameters[current] = entry[2].strip()
            elif current and line.strip():
                of_parameters[current] = f"{of_parameters[current]} {line.strip()}".strip()
    return "\n".join(summary).strip(), of_parameters
