"""One training from its settings to its report, as a newcomer would run it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from orbiter.train import read_run
from orbiter.train.cli.exits import ExitCode
from tests.cli.conftest import Run

SHORT = ["train.epochs=1", "train.max_response_length=4", "train.group_size=4"]


def test_a_dry_run_tells_the_plan_and_touches_nothing(run: Run, project: Path) -> None:
    before = sorted(project.rglob("*"))
    ran = run("train", "-c", "config.toml", "train.learning_rate=1e-6", "--dry-run", "--json")
    told = json.loads(ran.out)
    assert ran.code == ExitCode.OK
    plan = told["plan"]
    assert (plan["items"], plan["held_out"], plan["steps"], plan["updates"]) == (20, 8, 15, 15)
    assert plan["tokens"] > 15 * 4 * 8 * 16
    assert plan["memory_bytes"] > 1 << 20
    assert plan["seconds"] > 0
    assert told["settings"]["train"]["learning_rate"] == 1e-6
    assert "reward 'vowels' gives" in ran.err
    assert [p for p in sorted(project.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_dry_run_loads_no_weights(run: Run, project: Path) -> None:
    from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer

    model = tiny_model()
    model.get_input_embeddings().weight.data.fill_(float("nan"))  # which loading would refuse
    model.save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    ran = run("train", "-c", "config.toml", "train.model=model", "--dry-run", "--json")
    assert ran.code == ExitCode.OK, ran.err
    plan = json.loads(ran.out)["plan"]
    assert plan["memory_bytes"] > 4 * sum(p.numel() for p in model.parameters())


def test_a_prompt_that_does_not_fit_is_found_before_the_run(run: Run, project: Path) -> None:
    ran = run("train", "-c", "config.toml", "train.max_prompt_length=40", "--dry-run")
    assert ran.code == ExitCode.DATA
    assert "40 fit" in ran.err


def test_a_reward_that_fails_is_found_before_the_run(run: Run, project: Path) -> None:
    Path("bad.py").write_text("def fn(output): return 'much'\n")
    ran = run("train", "-c", "config.toml", "reward=bad.py:fn", "--dry-run")
    assert ran.code == ExitCode.CALLBACK
    assert "'fn'" in ran.err


def test_init_train_eval_generate_and_runs(run: Run, project: Path) -> None:
    ran = run("train", "-c", "config.toml", "--out", "runs/one")
    assert ran.code == ExitCode.OK, ran.err
    assert "held out  reward" in ran.out
    folder = project / "runs" / "one"
    for name in ("config.toml", "metrics.jsonl", "samples.jsonl", "result.json", "report.html"):
        assert (folder / name).is_file(), name
    assert (folder / "checkpoints").is_dir()
    assert (folder / "model" / "model.safetensors").is_file()
    result = json.loads((folder / "result.json").read_text())
    assert result["gain"]["mean"] > 0.1
    assert len(read_run(folder).metrics) == 15

    told = json.loads(run("eval", "--run", "runs/one", "--json").out)
    (measured,) = told["models"].values()
    assert measured["reward"] == pytest.approx(result["after"]["mean"])
    assert measured["reward_low"] <= measured["reward"] <= measured["reward_high"]

    words = ["--model", "runs/one/model", "--max-tokens", "5", "--samples", "2", "--json"]
    told = json.loads(run("generate", "Say a word.", "Another.", *words).out)
    assert [len(each["answers"]) for each in told["answers"]] == [2, 2]

    again = run("train", "-c", "config.toml", "--out", "runs/one")
    assert again.code == ExitCode.STORAGE
    assert "runs resume runs/one" in again.err

    listed = json.loads(run("runs", "list", "--json").out)["runs"]
    assert [(each["status"], each["steps"]) for each in listed] == [("finished", 15)]


def test_two_runs_are_compared_by_what_differs(run: Run, project: Path) -> None:
    for name, rate in (("a", "1e-3"), ("b", "2e-3")):
        out = ["--out", f"runs/{name}", f"train.learning_rate={rate}"]
        assert run("train", "-c", "config.toml", *SHORT, *out).code == ExitCode.OK
    told = json.loads(run("runs", "compare", "runs/a", "runs/b", "--json").out)
    assert told["settings"] == {"learning_rate": [1e-3, 2e-3]}
    assert set(told["metrics"]) > {"reward", "loss", "entropy"}
    page = run("runs", "compare", "runs/a", "runs/b", "--page", "both.html")
    assert page.code == ExitCode.OK
    assert Path("both.html").stat().st_size > 1000


def test_a_run_can_be_moved_and_prolonged(run: Run, project: Path, tmp_path: Path) -> None:
    assert run("train", "-c", "config.toml", *SHORT, "--out", "runs/one").code == ExitCode.OK
    moved = tmp_path / "elsewhere"
    shutil.move(project, moved)
    import os

    os.chdir(tmp_path)
    ran = run("runs", "resume", moved / "runs" / "one")
    assert ran.code == ExitCode.OK, ran.err
    assert len(read_run(moved / "runs" / "one").metrics) == 5


def test_sft_imitates_what_was_good(run: Run, project: Path) -> None:
    ran = run("sft", "-c", "config.toml", "--out", "runs/sft", "--json")
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    losses = [value for _, value in read_run("runs/sft").series("loss")]
    assert losses[-1] < losses[0] / 2
    assert told["gain"]["n"] == 8
    assert Path("runs/sft/report.html").is_file()


def test_ppo_from_the_same_file(run: Run, project: Path) -> None:
    words = [*SHORT, "train.algorithm=ppo", "train.kl_coef=0.05", "train.ppo_epochs=2"]
    ran = run("train", "-c", "config.toml", *words, "--out", "runs/ppo")
    assert ran.code == ExitCode.OK, ran.err
    assert "method        PPO" in ran.out


def test_evolve_improves_what_a_strategy_of_one_s_own_scores(run: Run, project: Path) -> None:
    Path("longer.py").write_text(
        "from orbiter.train import EvolutionStrategy\n"
        "class Longer(EvolutionStrategy):\n"
        "    async def evaluate(self, candidate): return float(len(candidate))\n"
        "    async def mutate(self, candidate): return candidate + self.context.rng.choice('ab')\n"
    )
    words = ["evolve.strategy=longer.py:Longer", 'evolve.prompts=["a"]', "evolve.epochs=4"]
    ran = run("evolve", "-c", "config.toml", *words, "--json")
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert told["score"] > told["initial_score"] == 1.0
    assert len(told["best"]) == told["score"]


def test_doctor_names_what_is_here(run: Run) -> None:
    ran = run("doctor", "--json")
    told = json.loads(ran.out)
    levels = {each["what"]: each["level"] for each in told["findings"]}
    assert ran.code == ExitCode.OK
    assert levels["engine"] == levels["extra train"] == levels["python"] == "ok"
    assert all(each["remedy"] for each in told["findings"] if each["level"] != "ok")


def test_a_reward_model_is_trained_resumed_and_used_as_a_reward(run: Run, project: Path) -> None:
    rows = [{"prompt": f"Name {n}.", "chosen": f"It is {n}.", "rejected": "No!"} for n in range(6)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        "reward-model", "data.train=pairs.jsonl", "data.eval=pairs.jsonl",
        "reward-model.model=tiny", "reward-model.batch_size=2", "reward-model.save_every=1",
    ]  # fmt: skip
    ran = run(*words, "--dry-run", "--json")
    assert ran.code == ExitCode.OK, ran.err
    plan = json.loads(ran.out)["plan"]
    assert (plan["method"], plan["items"], plan["steps"]) == ("reward model", 6, 3)
    ran = run(*words, "--out", "runs/rm", "--json")
    assert ran.code == ExitCode.OK, ran.err
    result = json.loads(ran.out)
    assert 0 <= result["quality"]["accuracy"] <= 1
    assert "use it" in ran.err
    assert (Path("runs/rm") / "report.html").is_file()
    assert run("runs", "resume", "runs/rm").code == ExitCode.OK
    reward = 'liked = { model = "runs/rm/model", weight = 2.0 }'
    Path("liked.toml").write_text(f"[data]\ntrain = 'train.jsonl'\n[reward]\n{reward}\n")
    ran = run(
        "train", "-c", "liked.toml", "data.train=pairs.jsonl", "train.model=tiny", *SHORT,
        "--out", "runs/policy", "--json",
    )  # fmt: skip
    assert ran.code == ExitCode.OK, ran.err
    assert "reward/liked" in read_run(Path("runs/policy")).metrics[-1]
    ran = run("eval", "--run", "runs/rm", "--json")
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert told["models"]["runs/rm/model"] == pytest.approx(result["quality"])
    both = run("eval", "-m", "runs/rm/model", "-m", "tiny", "--data", "pairs.jsonl")
    assert both.code == ExitCode.USAGE
    assert "cannot be compared" in both.err
    answering = (
        ("train", "-c", "liked.toml", "data.train=pairs.jsonl", "train.model=runs/rm/model"),
        ("sft", "data.train=pairs.jsonl", "sft.model=runs/rm/model", "--dry-run"),
        ("prefer", *words[1:3], "prefer.model=runs/rm/model"),
        ("generate", "Hello?", "--model", "runs/rm/model"),
        ("export", "runs/rm", "--gguf", "rm.gguf"),
    )
    for command in answering:
        ran = run(*command)
        assert ran.code in (ExitCode.USAGE, ExitCode.STORAGE), command
        assert "holds a reward model, which scores answers and writes none" in ran.err, command
        assert "RewardModel(folder)" in ran.err


def test_a_reward_that_is_no_reward_model_is_refused(run: Run, project: Path) -> None:
    Path("empty").mkdir()
    Path("data.jsonl").write_text('{"state": "a", "action": "b", "reward": null}\n')
    Path("wrong.toml").write_text('[reward]\nliked = { model = "empty" }\n')
    ran = run("train", "-c", "wrong.toml", "data.train=data.jsonl", "train.model=tiny")
    assert ran.code == ExitCode.STORAGE
    assert "is not a reward model" in ran.err
    Path("wrong.toml").write_text('[reward]\nliked = { modle = "empty" }\n')
    ran = run("train", "-c", "wrong.toml", "data.train=data.jsonl", "train.model=tiny")
    assert ran.code == ExitCode.USAGE
    assert "did you mean" in ran.err
