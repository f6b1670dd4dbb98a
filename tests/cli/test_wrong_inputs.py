"""Each wrong call or file has its kind of error, which names the place, and its exit code."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.cli.exits import ExitCode, code_of
from orbiter.train.cli.settings.catalogue import (
    DataSettings,
    EvalSettings,
    EvolveSettings,
    LlmSettings,
    SynthSettings,
)
from orbiter.train.errors import ConfigError
from orbiter.train.evolution.config import EvolutionConfig
from orbiter.train.llm.config import ClientConfig
from orbiter.train.sft.config import SFTConfig
from orbiter.train.synthesis.pipeline.config import SynthesisConfig
from orbiter.train.verl.config import VeRLConfig
from tests.cli.conftest import Run

NAN, INF, HUGE = math.nan, math.inf, 10**400
NOT_NUMBERS: tuple[object, ...] = ("ten", "5", True, [3], {"a": 1}, NAN)
ABOVE_0 = (0, -1, *NOT_NUMBERS)
FROM_0 = (-1, *NOT_NUMBERS)
WHOLE_ABOVE_0 = (*ABOVE_0, 2.5, 1.0)
WHOLE_FROM_0 = (*FROM_0, 2.5, 1.0)
POSITIVE = (*ABOVE_0, INF, -INF, HUGE)
NOT_NEGATIVE = (*FROM_0, INF, -0.5)
SHARE = (*FROM_0, 1.5, INF)
BOOL: tuple[object, ...] = ("no", "true", 0, 1, None, [])
CHOICE: tuple[object, ...] = ("nope", "", 5, True, ["x"])
TEXT: tuple[object, ...] = (5, True, ["x"], {"a": 1})
NAME: tuple[object, ...] = ("", "  ", 5, None, ["x"])
PATH: tuple[object, ...] = ("", 5, True, ["x"])

TRAINING: dict[str, Sequence[object]] = {
    "epochs": WHOLE_ABOVE_0, "batch_size": WHOLE_ABOVE_0, "learning_rate": POSITIVE,
    "warmup_steps": WHOLE_FROM_0, "eval_every": WHOLE_ABOVE_0, "seed": WHOLE_FROM_0,
    "output_dir": PATH, "model": NAME, "trust_remote_code": BOOL, "system_prompt": TEXT,
    "max_prompt_length": WHOLE_ABOVE_0, "on_long_prompt": CHOICE,
    "max_response_length": WHOLE_ABOVE_0, "lora_rank": WHOLE_FROM_0, "lora_alpha": POSITIVE,
    "dtype": CHOICE, "device": NAME, "lr_schedule": CHOICE, "max_seconds": POSITIVE,
    "max_grad_norm": POSITIVE, "weight_decay": NOT_NEGATIVE, "micro_batch_tokens": WHOLE_ABOVE_0,
    "save_every": WHOLE_FROM_0, "keep_checkpoints": WHOLE_ABOVE_0, "resume": BOOL,
    "progress": BOOL, "trackers": ("wandb", 5, ["wandbb"], [5], [int]),
}  # fmt: skip
BY_REWARD: dict[str, Sequence[object]] = TRAINING | {
    "group_size": WHOLE_ABOVE_0, "temperature": POSITIVE, "kl_coef": NOT_NEGATIVE,
    "kl_estimator": CHOICE, "clip_range": (*POSITIVE, 1.0, 2), "clip_range_high": POSITIVE,
    "loss_aggregation": CHOICE, "ent_coef": NOT_NEGATIVE, "ppo_epochs": WHOLE_ABOVE_0,
    "minibatch_size": WHOLE_FROM_0, "target_kl": POSITIVE, "scale_rewards": BOOL, "ratio": CHOICE,
    "tau_positive": POSITIVE, "tau_negative": POSITIVE, "gamma": SHARE, "gae_lambda": SHARE,
    "vf_coef": NOT_NEGATIVE, "clip_range_value": POSITIVE, "algorithm": CHOICE,
    "on_reward_error": ("nope", "", True, ["x"]), "on_agent_error": ("nope", True, ["x"]),
    "reward_timeout_seconds": POSITIVE,
    "reward_concurrency": WHOLE_ABOVE_0, "max_flat_steps": WHOLE_ABOVE_0,
    "max_turns": WHOLE_ABOVE_0, "max_episode_tokens": WHOLE_ABOVE_0,
    "episode_timeout_seconds": POSITIVE, "max_failed_share": SHARE, "backend": CHOICE,
    "nodes": WHOLE_ABOVE_0, "gpus_per_node": WHOLE_ABOVE_0, "rollout": CHOICE,
    "tensor_parallel": WHOLE_ABOVE_0, "step_timeout_seconds": POSITIVE, "verl_overrides": (5, "x"),
}  # fmt: skip
EVOLVING: dict[str, Sequence[object]] = {
    "epochs": WHOLE_FROM_0, "population_size": WHOLE_ABOVE_0, "selection_ratio": SHARE,
    "mutation_rate": SHARE, "crossover_rate": SHARE, "concurrency": WHOLE_ABOVE_0,
    "timeout": POSITIVE, "retries": WHOLE_FROM_0, "elite": WHOLE_FROM_0, "cache": BOOL,
    "replicates": WHOLE_ABOVE_0, "contenders": WHOLE_FROM_0, "confirm": WHOLE_FROM_0,
    "target": NOT_NUMBERS, "patience": WHOLE_ABOVE_0, "min_delta": NOT_NEGATIVE,
    "max_evaluations": WHOLE_ABOVE_0, "max_cost": POSITIVE, "max_seconds": POSITIVE,
    "mode": CHOICE, "on_error": CHOICE,
}  # fmt: skip
SYNTHESISING: dict[str, Sequence[object]] = {
    "target_size": WHOLE_ABOVE_0, "min_score": NOT_NUMBERS, "dedup_threshold": (0, *SHARE),
    "unscored": CHOICE, "max_candidates": WHOLE_ABOVE_0, "max_cost": POSITIVE,
    "patience": WHOLE_ABOVE_0, "batch_size": WHOLE_ABOVE_0, "concurrency": WHOLE_ABOVE_0,
    "on_error": CHOICE, "seed": (2.5, "ten", True, None),
}  # fmt: skip
ASKING: dict[str, Sequence[object]] = {
    "model": NAME, "base_url": TEXT, "concurrency": WHOLE_ABOVE_0, "attempts": WHOLE_ABOVE_0,
    "connect_timeout": POSITIVE, "read_timeout": POSITIVE, "total_timeout": POSITIVE,
    "give_up_seconds": POSITIVE, "stream": BOOL,
}  # fmt: skip
CONFIGS: list[tuple[Callable[..., object], dict[str, Any], dict[str, Sequence[object]]]] = [
    (VeRLConfig, {"output_dir": "r", "lora_rank": 4}, BY_REWARD),
    (SFTConfig, {"output_dir": "r", "lora_rank": 4},
     TRAINING | {"min_reward": NOT_NUMBERS, "reward_weighted": BOOL}),
    (EvolutionConfig, {}, EVOLVING),
    (SynthesisConfig, {}, SYNTHESISING),
    (ClientConfig, {"model": "m"}, ASKING),
    (DataSettings, {}, {"train": PATH, "eval": PATH, "format": TEXT}),
    (EvalSettings, {}, {"samples": WHOLE_FROM_0, "success": NOT_NUMBERS}),
    (EvolveSettings, {}, {"prompts": (5, "x", [5], None), "strategy": TEXT}),
    (LlmSettings, {}, {"temperature": NOT_NEGATIVE, "max_tokens": WHOLE_ABOVE_0, "cache": PATH,
                       "price": (5, "x", [1])}),
    (SynthSettings, {}, {"out": PATH, "seeds": PATH, "teacher": (5, "x", [5]), "step": TEXT,
                         "variables": (5, "x", [1])}),
]  # fmt: skip
SETTINGS = [
    pytest.param(kind, fixed, name, value, id=f"{kind.__name__}.{name}={value!r:.20}")
    for kind, fixed, fields in CONFIGS
    for name, values in fields.items()
    for value in values
]


@pytest.mark.parametrize(("kind", "fixed", "name", "value"), SETTINGS)
def test_a_wrong_setting_names_itself_and_its_value(
    kind: Callable[..., object], fixed: dict[str, Any], name: str, value: object
) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**(fixed | {name: value}))
    message = str(refused.value)
    assert name in message
    assert "got" in message or repr(value) in message or str(value) in message
    assert len(message) < 400
    assert code_of(refused.value) == ExitCode.USAGE


def test_there_are_as_many_rows_as_there_should_be() -> None:
    assert len(SETTINGS) + len(COMMANDS) >= 400


USAGE, DATA, CALLBACK, STORAGE = ExitCode.USAGE, ExitCode.DATA, ExitCode.CALLBACK, ExitCode.STORAGE
C = ("-c", "config.toml")
COMMANDS: list[tuple[ExitCode, tuple[str, ...], str]] = [
    # words
    (USAGE, ("nope",), "No such command"),
    (USAGE, ("train", "--nope"), "No such option"),
    (USAGE, ("train", *C, "epochs=1"), "did you mean train.epochs"),
    (USAGE, ("train", *C, "train.=1"), "a setting looks like"),
    (USAGE, ("train", *C, "=1"), "a setting looks like"),
    (USAGE, ("train", *C, "nope.x=1"), "nope"),
    (USAGE, ("train", *C, "train.nope=1"), "nope"),
    (USAGE, ("train", *C, "reward.vowels.nope=1"), "nope"),
    (USAGE, ("train", *C, "reward.vowels.weight=heavy"), "weight"),
    (USAGE, ("train", *C, "train.epochs=ten"), "epochs"),
    (USAGE, ("train", *C, "train.epochs=2.5"), "epochs"),
    (USAGE, ("train", *C, "train.scale_rewards=no"), "scale_rewards"),
    (USAGE, ("train", *C, "train.model=5"), "model"),
    (USAGE, ("train", *C, "train.learning_rate=nan"), "learning_rate"),
    (USAGE, ("train", *C, "train.learning_rate=1e400"), "learning_rate"),
    (USAGE, ("train", *C, "train.algorithm=reinforce"), "algorithm"),
    (USAGE, ("train", *C, "train.trackers=wandb"), "trackers"),
    (USAGE, ("train", *C, 'train.trackers=["nope"]'), "trackers"),
    (USAGE, ("train", *C, "train.device=tpu", "--dry-run"), "device"),
    (USAGE, ("train", *C, "reward=nope.py:f"), "nope.py"),
    (USAGE, ("train", *C, "reward=rewards.py:nope"), "nope"),
    (USAGE, ("train", *C, "reward=rewards.py"), "reward"),
    (USAGE, ("train", *C, "reward=5"), "reward"),
    (USAGE, ("sft", *C, "sft.min_reward=high"), "min_reward"),
    (USAGE, ("sft", *C, "sft.batch_size=0"), "batch_size"),
    (USAGE, ("sft", *C, "sft.reward_weighted=maybe"), "reward_weighted"),
    (USAGE, ("synth", *C, 'synth.target_size="ten"'), "target_size"),
    (USAGE, ("synth", *C, "synth.target_size=2.5"), "target_size"),
    (USAGE, ("synth", *C, "synth.variables=5"), "variables"),
    (USAGE, ("synth", *C, "synth.teacher=nope"), "teacher"),
    (USAGE, ("synth", *C, 'synth.templates=["{nobody}"]'), "nobody"),
    (USAGE, ("evolve", *C, "evolve.epochs=-1"), "epochs"),
    (USAGE, ("evolve", *C, "evolve.prompts=5"), "prompts"),
    (USAGE, ("evolve", *C, "evolve.strategy=nope"), "strategy"),
    (USAGE, ("eval", *C, "eval.samples=-1"), "samples"),
    (USAGE, ("eval", *C, "eval.success=good"), "success"),
    (USAGE, ("eval", *C, "--run", "x"), "either --run or --config"),
    (USAGE, ("convert", "data.jsonl"), "name the file to write"),
    (USAGE, ("convert", "data.jsonl", "out.nope"), "nope"),
    (USAGE, ("convert", "data.jsonl", "out.jsonl", "--from", "nope"), "nope"),
    (USAGE, ("convert", "data.jsonl", "out.jsonl", "--to", "nope"), "nope"),
    (USAGE, ("serve", "tiny", "--port", "99999"), "port"),
    (USAGE, ("serve", "tiny", "--port", "x"), "port"),
    (USAGE, ("serve", "tiny", "--dtype", "float8", "--port", "0"), "dtype"),
    (USAGE, ("serve", "tiny", "--device", "tpu", "--port", "0"), "device"),
    (USAGE, ("serve", "tiny", "--host", "no.such.host.invalid", "--port", "0"), "cannot listen"),
    (USAGE, ("proxy", "--to", "nope", "--out", "j", "--port", "0"), "http"),
    (USAGE, ("proxy", "--to", "http://h/v1", "--out", "j", "--port", "-1"), "port"),
    (USAGE, ("proxy", "--to", "http://h/v1", "--out", "j", "--host", "0.0.0.0"), "token"),
    (USAGE, ("proxy", "--to", "http://h", "--out", "j", "--port", "0", "--redact", "("), "redact"),
    (USAGE, ("settings", "nope"), "nope"),
    (USAGE, ("generate", "hi", "--model", "tiny", "--max-tokens", "0"), "max"),
    (USAGE, ("data", "split", "data.jsonl", "--nope"), "nope"),
    # files of settings
    (STORAGE, ("train", "-c", "gone.toml"), "gone.toml"),
    (STORAGE, ("train", "-c", "."), "."),
    (USAGE, ("train", "-c", "broken.toml"), "broken.toml"),
    (USAGE, ("train", "-c", "binary.toml"), "binary.toml"),
    (USAGE, ("train", "-c", "array.toml"), "epochs"),
    (USAGE, ("train", "-c", "section.toml"), "trian"),
    (USAGE, ("train", "-c", "flat.toml"), "train"),
    (USAGE, ("train", "-c", "broken.yaml"), "broken.yaml"),
    (USAGE, ("train", "-c", "code.yaml"), "code.yaml"),
    (USAGE, ("train", "-c", "empty.toml"), "there is no data"),
    # files of data
    (STORAGE, ("train", *C, "data.train=gone.jsonl"), "gone.jsonl"),
    (STORAGE, ("train", *C, "data.train=/dev/zero", "data.format=jsonl"), "/dev/zero"),
    (DATA, ("train", *C, "data.train=empty.jsonl"), "empty.jsonl"),
    (DATA, ("train", *C, "data.train=broken.jsonl"), "broken.jsonl:2"),
    (DATA, ("train", *C, "data.train=bytes.jsonl"), "bytes.jsonl:2"),
    (DATA, ("train", *C, "data.train=deep.jsonl"), "deep.jsonl:1"),
    (DATA, ("sft", *C, "data.train=nothing.json"), "nothing.json"),
    (DATA, ("data", "check", "broken.jsonl"), "broken.jsonl:2"),
    (DATA, ("data", "stats", "broken.jsonl"), "broken.jsonl:2"),
    (DATA, ("data", "show", "broken.jsonl"), "broken.jsonl:2"),
    (DATA, ("data", "dedup", "broken.jsonl", "--out", "o.jsonl"), "broken.jsonl:2"),
    (DATA, ("convert", "broken.jsonl", "out.csv"), "broken.jsonl:2"),
    (STORAGE, ("data", "check", "gone.jsonl"), "gone.jsonl"),
    (STORAGE, ("data", "stats", "gone.jsonl"), "gone.jsonl"),
    (STORAGE, ("convert", "gone.jsonl", "out.csv"), "gone.jsonl"),
    (STORAGE, ("convert", "data.jsonl", "gone/out.csv"), "gone/out.csv"),
    # the user's code
    (CALLBACK, ("train", *C, "reward=raises.py:fn"), "ZeroDivisionError"),
    (CALLBACK, ("train", *C, "reward=syntax.py:fn"), "SyntaxError"),
    (CALLBACK, ("train", *C, "reward=inside.py:fn", "--dry-run"), "ValueError"),
    (CALLBACK, ("train", *C, "reward=text.py:fn", "--dry-run"), "fn"),
    (CALLBACK, ("train", *C, "reward=nan.py:fn", "--dry-run"), "fn"),
    (USAGE, ("train", *C, "reward=number.py:fn"), "fn"),
    # models
    (STORAGE, ("train", *C, "train.model=./gone", "--dry-run"), "gone"),
    (STORAGE, ("train", *C, "train.model=./folder", "--dry-run"), "is not a saved model"),
    (STORAGE, ("generate", "hi", "--model", "./gone"), "gone"),
    (STORAGE, ("serve", "./gone", "--port", "0"), "gone"),
    (STORAGE, ("eval", *C, "--model", "./gone"), "gone"),
    # folders of runs
    (STORAGE, ("runs", "resume", "gone"), "gone"),
    (STORAGE, ("runs", "resume", "folder"), "holds no run"),
    (STORAGE, ("runs", "compare", "gone", "folder"), "gone"),
    (STORAGE, ("eval", "--run", "gone"), "gone"),
    (STORAGE, ("report", "gone"), "gone"),
    (STORAGE, ("report", "folder"), "holds no run"),
    (STORAGE, ("report", "damaged"), "run.json"),
    (STORAGE, ("runs", "compare", "damaged", "damaged"), "run.json"),
    (STORAGE, ("train", *C, "--out", "config.toml/run"), "config.toml"),
    (STORAGE, ("init", "."), "config.toml"),
    (STORAGE, ("init", "config.toml/new"), "config.toml"),
]


@pytest.fixture
def wrong_files(project: Path) -> Path:
    good = (project / "data.jsonl").read_text().splitlines()[0]
    files: dict[str, str | bytes] = {
        "broken.toml": "[train\n", "binary.toml": b"\xff\xfe\x00",
        "array.toml": 'reward="rewards.py:vowels"\n[data]\ntrain="data.jsonl"\n[train]\nepochs=[1]',
        "section.toml": "[trian]\nepochs = 1\n", "flat.toml": "train = 5\n", "empty.toml": "",
        "broken.yaml": "train: [", "code.yaml": "train: !!python/object/apply:os.system ['true']\n",
        "empty.jsonl": "", "broken.jsonl": good + '\n{"state": 3}\n', "nothing.json": "[]",
        "bytes.jsonl": good.encode() + b'\n{"state": "\xff"}\n', "deep.jsonl": '{"state":' * 5000,
        "raises.py": "1 / 0\n", "syntax.py": "def fn(:\n",
        "inside.py": "def fn(output):\n    raise ValueError('no')\n",
        "text.py": "def fn(output):\n    return 'good'\n",
        "nan.py": "def fn(output):\n    return float('nan')\n", "number.py": "fn = 5\n",
        "damaged/run.json": "{", "folder/notes.txt": "hello",
    }  # fmt: skip
    for name, content in files.items():
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return project


@pytest.mark.parametrize(
    ("code", "words", "place"), COMMANDS, ids=[" ".join(words)[:60] for _, words, _ in COMMANDS]
)
def test_a_wrong_command_is_one_line_and_its_code(
    run: Run,
    wrong_files: Path,
    code: ExitCode,
    words: tuple[str, ...],
    place: str,
) -> None:
    done = run(*words)
    assert done.code == code, done
    assert place in done.err
    assert "Traceback" not in done.err
    assert len(done.err) < 4000
    as_json = run(*words, "--json")
    if "No such" not in done.err and "Usage:" not in as_json.err:
        told = json.loads(as_json.out.splitlines()[-1]).get("error")
        if told is not None:  # else it is a report of what is wrong with the data
            assert told["code"] == code
            assert place in told["message"]
