"""The demo's real input: 400 requests of the Berkeley Function-Calling Leaderboard.

The set is `simple_python` (Apache-2.0): a request in plain English, the schema of one function,
and for each of its arguments the values that count as right. It comes inside a wheel, which pip
fetches alone, without the packages that the leaderboard itself would need; the wheel's sha256 is
checked before anything in it is read.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orbiter.train.engine.models.download import cache_folder, download_wheel
from orbiter.train.engine.models.folder import file_sha256
from orbiter.train.errors import DataError, StorageError

WHEEL = "bfcl_eval-2026.3.23-py3-none-any.whl"
SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
REQUIREMENT = "bfcl-eval==2026.3.23"
REQUESTS = "bfcl_eval/data/BFCL_v4_simple_python.json"
_ANSWERS = "bfcl_eval/data/possible_answer/BFCL_v4_simple_python.json"


@dataclass(frozen=True, slots=True)
class Items:
    """What an array holds."""

    type: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a function, as its schema tells it."""

    type: str
    description: str = ""
    items: Items | None = None
    """Only for arrays and tuples."""
    enum: Sequence[object] | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """A function's arguments, and which of them must be given."""

    properties: Mapping[str, Parameter]
    required: Sequence[str]


@dataclass(frozen=True, slots=True)
class Function:
    """The one function that a request may call."""

    name: str
    description: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """One request, the function at hand, and what counts as a right call of it."""

    id: str
    text: str
    function: Function
    accepted: Mapping[str, Sequence[object]]
    """Accepted values by argument; "" among them: the argument may be left away."""


@dataclass(frozen=True, slots=True)
class _Message:
    content: str


@dataclass(frozen=True, slots=True)
class _Request:
    id: str
    question: list[list[_Message]]
    function: list[Function]


@dataclass(frozen=True, slots=True)
class _Answer:
    id: str
    ground_truth: list[dict[str, dict[str, list[object]]]]


def load_requests(wheel: Path | None = None) -> list[ToolRequest]:
    """Read the 400 requests, from `wheel` or from the one in the cache, fetched where missing.

    Raises:
        StorageError: the wheel is not at hand and pip could not fetch it; the message says how to
            get it by hand.
        DataError: the wheel does not hold what it should.
    """
    with zipfile.ZipFile(wheel or fetch_wheel()) as archive:
        requests = archive.read(REQUESTS).splitlines()
        answers = archive.read(_ANSWERS).splitlines()
    return parse_requests(requests, answers)


def parse_requests(requests: Sequence[bytes], answers: Sequence[bytes]) -> list[ToolRequest]:
    """Join the lines of the two files by id, in the order of the first."""
    accepted = dict(_accepted(number, line) for number, line in enumerate(answers, 1))
    return [_request(number, line, accepted) for number, line in enumerate(requests, 1)]


def _request(
    number: int, line: bytes, accepted: Mapping[str, Mapping[str, Sequence[object]]]
) -> ToolRequest:
    try:
        row = msgspec.json.decode(line, type=_Request)
        (((message,),), (function,)) = row.question, row.function
        return ToolRequest(row.id, message.content, function, accepted[row.id])
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(f"request {number} is not one message and one function: {error}") from error
    except KeyError as error:
        raise DataError(f"request {number}: no accepted answer for {error}") from error


def _accepted(number: int, line: bytes) -> tuple[str, Mapping[str, Sequence[object]]]:
    try:
        row = msgspec.json.decode(line, type=_Answer)
        ((values,),) = (call.values() for call in row.ground_truth)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(f"answer {number} is not one accepted call: {error}") from error
    return row.id, values


def fetch_wheel(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the leaderboard's wheel from the cache; pip fetches it the first time.

    Raises:
        StorageError: it is not at hand and pip could not fetch it; says how to get it by hand.
    """
    kept = cache_folder(cache_dir) / WHEEL
    if kept.exists() and file_sha256(kept) == SHA256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        try:
            download_wheel(REQUIREMENT, sha256=SHA256, folder=Path(folder)).replace(kept)
        except StorageError as error:
            raise StorageError(
                f"{error}\nWithout a network, put {WHEEL} into {kept.parent} yourself."
            ) from error
    return kept
