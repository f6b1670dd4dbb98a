"""OpenTelemetry's spans in OTLP JSON into items, against `json.loads` of the same bytes alone.

    python benchmarks/otlp.py            # 200 MB, twice: as one document and as JSON lines

Speed is CPU time of a whole import over that of `json.loads`. The import opens and reads the file,
decodes the spans, understands their messages and makes an item of each call, its state told as
text; items are counted and let go. What msgspec decoded is known to be text and finite, and is not
checked for that again. `json.loads` gets the bytes in memory, line by line where there are lines,
makes nothing of them and lets go of each result before the next; letting go counts for both. Rounds
of the two alternate, each in a fresh process; the median of their ratios counts.

Memory is the peak of the resident set (VmHWM) of a process that does the import, minus that of one
that only imported the package.

The traces are a mix: a third of the calls each in OpenTelemetry's own dialect, OpenLLMetry's and
OpenInference's; ten turns an agent with tools, each call with its whole history, so that most of
the text of a file is there several times; a span of the agent, of a tool and of HTTP for each call,
of which no items come. JSON lines hold an export of 80 calls each (0.7 MB); `json.loads` is faster
on them than on one document, whose objects it holds all at once.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from machine import machine

SIZE = 200_000_000
ROUNDS = 3
TARGET_SPEED, TARGET_MEMORY = 0.5, 300
TURNS = 10

TEXT = (
    "the agent reads a page looks up an order asks for the date of delivery and answers that it is "
    "late because the carrier lost it between two depots so a refund of 12.50 € was promised"
)
WORDS = TEXT.split()


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choices(WORDS, k=count))


def conversation(rng: random.Random) -> list[dict[str, Any]]:
    """Return a chat of an agent that calls a tool in each turn."""
    chat: list[dict[str, Any]] = [
        {"role": "system", "content": words(rng, 120)},
        {"role": "user", "content": words(rng, 60)},
    ]
    for turn in range(TURNS):
        arguments = json.dumps({"query": words(rng, 6), "limit": turn})
        function = {"name": "search", "arguments": arguments}
        call = {"id": f"call_{rng.getrandbits(32):08x}", "type": "function", "function": function}
        chat.append({"role": "assistant", "content": words(rng, 20), "tool_calls": [call]})
        result = {"role": "tool", "tool_call_id": call["id"], "content": words(rng, 80)}
        chat.append(result)
    return chat


def value(given: object) -> dict[str, Any]:
    if isinstance(given, int):
        return {"intValue": str(given)}
    return {"doubleValue": given} if isinstance(given, float) else {"stringValue": given}


def parts(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as OpenTelemetry has it."""
    if message["role"] == "tool":
        result = {"id": message["tool_call_id"], "response": message["content"]}
        return {"role": "tool", "parts": [{"type": "tool_call_response", **result}]}
    found: list[dict[str, Any]] = [{"type": "text", "content": message["content"]}]
    for call in message.get("tool_calls", ()):
        told = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        found.append({"type": "tool_call", "id": call["id"], **told})
    return {"role": message["role"], "parts": found}


def opentelemetry(prompt: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, object]:
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": json.dumps(list(map(parts, prompt))),
        "gen_ai.output.messages": json.dumps([parts(answer)]),
    }


def openllmetry(prompt: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, object]:
    told: dict[str, object] = {"llm.request.type": "chat"}
    for prefix, chat in (("gen_ai.prompt", prompt), ("gen_ai.completion", [answer])):
        for place, message in enumerate(chat):
            told[f"{prefix}.{place}.role"] = message["role"]
            told[f"{prefix}.{place}.content"] = message["content"]
            if "tool_call_id" in message:
                told[f"{prefix}.{place}.tool_call_id"] = message["tool_call_id"]
            for number, call in enumerate(message.get("tool_calls", ())):
                below = f"{prefix}.{place}.tool_calls.{number}"
                told[f"{below}.id"] = call["id"]
                told |= {f"{below}.{key}": text for key, text in call["function"].items()}
    return told


def openinference(prompt: list[dict[str, Any]], answer: dict[str, Any]) -> dict[str, object]:
    told: dict[str, object] = {"openinference.span.kind": "LLM"}
    for prefix, chat in (("llm.input_messages", prompt), ("llm.output_messages", [answer])):
        for place, message in enumerate(chat):
            told[f"{prefix}.{place}.message.role"] = message["role"]
            told[f"{prefix}.{place}.message.content"] = message["content"]
            if "tool_call_id" in message:
                told[f"{prefix}.{place}.message.tool_call_id"] = message["tool_call_id"]
            for number, call in enumerate(message.get("tool_calls", ())):
                below = f"{prefix}.{place}.message.tool_calls.{number}.tool_call"
                told[f"{below}.id"] = call["id"]
                told |= {f"{below}.function.{key}": text for key, text in call["function"].items()}
    return told


DIALECTS = (opentelemetry, openllmetry, openinference)


def span(rng: random.Random, trace: str, parent: str, name: str, **rest: Any) -> dict[str, Any]:  # noqa: ANN401
    attributes, second = rest["attributes"], rest["second"]
    start = 1_780_000_000_000_000_000 + second * 10**9
    return {
        "traceId": trace,
        "spanId": f"{rng.getrandbits(64):016x}",
        "parentSpanId": parent,
        "name": name,
        "kind": 3,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 10**9),
        "attributes": [{"key": key, "value": value(one)} for key, one in attributes.items()],
        "status": {},
    }


def trace_of(number: int) -> list[dict[str, Any]]:
    """Return the spans of one run of an agent, in the order in which they end."""
    rng = random.Random(number)
    chat, dialect = conversation(rng), DIALECTS[number % len(DIALECTS)]
    trace, root = f"{rng.getrandbits(128):032x}", f"{rng.getrandbits(64):016x}"
    spans = []
    for place in range(2, len(chat), 2):
        usage = {"gen_ai.usage.input_tokens": 900, "gen_ai.usage.output_tokens": 40}
        request = {"gen_ai.request.model": "m-1", "gen_ai.request.temperature": 0.7}
        told = {**request, **usage, **dialect(chat[:place], chat[place])}
        spans.append(span(rng, trace, root, "chat m-1", attributes=told, second=place))
        http = {"http.request.method": "POST", "url.full": "https://example.com/v1", "n": 200}
        spans.append(span(rng, trace, spans[-1]["spanId"], "POST", attributes=http, second=place))
        tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "search"}
        spans.append(span(rng, trace, root, "run", attributes=tool, second=place + 1))
    agent = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "buyer"}
    spans.append(
        span(rng, trace, "", "invoke_agent", attributes=agent, second=0) | {"spanId": root}
    )
    return spans


def batches(size: int) -> Iterator[str]:
    """Yield the spans of one export after the other, as JSON, until `size` bytes are reached."""
    written = number = 0
    while written < size:
        spans = [one for offset in range(8) for one in trace_of(number + offset)]
        number += 8
        resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
        scope = {"scope": {"name": "bench", "version": "1"}, "spans": spans}
        text = json.dumps({"resource": resource, "scopeSpans": [scope]})
        written += len(text)
        yield text


def write(folder: Path, size: int) -> dict[str, Path]:
    lines, document = folder / "lines.jsonl", folder / "document.json"
    with lines.open("w") as one, document.open("w") as other:
        other.write('{"resourceSpans":[')
        for place, text in enumerate(batches(size)):
            one.write(f'{{"resourceSpans":[{text}]}}\n')
            other.write(("," if place else "") + text)
        other.write("]}")
    return {"JSON lines": lines, "one document": document}


def standard(path: Path) -> float:
    """Return the CPU seconds of `json.loads` alone."""
    data = path.read_bytes()
    pieces = data.splitlines() if path.suffix == ".jsonl" else [data]
    start = time.process_time()
    for piece in pieces:
        json.loads(piece)
    return time.process_time() - start


def ours(path: Path) -> tuple[float, int]:
    """Return the CPU seconds of an import, and how many items came."""
    from orbiter.train.json_files.source import Source
    from orbiter.train.tracing import otel

    start = time.process_time()
    count = sum(1 for _ in otel.read(Source(path, "raise", "error", [])))
    return time.process_time() - start, count


def peak() -> float:
    """Return the most memory that this process had resident at once, in MB."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def alone(act: str, path: Path) -> dict[str, float]:
    """Do one thing in a fresh process."""
    command = [sys.executable, __file__, act, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def child(act: str, path: Path) -> None:
    from orbiter.train.tracing import otel

    assert otel.FORMAT.read is not None
    if act == "json":
        print(json.dumps({"seconds": standard(path), "peak": peak()}))
    elif act == "ours":
        seconds, count = ours(path)
        print(json.dumps({"seconds": seconds, "peak": peak(), "items": count}))
    else:
        print(json.dumps({"peak": peak()}))


def main(size: int) -> None:
    print(f"{machine()}")
    with tempfile.TemporaryDirectory() as temporary:
        for name, path in write(Path(temporary), size).items():
            idle = alone("idle", path)["peak"]
            rounds = [(alone("json", path), alone("ours", path)) for _ in range(ROUNDS)]
            megabytes = path.stat().st_size / 1e6
            ratios = [peer["seconds"] / own["seconds"] for peer, own in rounds]
            memory = [own["peak"] - idle for _, own in rounds]
            print(
                f"{name}, {megabytes:.0f} MB, {rounds[0][1]['items']:.0f} items: json.loads "
                f"{megabytes / statistics.median(peer['seconds'] for peer, _ in rounds):.0f} MB/s, "
                f"ours {megabytes / statistics.median(own['seconds'] for _, own in rounds):.0f} "
                f"MB/s: {statistics.median(ratios):.2f} x (from {min(ratios):.2f} to "
                f"{max(ratios):.2f}; target {TARGET_SPEED}); peak memory above the interpreter "
                f"{max(memory):.0f} MB (json.loads alone: {rounds[0][0]['peak'] - idle:.0f}; "
                f"target {TARGET_MEMORY})"
            )


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1], Path(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) == 2 else SIZE)
