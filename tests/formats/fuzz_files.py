"""Damage sample files of every importer at random and look for errors that are not ours.

`python -m tests.formats.fuzz_files --seconds 600` gives each importer ten minutes; CI gives
each 20 seconds (`make fuzz`). A mutant that fails is printed with the seed that makes it again:
`FAILED_ONCE` of `test_fuzz_files.py` keeps it.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from orbiter.train.errors import StorageError, TrainError
from orbiter.train.formats import check, read, write
from orbiter.train.trajectory import TrajectoryItem

TESTS = Path(__file__).parents[1]
Json = Any

SAMPLES: Mapping[str, Sequence[str]] = {
    "openai-chat": (
        "formats/samples/openai_chat_2026.jsonl",
        "formats/samples/openai_rft_2026.jsonl",
    ),
    "openai-dpo": ("formats/samples/openai_dpo_2026.jsonl",),
    "trl-messages": ("formats/samples/trl_messages_1.16.jsonl",),
    "trl-prompt-completion": ("formats/samples/trl_prompt_completion_1.16.jsonl",),
    "trl-preference": (
        "formats/samples/trl_preference_1.16.jsonl",
        "formats/samples/ultrafeedback_binarized_2023.jsonl",
    ),
    "trl-unpaired": ("formats/samples/trl_unpaired_1.16.jsonl",),
    "sharegpt": (
        "formats/samples/sharegpt_llamafactory_0.9.json",
        "formats/samples/sharegpt_vicuna_2023.json",
    ),
    "alpaca": ("formats/samples/alpaca_2023.json",),
    "atif": ("formats/samples/atif_1.4.json", "formats/samples/atif_1.7.json"),
    "otel": (
        "formats/samples/otel_openinference_0.1.42.json",
        "formats/samples/otel_openllmetry_0.40.jsonl",
        "formats/samples/otel_semconv_1.30_events.jsonl",
        "formats/samples/otel_semconv_1.40.jsonl",
        "tracing/samples/openai_v2.jsonl",
    ),
    "langfuse": (
        "formats/samples/langfuse_5_api_v2.json",
        "formats/samples/langfuse_5_blob_observations_v2.jsonl",
        "formats/samples/langfuse_5_trace_download.json",
        "tracing/samples/langfuse_observations.jsonl",
    ),
    "langsmith": (
        "formats/samples/langsmith_0.15_langchain_runs.jsonl",
        "formats/samples/langsmith_0.15_openai_runs.json",
    ),
    "claude-code": ("sessions/samples/claude_code_1.0.jsonl", "sessions/samples/claude_code_2.1"),
    "codex": ("sessions/samples/codex_0.155", "sessions/samples/codex_0.2"),
    "gemini-cli": (
        "sessions/samples/gemini_cli_2026",
        "sessions/samples/session-gemini_cli_0.20.json",
    ),
    "opencode": (
        "sessions/samples/opencode_1.1_export.json",
        "sessions/samples/opencode_1.1_storage",
    ),
    "pi": ("sessions/samples/pi_3.jsonl",),
    "hermes": ("sessions/samples/hermes_2026.jsonl",),
}
"""The files and folders that each importer's mutants are made from, below tests/."""

OWN = ("jsonl", "json", "csv", "journal", "parquet", "verl", "datasets")
"""Formats whose samples are written by this package."""

SECONDS = 5.0
"""The longest that reading one small mutant may take."""

ODD: Sequence[Json] = (
    *(None, True, False, 0, -1, 1.5, 1e308, -0.0, 10**30, 2**63, -(2**70), float("nan")),
    *("", " ", "x", "\x00", "\ud800", "é", "null", "[", "{}", "[]", '{"a": [1]}', "1e400", "NaN"),
    *("2026-01-01T00:00:00Z", "9999-99-99", "user", "assistant", "tool", "system", "a" * 5000),
    *([], {}, [[]], [{}], [None], {"": None}, {"type": "text"}, {"type": []}, {"role": "user"}),
)


@dataclass(frozen=True, slots=True)
class Failure:
    """A mutant that was neither read nor refused as it should be."""

    importer: str
    seed: int
    problem: str

    def __str__(self) -> str:
        return f"{self.importer} seed {self.seed}: {self.problem}"


def items() -> list[TrajectoryItem]:
    """Return a few items that fill most fields of our own formats."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    return [
        TrajectoryItem("s", "a", 1.0),
        TrajectoryItem("2 + 3?", "5", 0.25, {"x": [1, None, "y"]}, episode_id="e", step=0),
        TrajectoryItem("again", "", None, episode_id="e", step=1, tool_calls=[call]),
    ]


def sample(importer: str, folder: Path, choice: random.Random) -> Path:
    """Copy one sample of an importer into a folder and return where it is."""
    if importer not in OWN:
        source = TESTS / choice.choice(SAMPLES[importer])
        target = folder / source.name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        return target
    target = folder / f"sample.{importer}"
    write(items(), target, importer)
    return target


def damage(path: Path, choice: random.Random) -> None:
    """Change a file, or one file of a folder, in one to four places."""
    if path.is_dir():
        path = choice.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    for _ in range(choice.randint(1, 4)):
        data = path.read_bytes()
        if choice.random() < 0.75:
            changed = _change_records(data, choice)
        else:
            changed = _change_bytes(data, choice)
        path.write_bytes(changed)


def _change_bytes(data: bytes, choice: random.Random) -> bytes:
    if not data:
        return bytes([choice.randrange(256)])
    start = choice.randrange(len(data))
    end = min(len(data), start + choice.choice([1, 1, 2, 8, 64, 512]))
    ways: list[Callable[[], bytes]] = [
        lambda: data[:start],
        lambda: data[:start] + data[end:],
        lambda: data[:end] + data[start:],
        lambda: data[:start] + bytes([choice.randrange(256)]) + data[start + 1 :],
        lambda: (
            data[:start]
            + choice.choice([b"\n", b"\x00", b"\xff", b'"', b"}", b"\r\n"])
            + data[start:]
        ),
        lambda: b"\xef\xbb\xbf" + data,
        lambda: data + data[start:],
    ]
    return choice.choice(ways)()


def _change_records(data: bytes, choice: random.Random) -> bytes:
    """Change a value in the JSON of a file, which stays valid; change bytes of any other file."""
    try:
        whole = json.loads(data)
        is_lines = False
    except ValueError:
        try:
            whole = [json.loads(line) for line in data.splitlines() if line.strip()]
        except ValueError:
            return _change_bytes(data, choice)
        is_lines = True
    places = list(_places(whole))
    if not places:
        return _change_bytes(data, choice)
    holder, key = choice.choice(places)
    _change_value(holder, key, places, choice)
    records = whole if is_lines else [whole]
    return "\n".join(json.dumps(record) for record in records).encode("utf-8", "surrogatepass")


def _places(value: Json) -> Iterator[tuple[Json, Json]]:
    """Yield each list or dictionary inside a value with each of its keys."""
    pairs: Iterator[tuple[Json, Json]] = iter(())
    if isinstance(value, dict):
        pairs = iter(list(value.items()))
    elif isinstance(value, list):
        pairs = iter(list(enumerate(value)))
    for key, inner in pairs:
        yield value, key
        yield from _places(inner)


def _change_value(
    holder: Json, key: Json, places: list[tuple[Json, Json]], choice: random.Random
) -> None:
    action = choice.randrange(7)
    if action <= 1:
        holder[key] = copy.deepcopy(choice.choice(ODD))
    elif action == 2:
        del holder[key]
    elif action == 3:  # a value from elsewhere in the same file
        elsewhere, other_key = choice.choice(places)
        holder[key] = copy.deepcopy(elsewhere[other_key])
    elif action == 4:
        holder[key] = choice.choice([[holder[key]], {"value": holder[key]}, str(holder[key])])
    elif isinstance(holder, list):
        holder.insert(choice.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif action == 5:
        renamed = choice.choice(["type", "role", "content", "id", "x", str(key).upper()])
        holder[renamed] = holder.pop(key)
    else:
        holder[key] = _cut(holder[key], choice)


def _cut(value: Json, choice: random.Random) -> Json:
    """Return a text cut, doubled or turned around; an odd value in place of anything else."""
    if not isinstance(value, str) or len(value) < 2:
        return copy.deepcopy(choice.choice(ODD))
    cut = choice.randrange(len(value))
    return choice.choice([value[:cut], value + value, value[cut:] + value[:cut]])


def problem_of(importer: str, path: Path) -> str | None:
    """Read a mutant in each way; return what is wrong with how that went, or None."""
    started = time.perf_counter()
    tries = [_try(name, reading) for name, reading in _readings(importer, path)]
    seconds = time.perf_counter() - started
    problems = [problem for _, problem in tries if problem is not None]
    if seconds > SECONDS:
        problems.append(f"reading took {seconds:.1f} s")
    given = tries[0][0]
    if given and not problems:
        return _lost_on_the_way(given, path.parent / "again.jsonl")
    return "; ".join(problems) or None


def _try(name: str, reading: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what a reading gave, and what is wrong with the way it failed."""
    try:
        return reading(), None
    except TrainError as error:
        if name == "check" and not isinstance(error, StorageError):  # a path outside its folder
            return None, f"check raised {error!r}"
        return None, None if str(error).strip() else f"{name}: an error without a text"
    except Exception as error:
        return None, f"{name} raised {type(error).__name__}: {error}"


def _readings(importer: str, path: Path) -> list[tuple[str, Callable[[], Any]]]:
    return [
        ("read", lambda: list(read(path, importer))),
        ("read with on_error='skip'", lambda: list(read(path, importer, on_error="skip"))),
        ("check", lambda: check(path, importer)),
    ]


def _lost_on_the_way(given: list[TrajectoryItem], path: Path) -> str | None:
    """Write items that were read into our own format, and compare what comes back."""
    try:
        write(given, path, "jsonl")
        again = list(read(path, "jsonl"))
    except Exception as error:
        return f"what was read cannot be kept: {type(error).__name__}: {error}"
    return None if again == given else "what was read changes on its way through JSONL"


def try_seed(importer: str, seed: int) -> Failure | None:
    """Make the mutant of a seed and read it; return what went wrong, or None."""
    choice = random.Random(f"{importer} {seed}")
    with TemporaryDirectory() as folder:
        path = sample(importer, Path(folder), choice)
        damage(path, choice)
        problem = problem_of(importer, path)
    return None if problem is None else Failure(importer, seed, problem)


def main() -> None:
    """Fuzz each importer for some seconds and print the failures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=600, help="of the processor's time, for each importer"
    )
    parser.add_argument("--first-seed", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", default=[*SAMPLES, *OWN])
    parser.add_argument("--jobs", type=int, default=1, help="importers at the same time")
    given = parser.parse_args()
    with ProcessPoolExecutor(given.jobs) as pool:
        fuzzing = partial(_fuzz, seconds=given.seconds, first_seed=given.first_seed)
        counts = list(pool.map(fuzzing, given.only))
    tried, failed = (sum(column) for column in zip(*counts, strict=True))
    print(f"{len(counts)} importers: {tried} mutants, {failed} failures")  # noqa: T201
    sys.exit(1 if failed else 0)


def _fuzz(importer: str, *, seconds: float, first_seed: int) -> tuple[int, int]:
    """Return how many mutants of an importer were tried in some seconds, and how many failed."""
    logging.disable()  # one line for each record that is skipped would hide the failures
    # The processor's time, so that a busy machine tries as many mutants as an idle one.
    end, seed, failed = time.process_time() + seconds, first_seed, 0
    while time.process_time() < end:
        failure = try_seed(importer, seed)
        seed += 1
        if failure is not None:
            failed += 1
            print(failure, flush=True)  # noqa: T201 - a program
    print(f"{importer}: {seed - first_seed} mutants, {failed} failures", flush=True)  # noqa: T201
    return seed - first_seed, failed


if __name__ == "__main__":
    main()
