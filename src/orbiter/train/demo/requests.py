"""The demo's real input: requests of the Berkeley Function-Calling Leaderboard (Apache-2.0).

The 400 of `simple_python` have a request in plain English, the schema of one function, and for
each of its arguments the values that count as right. The 200 of `multiple` offer several functions;
only the one to be called is kept, which gives them the same form. Both come inside a wheel, which
pip fetches alone, without the packages that the leaderboard itself would need; the wheel's sha256
is checked before anything in it is read.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from orbiter.train.engine.models.download import cache_folder, download_wheel
from orbiter.train.engine.models.folder import file_sha256
from orbiter.train.errors import DataError, StorageError

WHEEL = "bfcl_eval-2026.3.23-py3-none-any.whl"
SHA256 = "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
REQUIREMENT = "bfcl-eval==2026.3.23"
REQUESTS = "bfcl_eval/data/BFCL_v4_{}.json"
ANSWERS = "bfcl_eval/data/possible_answer/BFCL_v4_{}.json"


@dataclass(frozen=True, slots=True)
class Items:
    """The element type of an array."""

    type: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a function, from its schema."""

    type: str
    description: str = ""
    items: Items | None = None
    """Only for arrays and tuples."""
    enum: Sequence[object] | None = None


@dataclass(frozen=True, slots=True)
class Parameters:
    """A function's arguments, and which of them are required."""

    properties: Mapping[str, Parameter]
    required: Sequence[str]


@dataclass(frozen=True, slots=True)
class Function:
    """A function that a request may call."""

    name: str
    description: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """One request, its function, and the accepted calls."""

    id: str
    text: str
    function: Function
    accepted: Mapping[str, Sequence[object]]
    """Accepted values by argument; "" among them means that the argument may be omitted."""


class _CallSchema(NamedTuple):
    """The right call of a request: its function, and the accepted values by argument."""

    function: str
    values: Mapping[str, Sequence[object]]


@dataclass(frozen=True, slots=True)
class _QuestionMessage:
    content: str


@dataclass(frozen=True, slots=True)
class _RequestRow:
    id: str
    question: list[list[_QuestionMessage]]
    function: list[Function]


@dataclass(frozen=True, slots=True)
class _RightArguments:
    id: str
    ground_truth: list[dict[str, dict[str, list[object]]]]


def load_requests(wheel: Path | None = None, *, part: str = "simple_python") -> list[ToolRequest]:
    """Read a part of the leaderboard from `wheel`, or from the cache, where pip puts it once.

    Args:
        wheel: The leaderboard's wheel; None means the cached one.
        part: "simple_python" (400 requests) or "multiple" (200).

    Raises:
        StorageError: the wheel is missing and pip could not fetch it; the message says how to get
            it by hand.
        DataError: the wheel's contents are not as expected.
    """
    with zipfile.ZipFile(wheel or fetch_wheel()) as archive:
        requests = archive.read(REQUESTS.format(part)).splitlines()
        answers = archive.read(ANSWERS.format(part)).splitlines()
    return parse_requests(requests, answers)


def parse_requests(requests: Sequence[bytes], answers: Sequence[bytes]) -> list[ToolRequest]:
    """Join the lines of the two files by id, in the order of the first."""
    accepted = dict(_accepted(number, line) for number, line in enumerate(answers, 1))
    return [_request(number, line, accepted) for number, line in enumerate(requests, 1)]


def _request(number: int, line: bytes, accepted: Mapping[str, _CallSchema]) -> ToolRequest:
    try:
        row = msgspec.json.decode(line, type=_RequestRow)
        ((message,),) = row.question
        name, values = accepted[row.id]
        (function,) = (offered for offered in row.function if offered.name == name)
        return ToolRequest(row.id, message.content, function, values)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(f"request {number} is not one message and one function: {error}") from error
    except KeyError as error:
        raise DataError(f"request {number}: no accepted answer for {error}") from error


def _accepted(number: int, line: bytes) -> tuple[str, _CallSchema]:
    try:
        row = msgspec.json.decode(line, type=_RightArguments)
        ((call,),) = (call.items() for call in row.ground_truth)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataError(f"answer {number} is not one accepted call: {error}") from error
    return row.id, _CallSchema(*call)


def fetch_wheel(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return the leaderboard's wheel from the cache; pip fetches it the first time.

    Raises:
        StorageError: it is missing and pip could not fetch it; says how to get it by hand.
    """
    kept = cache_folder(cache_dir) / WHEEL
    if kept.exists() and file_sha256(kept) == SHA256:
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that the rename is atomic.
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        try:
            download_wheel(REQUIREMENT, sha256=SHA256, folder=Path(folder)).replace(kept)
        except StorageError as error:
            raise StorageError(
                f"{error}\nWithout a network, put {WHEEL} into {kept.parent} yourself."
            ) from error
    return kept
