"""`data` and `convert`: what is in a file, what is wrong with it, and a better one out of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orbiter.train import TrajectoryDataset, TrajectoryItem
from orbiter.train.cli.exits import ExitCode
from tests.cli.conftest import Run


def test_check_finds_nothing_wrong_with_what_init_makes(run: Run, project: Path) -> None:
    ran = run("data", "check", "data.jsonl")
    assert ran.code == ExitCode.OK
    assert "20 items" in ran.out
    assert "no problems found" in ran.out


def test_check_tells_every_bad_line(run: Run, project: Path) -> None:
    good = (project / "data.jsonl").read_text().splitlines()
    lines = [good[0], '{"state": 3, "action": ""}', good[1], "{", good[2]]
    (project / "bad.jsonl").write_text("\n".join(lines) + "\n")
    ran = run("data", "check", "bad.jsonl", "--json")
    told = json.loads(ran.out)
    assert ran.code == ExitCode.DATA
    assert [problem["line"] for problem in told["problems"]] == [2, 4]
    assert told["items"] == 3


def test_stats_counts_what_has_no_reward_too(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    rows = [
        {"state": "a", "action": "b", "reward": 1.0, "agent": "x"},
        {"state": "c", "action": "d", "reward": None, "agent": "x"},
        {"state": "e", "action": "f", "reward": 0.0, "agent": "y"},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(run("data", "stats", file, "--json").out)
    assert (told["items"], told["without_reward"]) == (3, 1)
    assert told["reward"]["mean"] == 0.5
    assert told["by_agent"]["x"]["n"] == 1


def test_dedup_leaves_one_of_a_kind_and_names_its_witness(run: Run, tmp_path: Path) -> None:
    text = "how many birds live on the northern coast of this island in winter"
    items = [
        TrajectoryItem(text, "9", 0.0),
        TrajectoryItem("x", "y", 1.0),
        TrajectoryItem(text, "9", 1.0),
    ]
    dataset = TrajectoryDataset()
    dataset.extend(items)
    dataset.export_jsonl(tmp_path / "d.jsonl")
    ran = run("data", "dedup", tmp_path / "d.jsonl", "-o", tmp_path / "e.jsonl", "--json")
    told = json.loads(ran.out)
    assert told["dropped"] == [{"row": 0, "like": 2, "similarity": 1.0}]
    assert list(TrajectoryDataset.from_jsonl(tmp_path / "e.jsonl")) == items[1:]


def test_dedup_and_split_take_units_keys_and_groups(run: Run, tmp_path: Path) -> None:
    text = "how many birds live on the northern coast of this island in winter"
    rows = [
        {
            "state": f"{text} {n}" if step else text,
            "action": f"answer {n}",
            "reward": 1.0,
            "episode_id": f"e{n}",
            "step": step,
            "metadata": {"site": f"site {n % 2}", "goal": f"goal {n % 3}"},
        }
        for n in range(6)
        for step in range(2)
    ]
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept: dict[str, object] = {}
    for words in ("", "--unit text --threshold 0.7", "--key goal", "--key goal --unit step"):
        out = tmp_path / f"{len(kept)}.jsonl"
        ran = run("data", "dedup", file, "-o", out, "--json", *words.split())
        kept[words] = json.loads(ran.out).get("kept", ran.out)
    assert kept == {
        "": 12,
        "--unit text --threshold 0.7": 7,
        "--key goal": 6,
        "--key goal --unit step": 3,
    }
    split = ("data", "split", file, "--ratios", "0.5,0.5", "--json")
    told = json.loads(
        run(*split, "-o", tmp_path / "a", "--group-by", "site", "--near-duplicates", "none").out
    )
    assert (sorted(told["parts"].values()), told["groups"]) == ([6, 6], 2)
    told = json.loads(
        run(*split, "-o", tmp_path / "b", "--near-duplicates", "none", "--unit", "step").out
    )
    assert told["groups"] == 6
    bad = run(*split, "-o", tmp_path / "c", "--near-duplicates", "much")
    assert bad.code == ExitCode.USAGE, bad.err + bad.out
    assert "'much'" in bad.err + bad.out


def test_split_makes_parts_that_are_the_whole(run: Run, project: Path) -> None:
    ran = run("data", "split", "data.jsonl", "-o", "parts", "--ratios", "0.5,0.25,0.25")
    assert ran.code == ExitCode.OK
    parts = [TrajectoryDataset.from_jsonl(f"parts/{n}.jsonl") for n in ("train", "val", "test")]
    assert [len(part) for part in parts] == [10, 5, 5]
    whole = {item.id for item in TrajectoryDataset.from_jsonl("data.jsonl")}
    assert {item.id for part in parts for item in part} == whole
    again = run("data", "split", "data.jsonl", "-o", "parts")
    assert again.code == ExitCode.STORAGE
    assert "already" in again.err


def test_convert_there_and_back_changes_nothing(run: Run, project: Path) -> None:
    assert run("convert", "data.jsonl", "d.csv").code == ExitCode.OK
    assert run("convert", "d.csv", "again.jsonl").code == ExitCode.OK
    assert Path("again.jsonl").read_bytes() == Path("data.jsonl").read_bytes()


def test_convert_checks_without_writing(run: Run, project: Path) -> None:
    before = sorted(Path().iterdir())
    assert run("convert", "data.jsonl", "d.csv", "--check").code == ExitCode.OK
    assert run("convert", "data.jsonl", "--check").code == ExitCode.OK
    Path("data.jsonl").write_text(Path("data.jsonl").read_text() + '{"state": 1}\n')
    ran = run("convert", "data.jsonl", "--check")
    assert (ran.code, "data.jsonl:" in ran.err + ran.out) == (ExitCode.DATA, True)
    assert run("convert", "data.jsonl").code == ExitCode.USAGE
    assert sorted(Path().iterdir()) == before


def test_convert_never_overwrites_what_it_reads(run: Run, project: Path) -> None:
    before = Path("data.jsonl").read_bytes()
    assert run("convert", "data.jsonl", "data.jsonl").code == ExitCode.USAGE
    assert run("data", "dedup", "data.jsonl", "-o", "data.jsonl").code == ExitCode.USAGE
    assert Path("data.jsonl").read_bytes() == before


def test_synth_makes_as_many_as_asked_for_from_templates(run: Run, project: Path) -> None:
    ran = run("synth", "-c", "config.toml", "--json")
    assert ran.code == ExitCode.OK, ran.err
    told = json.loads(ran.out)
    assert (told["written"], told["stop_reason"]) == (12, "target")
    assert Path("more.jsonl").read_text().count("\n") == 12


def test_synth_runs_a_step_of_one_s_own(run: Run, project: Path) -> None:
    (project / "steps.py").write_text(
        "from orbiter.train import DataSynthesiser, TrajectoryItem\n"
        "class Count(DataSynthesiser):\n"
        "    async def generate(self, count, *, context=None):\n"
        "        first = context.offset\n"
        "        return [TrajectoryItem(f'say {n}', str(n)) for n in range(first, first + count)]\n"
    )
    words = ["synth.templates=[]", "synth.step=steps.py:Count", "synth.target_size=5"]
    ran = run("synth", "-c", "config.toml", "synth.out=five.jsonl", *words)
    assert ran.code == ExitCode.OK, ran.err
    assert Path("five.jsonl").read_text().count("\n") == 5


def test_plain_lines_where_nobody_watches(run: Run, project: Path) -> None:
    ran = run("data", "stats", "data.jsonl")
    assert "\x1b" not in ran.out
    assert not set("│┃━─") & set(ran.out)


@pytest.mark.parametrize(
    "rows",
    [
        [{"episode_id": "a"}, {"episode_id": "a"}, {}],
        [{}, {}, {}],
        [{"episode_id": "a", "reward": None}, {"episode_id": "b"}, {"reward": None}],
        [{"reward": None}],
        [{"episode_id": "0"}, {}, {"episode_id": "1"}],
    ],
)
def test_check_and_stats_count_the_same(
    run: Run, tmp_path: Path, rows: list[dict[str, object]]
) -> None:
    file = tmp_path / "d.jsonl"
    whole = [{"state": f"s{n}", "action": "a", "reward": 0.5, **row} for n, row in enumerate(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in whole))
    check = json.loads(run("data", "check", file, "--json").out)
    stats = json.loads(run("data", "stats", file, "--json").out)
    assert check["items"] == stats["items"]
    assert check["episodes"] == stats["episodes"]
    assert check["with_reward"] == stats["items"] - stats["without_reward"]
    assert f" {stats['episodes']}" in run("data", "stats", file).out
