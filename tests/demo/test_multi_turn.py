"""The multi-turn environment: on a small wheel with tools of our own, and on the real one."""

from __future__ import annotations

import json
import random
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.agents.environments import EnvironmentAgent, Played
from orbiter.train.agents.environments.tools import ToolError
from orbiter.train.agents.runner import run_episode
from orbiter.train.demo.multi_turn import (
    MultiTurn,
    MultiTurnTask,
    environment,
    load_tasks,
    show_tasks,
)
from orbiter.train.demo.multi_turn.__main__ import ConversationCounts, run, split_tasks
from orbiter.train.demo.multi_turn.tasks import (
    RightCall,
    parse_right_call,
    task_of,
    tool_schemas,
)
from orbiter.train.demo.requests import WHEEL
from orbiter.train.engine.models.download import cache_folder
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import make_policy
from orbiter.train.errors import CallbackError, DataError
from orbiter.train.serve.live import LivePolicy
from tests.children import run_child

TICKETS = """
import time

class TicketAPI:
    def __init__(self):
        self.open, self._log = [], []

    def _load_scenario(self, scenario, long_context=False):
        self.open = list(scenario.get("open", []))

    def create(self, title, urgent=False):
        print("a tool may print")
        self.open.append([title, urgent])
        self._log.append(time.time())
        return {"id": len(self.open)}

    def count(self):
        return len(self.open)

    def _secret(self):
        return "seen"
"""
TROUBLE = """
import os, time

class MathAPI:
    def broken(self):
        raise ValueError("no such luck")

    def slow(self):
        time.sleep(60)

    def leave(self):
        os._exit(3)
"""
CALLS = [["create('a')", "count()"], [], ["create(title='b', urgent=True)"]]
TOOLS: dict[str, dict[str, list[str]]] = {
    "ticket_api": {"create": ["title", "urgent"], "count": []},
    "math_api": {"broken": [], "slow": [], "leave": []},
}


def lines(*rows: object) -> str:
    return "\n".join(map(json.dumps, rows))


def described(name: str, names: list[str]) -> dict[str, Any]:
    properties = {each: {"type": "float"} for each in names}
    return {
        "name": name,
        "description": "This tool belongs to the ticket desk. Tool description: Does it.",
        "parameters": {"type": "dict", "properties": properties, "required": []},
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wheel") / "bfcl.whl"
    request = {
        "question": [[{"content": "Open a."}], [{"content": "Wait."}], [{"content": "Open b."}]],
        "initial_config": {"TicketAPI": {"open": [["z", False]]}},
        "involved_classes": ["TicketAPI"],
        "excluded_function": ["hidden"],
    }
    package = "bfcl_eval/eval_checker/multi_turn_eval/func_source_code"
    with zipfile.ZipFile(path, "w") as archive:
        parts = package.split("/")
        for depth in range(1, len(parts) + 1):
            archive.writestr("/".join(parts[:depth]) + "/__init__.py", "")
        archive.writestr(f"{package}/ticket_api.py", TICKETS)
        archive.writestr(f"{package}/math_api.py", TROUBLE)
        ids = [f"multi_turn_base_{n}" for n in range(5)]
        requests = [{**request, "id": each} for each in ids]
        requests[0]["involved_classes"] = ["TicketAPI", "MathAPI"]
        answers = [{"id": each, "ground_truth": CALLS} for each in ids]
        data = "bfcl_eval/data"
        archive.writestr(f"{data}/BFCL_v4_multi_turn_base.json", lines(*requests))
        archive.writestr(f"{data}/possible_answer/BFCL_v4_multi_turn_base.json", lines(*answers))
        for module, tools in TOOLS.items():
            rows = [described(name, names) for name, names in {**tools, "hidden": []}.items()]
            archive.writestr(f"{data}/multi_turn_func_doc/{module}.json", lines(*rows))
    return path


async def played(wheel: Path, *turns: list[tuple[str, dict[str, Any]]]) -> float:
    """Return the reward of an episode with these calls in its turns."""
    world = MultiTurn(wheel)
    try:
        await world.reset("multi_turn_base_0")
        tools = {tool.name: tool for tool in world.offered_tools()}
        for calls in turns:
            for name, arguments in calls:
                await tools[name].run(json.dumps(arguments))
            await world.on_answer("Done.")
        return world.get_reward()
    finally:
        await world.close()


A, B = ("create", {"title": "a"}), ("create", {"title": "b", "urgent": True})
COUNT: tuple[str, dict[str, Any]] = ("count", {})


async def test_the_reward_is_the_share_of_turns_right_before_the_first_wrong_one(
    wheel: Path,
) -> None:
    assert await played(wheel, [A, COUNT], [], [B]) == 1
    assert await played(wheel, [COUNT, A, COUNT], [], [B]) == 1  # more calls do no harm
    assert await played(wheel, [A, COUNT], [], [("create", {"title": "b"})]) == pytest.approx(2 / 3)
    assert await played(wheel, [A, COUNT], [A], [B]) == pytest.approx(2 / 3)  # the state differs
    assert await played(wheel, [A], [], [B]) == 0  # what the count returned was never seen
    assert await played(wheel, [A, COUNT]) == pytest.approx(1 / 3)
    assert await played(wheel, [], [A, COUNT], [B]) == 0


async def test_a_result_seen_in_an_earlier_turn_counts_but_a_turn_needs_a_call(
    wheel: Path,
) -> None:
    assert await played(wheel, [A, COUNT, B], [], [COUNT]) == 0  # too early for the first turn
    assert await played(wheel, [A, COUNT], [B], [COUNT]) == 1
    assert await played(wheel, [A, COUNT], [B], []) == pytest.approx(2 / 3)


async def test_what_a_tool_raises_or_lacks_is_text_for_the_model(wheel: Path) -> None:
    world = MultiTurn(wheel)
    await world.reset("multi_turn_base_0")
    tools = {tool.name: tool for tool in world.offered_tools()}
    assert list(tools) == [
        *TOOLS["ticket_api"],
        *TOOLS["math_api"],
    ]  # what is left out is not offered
    assert tools["create"].parameters["type"] == "object"
    assert tools["create"].parameters["properties"]["title"] == {"type": "number"}
    assert tools["create"].description == "Does it."
    assert await tools["broken"].run("{}") == "Error during execution: no such luck"
    assert "unexpected keyword" in await tools["count"].run('{"x": 1}')
    for wrong in ("{", "[1]", '"x"', "7"):
        with pytest.raises(ToolError, match="wrong arguments for count"):
            await tools["count"].run(wrong)
    child = world._child
    assert child is not None
    assert "Error" in await child.call("_secret", {})
    assert "Error" in await child.call("__class__", {})
    assert await tools["count"].run("{}") == "1"  # and it still works
    await world.close()
    await world.close()


async def test_a_tool_that_ends_its_process_fails_the_call_and_leaves_none_behind(
    wheel: Path,
) -> None:
    world = MultiTurn(wheel)
    await world.reset("multi_turn_base_0")
    tools = {tool.name: tool for tool in world.offered_tools()}
    with pytest.raises(CallbackError, match="ended with code 3"):
        await tools["leave"].run("{}")
    await world.close()


async def test_a_tool_that_takes_too_long_is_killed_and_ends_the_episode(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = MultiTurn(wheel)
    await world.reset("multi_turn_base_0")
    monkeypatch.setattr(environment, "SECONDS", 0.2)
    tools = {tool.name: tool for tool in world.offered_tools()}
    with pytest.raises(ToolError, match="took longer"):
        await tools["slow"].run("{}")
    assert world.done
    assert world.get_reward() == 0
    assert world._child is not None
    assert world._child._process.returncode is not None
    await world.close()


async def test_endless_calls_in_a_turn_end_the_episode(wheel: Path) -> None:
    world = MultiTurn(wheel)
    await world.reset("multi_turn_base_0")
    tools = {tool.name: tool for tool in world.offered_tools()}
    seen = []
    for _ in range(environment.CALLS):
        await tools["count"].run("{}")
        seen.append(world.done)
    with pytest.raises(ToolError, match="more than 20 calls"):
        await tools["count"].run("{}")
    assert [*seen, world.done] == [False] * environment.CALLS + [True]
    await world.close()


async def test_the_shown_turns_solve_the_conversation(wheel: Path) -> None:
    items = await show_tasks(load_tasks(wheel)[:1])
    assert [item.action.startswith("<tool_call>") for item in items] == [1, 1, 0, 0, 1, 0]
    first, count, done, *_ = items
    assert '"title": "a"' in first.action or '"title":"a"' in first.action
    assert count.messages is not None
    assert dict(count.messages[-1])["content"] == '{"id": 2}'
    assert done.action == "Done."
    made: list[Any] = [call for item in items for call in item.tool_calls or []]
    calls = [json.loads(call["function"]["arguments"]) for call in made]
    assert await played(wheel, [("create", calls[0]), COUNT], [], [("create", calls[2])]) == 1


@pytest.mark.parametrize(("calls", "then"), [([A, COUNT], "Wait."), ([A], None), ([], None)])
async def test_a_wrong_turn_ends_the_episode_because_it_settles_the_reward(
    wheel: Path, calls: list[tuple[str, dict[str, Any]]], then: str | None
) -> None:
    world = MultiTurn(wheel)
    await world.reset("multi_turn_base_0")
    tools = {tool.name: tool for tool in world.offered_tools()}
    for name, arguments in calls:
        await tools[name].run(json.dumps(arguments))
    assert await world.on_answer("Done.") == then
    await world.close()


async def test_a_policy_plays_it(wheel: Path) -> None:
    loaded = load_model("tiny", device="cpu", seed=0)
    policy = make_policy(loaded.model, loaded.tokenizer, device="cpu")
    agent = EnvironmentAgent(lambda: MultiTurn(wheel))
    async with LivePolicy(policy, max_new_tokens=4) as live:
        task = {"task_id": "multi_turn_base_0"}
        episode = await run_episode(agent, task, live, seed=0, max_turns=3)
    assert episode.stop_reason == "done"
    assert len(episode.turns) == 1  # which is wrong
    assert isinstance(episode.result, Played)
    assert episode.result.reward == 0
    assert [m["content"] for m in episode.result.messages[::2]] == ["Open a."]


def test_unknown_conversations_and_classes_are_refused(wheel: Path) -> None:
    with pytest.raises(DataError, match="no conversation 'x'"):
        task_of("x", wheel)
    with pytest.raises(DataError, match=r"no class 'TiketAPI'.*TicketAPI"):
        load_tasks(wheel, classes=["TiketAPI"])
    assert load_tasks(wheel, classes=["MathAPI"]) == []
    assert len(load_tasks(wheel, classes=["TicketAPI"])) == 4
    assert len(load_tasks(wheel)) == 5


@pytest.mark.parametrize(
    "text",
    ["f", "f(", "a.b()", "f(g())", "f(x=__import__('os'))", "f(*[1])", "1 + 1", "f(x=open)"],
)
def test_only_calls_with_literals_are_right_calls(text: str) -> None:
    with pytest.raises(ValueError, match=r"not a call|malformed node"):
        parse_right_call(text)


TINY = ConversationCounts(
    model="tiny",
    classes=("TicketAPI",),
    attempts=1,
    batch_size=1,
    group_size=2,
    max_response_length=8,
    minutes=0.02,
)


def test_no_conversation_is_in_the_exam_and_in_another_part(wheel: Path) -> None:
    tasks = load_tasks(wheel)
    parts = split_tasks(tasks, TINY, seed=3)
    assert not {t.task_id for t in parts.held_out} & {t.task_id for t in parts.tasks}
    assert {t.task_id for t in parts.shown} <= {t.task_id for t in parts.tasks}
    assert split_tasks(tasks, TINY, seed=3) == parts
    with pytest.raises(DataError, match="only 1 conversations; name more classes"):
        split_tasks(tasks[:1], TINY, seed=3)


@pytest.mark.slow
async def test_a_quick_run_leaves_exams_and_a_report(wheel: Path, tmp_path: Path) -> None:
    gain = await run(TINY, tmp_path, 0, wheel)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["gain"]["n"] == gain.n == 2
    assert "tools that have a state" in (tmp_path / "report.html").read_text()


REAL = cache_folder(None) / WHEEL
needs_wheel = pytest.mark.skipif(not REAL.exists(), reason=f"{WHEEL} is not in the cache")


@needs_wheel
@pytest.mark.nightly
@pytest.mark.timeout(900)
async def test_verdicts_equal_those_of_the_leaderboards_own_checker(tmp_path: Path) -> None:
    """Right conversations and damaged ones: a call left out, doubled, moved, or altered."""
    draw = random.Random(0)
    ours: list[bool] = []
    questions: list[object] = []
    for task in load_tasks(REAL):
        for damage in ("none", "drop", "double", "move", "alter"):
            turns = [[(c.name, _named(task, c)) for c in turn] for turn in task.right]
            _damage(turns, damage, draw)
            ours.append(await _ours(task.task_id, turns))
            questions.append(_question(task, turns))
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    command = [sys.executable, "-I", "-c", CHECKER, str(REAL), str(tmp_path / "questions.json")]
    theirs = json.loads(run_child(command, check=True).stdout.splitlines()[-1])
    assert ours == theirs
    assert len(ours) == 1000
    assert all(ours[::5])
    assert 300 < sum(ours) < 900


def _named(task: MultiTurnTask, call: RightCall) -> dict[str, Any]:
    schema = next(s for s in tool_schemas(task) if s["name"] == call.name)
    names = list(schema["parameters"]["properties"])
    return dict(zip(names, call.positional, strict=False)) | call.named


def _damage(turns: list[list[tuple[str, Any]]], damage: str, draw: random.Random) -> None:
    full = [turn for turn in turns if turn]
    turn = draw.choice(full)
    at = draw.randrange(len(turn))
    if damage == "drop":
        del turn[at]
    elif damage == "double":
        turn.insert(at, turn[at])
    elif damage == "move":
        draw.choice(turns).append(turn.pop(at))
    elif damage == "alter":
        name, arguments = turn[at]
        if arguments:
            key = draw.choice(sorted(arguments))
            turn[at] = (name, {**arguments, key: "else"})


async def _ours(task_id: str, turns: list[list[tuple[str, Any]]]) -> bool:
    world = MultiTurn(REAL)
    try:
        await world.reset(task_id)
        tools = {tool.name: tool for tool in world.offered_tools()}
        for calls in turns:
            for name, arguments in calls:
                await tools[name].run(json.dumps(arguments))
            await world.on_answer("Done.")
        return world.get_reward() == 1
    finally:
        await world.close()


def _question(task: MultiTurnTask, turns: list[list[tuple[str, Any]]]) -> list[object]:
    """Return what the leaderboard's checker takes: calls by turn and step, and the right ones."""
    by_turn = [[[_as_python(name, (), named)] for name, named in calls] for calls in turns]
    right = [[_as_python(*call) for call in turn] for turn in task.right]
    entry = {
        "id": task.task_id,
        "initial_config": dict(task.start),
        "involved_classes": list(task.classes),
    }
    return [by_turn, right, entry]


def _as_python(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> str:
    return f"{name}({', '.join([*map(repr, args), *(f'{k}={v!r}' for k, v in named.items())])})"


CHECKER = """
import json, sys
sys.path.insert(0, sys.argv[1])
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import multi_turn_checker
verdicts = []
for number, (turns, right, entry) in enumerate(json.load(open(sys.argv[2]))):
    answer = multi_turn_checker(turns, right, entry, "multi_turn_base", f"m{number}")
    verdicts.append(answer["valid"])
print(json.dumps(verdicts))
"""
