"""Make the judges of a config's [reward] section, with the model of [llm]."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orbiter.train.cli.chat import make_chat_model
from orbiter.train.cli.settings.config_file import Settings
from orbiter.train.errors import ConfigError
from orbiter.train.judging import BaseJudge, GroupJudge, calibrate
from orbiter.train.llm import RemoteChatModel
from orbiter.train.synthesis.llm.judge import Judge
from orbiter.train.verl import RewardSpec
from orbiter.train.verl.judged import answers_file


def make_judge(name: str, entry: Mapping[str, Any], settings: Settings) -> BaseJudge:
    """Return the judge that an entry describes.

    Raises:
        ConfigError: a setting of it, or of [llm], is wrong; names it.
    """
    compare, labels = entry.get("compare", False), entry.get("labels")
    if not isinstance(compare, bool):
        raise ConfigError(f"[reward] {name}: compare must be true or false, got {compare!r}")
    if labels is not None and not isinstance(labels, str):
        raise ConfigError(f"[reward] {name}: labels must be a file of labels, got {labels!r}")
    votes = entry.get("votes", 1)
    if isinstance(votes, bool) or not isinstance(votes, int):
        raise ConfigError(f"[reward] {name}: votes must be a whole number, got {votes!r}")
    kind = GroupJudge if compare else Judge
    try:
        return kind(
            make_chat_model(settings),
            entry["judge"],
            votes=votes,
            max_calls=entry.get("max_calls"),
            max_cost=entry.get("max_cost"),
        )
    except ConfigError as error:
        raise ConfigError(f"[reward] {name}: {error}") from error


async def calibrate_all(
    rewards: Iterable[RewardSpec], settings: Settings, folder: Path | None = None
) -> list[str]:
    """Calibrate each judge whose entry names a file of labels; return the results as texts.

    With the folder of a run, the answers are kept in it, so that a resumed run asks nothing again.

    Raises:
        DataError: a file does not fit.
        CallbackError: a judge's model failed.
    """
    section = settings.values.get("reward")
    entries = section if isinstance(section, Mapping) else {}
    texts = []
    # One after the other: each judge has its own limits and cache.
    for spec in rewards:
        entry = entries.get(spec.name)
        labels = entry.get("labels") if isinstance(entry, Mapping) else None
        if spec.judge is not None and labels is not None:
            if folder is not None:
                spec.judge.keep_in(answers_file(folder, spec.name))
            texts.append(str(await calibrate(spec.judge, labels)))
            if isinstance(spec.judge.model, RemoteChatModel):
                await spec.judge.model.close()  # its connections belong to this event loop
    return texts
