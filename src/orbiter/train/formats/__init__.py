"""Reads and writes the files of other tools: imports their traces, exports training data.

    report = convert("traces.jsonl", "train.jsonl", to_format="openai-chat")

Importing this package loads neither pyarrow nor datasets; they are loaded when a file needs them.
"""

from orbiter.train.formats.format import ExportReport, Format
from orbiter.train.formats.hf_datasets import from_dataset, to_dataset
from orbiter.train.formats.imitation import to_preference_pairs, to_sft
from orbiter.train.formats.registry import (
    NAMES,
    CheckReport,
    ConvertReport,
    check,
    convert,
    detect,
    format_of,
    read,
    write,
)
from orbiter.train.tracing.live import SpanCapture

__all__ = [
    "NAMES",
    "CheckReport",
    "ConvertReport",
    "ExportReport",
    "Format",
    "SpanCapture",
    "check",
    "convert",
    "detect",
    "format_of",
    "from_dataset",
    "read",
    "to_dataset",
    "to_preference_pairs",
    "to_sft",
    "write",
]
