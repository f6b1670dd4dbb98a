"""Render the prompt: one line of instruction, the function's signature, the request."""

from __future__ import annotations

from orbiter.train.demo.requests import Function, Parameter, ToolRequest

INSTRUCTION = "Answer with one call of the function."
"""The system prompt of every trainer in the demo."""


def render(request: ToolRequest) -> str:
    """Render a request for a small model, in about 60 tokens.

        area(base: integer, height: integer, unit: string = None)
        Find the area of a triangle with a base of 10 units and height of 5 units.

    A signature has a third of the JSON schema's length, and the answer looks like it. The texts
    that describe the function and its arguments are left out: reading them would double the cost,
    and time is scarce on a laptop.
    """
    return f"{_signature(request.function)}\n{request.text}"


def _signature(function: Function) -> str:
    required = function.parameters.required
    parts = [
        f"{name}: {_type(parameter)}{'' if name in required else ' = None'}"
        for name, parameter in function.parameters.properties.items()
    ]
    return f"{function.name}({', '.join(parts)})"


def _type(parameter: Parameter) -> str:
    if parameter.enum:
        return " | ".join(map(repr, parameter.enum))
    return f"{parameter.type}[{parameter.items.type}]" if parameter.items else parameter.type
