"""What the model sees: the function's signature, one line an argument, then the request."""

from __future__ import annotations

from orbiter.train.demo.requests import Function, ToolRequest


def render(request: ToolRequest) -> str:
    """Render a request for a small model: about 100 to 200 tokens.

        Function: area(base: integer, height: integer, unit: string = None)
        base: The base of the triangle.
        ...
        Request: Find the area of ...
        Call:

    A signature is shorter than the JSON schema, and the answer has the same shape.
    """
    lines = [f"Function: {_signature(request.function)}", request.function.description]
    for name, parameter in request.function.parameters.properties.items():
        lines.append(f"{name}: {parameter.description}")
    return "\n".join([*lines, f"Request: {request.text}", "Call:"])


def _signature(function: Function) -> str:
    parts = []
    for name, parameter in function.parameters.properties.items():
        inner = f"[{parameter.items.type}]" if parameter.items else ""
        optional = "" if name in function.parameters.required else " = None"
        parts.append(f"{name}: {parameter.type}{inner}{optional}")
    return f"{function.name}({', '.join(parts)})"
