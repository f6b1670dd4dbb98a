"""A failure costs one item, is counted with its cause, and is tried again when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from orbiter.train.errors import CallbackError, ConfigError, DataError
from orbiter.train.llm import Answer, BudgetError, ClientConfig, Message, RemoteChatModel
from orbiter.train.synthesis import (
    BackTranslate,
    DataSynthesiser,
    Evolve,
    Judge,
    Respond,
    SelfInstruct,
    SynthesisConfig,
    SynthesisContext,
    SynthesisPipeline,
    SynthesisResult,
    TemplateSynthesiser,
)
from orbiter.train.trajectory import TrajectoryItem
from tests.llm.raw_server import RawServer, Reply, failure, text

TASKS = [TrajectoryItem(f"task number {n}", f"answer number {n}") for n in range(16)]


class Teacher:
    """A scripted model: `fails` says which questions fail, and how."""

    def __init__(
        self, fails: Callable[[str], object] = lambda _: None, fingerprint: str = "teacher"
    ) -> None:
        self.fails, self.fingerprint = fails, fingerprint
        self.asked: list[str] = []

    async def __call__(self, messages: Sequence[Message], /) -> Answer | str:
        question = str(messages[-1]["content"])
        self.asked.append(question)
        outcome = self.fails(question)
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            return outcome  # type: ignore[return-value]  # the fault itself
        word = f"w{len(self.asked)}"
        return Answer(f"{word} is what {word}{word} asks about {word}x {word}y", cost=1.0)


def pipeline(*steps: DataSynthesiser, folder: Path | None = None, **more: Any) -> SynthesisPipeline:  # noqa: ANN401 - settings
    scorer = more.pop("scorer", None)
    given = {"target_size": 16, "dedup_threshold": None, "on_error": "drop", **more}
    made = SynthesisPipeline(SynthesisConfig(**given), scorer=scorer, run_dir=folder)
    for step in steps:
        made.add_step(step)
    return made


def check_ledger(result: SynthesisResult) -> None:
    counted = len(result.items) + result.filtered_count + result.trimmed_count
    assert result.generated_count == counted


@pytest.mark.parametrize(
    "fault",
    [
        ConnectionError("the line is dead"),
        TimeoutError("too slow"),
        ValueError("content filter"),
        3,
        b"bytes",
        Answer(None),  # type: ignore[arg-type]  # the fault itself
    ],
)
@pytest.mark.parametrize("kind", ["respond", "evolve", "self-instruct", "back-translate"])
async def test_one_refused_item_costs_one_item(fault: object, kind: str) -> None:
    steps = {
        "respond": Respond,
        "evolve": Evolve,
        "self-instruct": SelfInstruct,
        "back-translate": BackTranslate,
    }
    asked: list[str] = []

    def fails(question: str) -> object:
        asked.append(question)
        return fault if len(asked) == 4 else None

    result = await pipeline(steps[kind](Teacher(fails))).run(TASKS)
    check_ledger(result)
    finite = kind in ("respond", "back-translate")
    assert len(result.items) == (15 if finite else 16)
    assert result.rejected["failed"] == len(result.failures) == 1
    assert result.stop_reason == ("exhausted" if finite else "target")


async def test_an_endpoint_that_refuses_one_task_answers_the_other_fifteen() -> None:
    def reply(_number: int, body: dict[str, Any]) -> Reply:
        bad = "number 3" in body["messages"][-1]["content"]
        return failure(400, "content filter") if bad else text("ok")

    with RawServer(reply) as server:
        config = ClientConfig(model="m", base_url=server.url)
        async with RemoteChatModel(config) as model:
            result = await pipeline(Respond(model)).run(TASKS)
    assert (len(result.items), len(server.seen)) == (15, 16)
    assert "content filter" in result.failures[0]


async def test_with_raise_a_failure_ends_the_run_and_the_paid_answers_are_kept(
    tmp_path: Path,
) -> None:
    first = Teacher(lambda question: ValueError("odd") if "number 3" in question else None)
    stopped = pipeline(Respond(first), folder=tmp_path, on_error="raise")
    with pytest.raises(CallbackError, match="odd"):
        await stopped.run(TASKS)
    second = Teacher()
    result = await pipeline(Respond(second), folder=tmp_path, on_error="raise").run(TASKS)
    assert (len(result.items), len(second.asked)) == (16, 1)
    check_ledger(result)


@pytest.mark.parametrize("failing", [1, 5, 16])
async def test_what_failed_is_asked_again_when_the_run_is_resumed(
    failing: int, tmp_path: Path
) -> None:
    bad = {item.state for item in TASKS[:failing]}
    broken = Teacher(lambda question: ConnectionError("401") if question in bad else None)
    first = await pipeline(Respond(broken), folder=tmp_path).run(TASKS)
    assert (len(first.items), first.rejected.get("failed", 0)) == (16 - failing, failing)
    mended = Teacher()
    second = await pipeline(Respond(mended), folder=tmp_path).run(TASKS)
    assert (len(second.items), sorted(mended.asked)) == (16, sorted(bad))
    assert second.failures == []
    check_ledger(second)
    third = Teacher()
    assert await pipeline(Respond(third), folder=tmp_path).run(TASKS) == second
    assert third.asked == []


async def test_a_later_step_that_fails_is_resumed_at_that_step(tmp_path: Path) -> None:
    tasks, silent = Teacher(), Teacher(lambda _: ConnectionError("down"))
    first = await pipeline(SelfInstruct(tasks), Respond(silent), folder=tmp_path).run(TASKS[:4])
    assert (first.stop_reason, first.items, first.stop_cause) == (
        "failures",
        [],
        "the language model raised ConnectionError: down",
    )
    paid = len(tasks.asked)
    again, answers = Teacher(), Teacher()
    second = await pipeline(SelfInstruct(again), Respond(answers), folder=tmp_path).run(TASKS[:4])
    assert (len(second.items), second.stop_reason) == (16, "target")
    assert (again.asked, len(answers.asked)) == ([], paid), "no task is paid for twice"


async def test_a_failed_batch_of_a_step_of_ones_own_is_asked_again(tmp_path: Path) -> None:
    class Flaky(DataSynthesiser):
        broken = True

        @override
        async def generate(
            self, count: int, *, context: SynthesisContext | None = None
        ) -> list[TrajectoryItem]:
            assert context is not None
            if self.broken:
                raise OSError("disk")
            return [TrajectoryItem(f"item {context.offset + n}", "") for n in range(count)]

    step = Flaky()
    first = await pipeline(step, folder=tmp_path).run()
    assert (first.stop_reason, first.generated_count) == ("failures", 0)
    assert "disk" in first.stop_cause
    Flaky.broken = False
    assert len((await pipeline(step, folder=tmp_path).run()).items) == 16


@pytest.mark.parametrize("part", ["validator", "scorer"])
@pytest.mark.parametrize("answer", [ValueError("odd"), float("nan"), "high"])
async def test_a_check_that_fails_costs_its_item(part: str, answer: object) -> None:
    def check(item: TrajectoryItem) -> Any:  # noqa: ANN401 - the fault itself
        if item.state != TASKS[3].state:
            return 1.0
        if isinstance(answer, BaseException):
            raise answer
        return answer

    for on_error in ("drop", "raise"):
        made = SynthesisPipeline(
            SynthesisConfig(target_size=16, dedup_threshold=None, on_error=on_error),
            **{part: check},  # type: ignore[arg-type] # one of two functions
        ).add_step(Respond(Teacher()))
        if part == "validator" and not isinstance(answer, BaseException):
            assert len((await made.run(TASKS)).items) == 16, "it is only true or false"
        elif on_error == "raise":
            with pytest.raises(CallbackError, match=part):
                await made.run(TASKS)
        else:
            result = await made.run(TASKS)
            assert (len(result.items), result.rejected) == (15, {"failed": 1})


async def test_a_scorer_that_failed_is_asked_again(tmp_path: Path) -> None:
    is_broken = [True]

    def scorer(item: TrajectoryItem) -> float | None:
        number = int(item.state.split()[-1])
        if is_broken and number % 2:
            raise ConnectionError("judge is down")
        return None if is_broken and number == 4 else 1.0

    async def run_once() -> SynthesisResult:
        return await pipeline(Respond(Teacher()), folder=tmp_path, scorer=scorer).run(TASKS)

    with pytest.warns(UserWarning, match="no score"):
        first = await run_once()
    assert first.rejected == {"failed": 8, "unscored": 1}
    is_broken.clear()
    second = await run_once()
    assert (len(second.items), second.rejected) == (16, {})


async def test_a_dead_endpoint_ends_the_run_soon_and_says_why() -> None:
    dead = Teacher(lambda _: ConnectionError("refused"))
    result = await pipeline(SelfInstruct(dead), target_size=1000).run(TASKS)
    assert (result.stop_reason, result.items) == ("failures", [])
    assert "refused" in result.stop_cause
    assert len(dead.asked) < 700
    assert result.rejected == {"failed": len(result.failures)}
    check_ledger(result)


async def test_many_failures_among_successes_do_not_end_a_run() -> None:
    asked: list[str] = []

    def fails(question: str) -> object:
        asked.append(question)
        return ValueError("refused") if len(asked) % 4 else None

    result = await pipeline(SelfInstruct(Teacher(fails)), target_size=20).run(TASKS)
    assert (len(result.items), result.stop_reason) == (20, "target")


@pytest.mark.parametrize("at", [0, 1, 7])
async def test_a_spent_budget_keeps_what_was_paid_for(at: int, tmp_path: Path) -> None:
    asked: list[str] = []

    def fails(question: str) -> object:
        asked.append(question)
        return BudgetError("5.00 is spent") if len(asked) > at else None

    first = await pipeline(Respond(Teacher(fails)), folder=tmp_path).run(TASKS)
    assert (first.stop_reason, first.stop_cause) == ("budget", "5.00 is spent")
    assert len(first.items) == at
    rich = Teacher()
    second = await pipeline(Respond(rich), folder=tmp_path).run(TASKS)
    assert (len(second.items), len(rich.asked)) == (16, 16 - at)
    check_ledger(second)


# --- what a teacher turns down ------------------------------------------------------------------


async def test_what_a_step_before_the_last_turns_down_is_counted() -> None:
    same = Teacher(lambda _: "always the same new task")
    result = await pipeline(SelfInstruct(same), Respond(Teacher()), patience=1).run(TASKS)
    check_ledger(result)
    assert len(result.items) == 1
    assert result.rejected["duplicate"] == result.generated_count - 1 > 0
    assert all(rejection.item is not None for rejection in result.rejections)


# --- scores -------------------------------------------------------------------------------------


def unreadable(question: str) -> str | None:
    return "I give this a 1/10: wrong." if "Judge the answer" in question else None


@pytest.mark.parametrize("min_score", [None, 0.7])
async def test_what_the_judge_did_not_score_is_rejected_and_counted(
    min_score: float | None,
) -> None:
    teacher = Teacher(unreadable)
    judge = Judge(teacher, "Is it right?")
    with pytest.warns(UserWarning, match="rejected"):
        result = await pipeline(
            Respond(teacher), scorer=judge, min_score=min_score, target_size=1
        ).run(TASKS[:1])
    assert (result.items, result.rejected, result.unscored_count) == ([], {"unscored": 1}, 0)
    assert "no usable score" in result.rejections[0].detail


async def test_unscored_items_are_kept_only_on_request() -> None:
    teacher = Teacher(unreadable)
    judge = Judge(teacher, "Is it right?")
    kept = await pipeline(Respond(teacher), scorer=judge, unscored="keep").run(TASKS)
    assert (len(kept.items), kept.unscored_count) == (16, 16)
    with pytest.raises(DataError, match="unscored"):
        await pipeline(Respond(teacher), scorer=judge, unscored="raise").run(TASKS)


def lenient(question: str) -> str | None:
    if "Judge the answer" not in question:
        return None
    return json.dumps({"reason": "r", "score": float("lenient" in question)})


@pytest.mark.parametrize("changed", ["rubric", "votes", "model", "function"])
async def test_another_scorer_scores_anew_and_the_answers_are_kept(
    changed: str, tmp_path: Path
) -> None:
    def strict(question: str) -> str | None:
        return json.dumps({"reason": "r", "score": 0}) if "Judge the answer" in question else None

    teacher = Teacher(lenient)
    scorers = {
        "rubric": Judge(teacher, "strict"),
        "votes": Judge(teacher, "lenient", votes=3),
        "model": Judge(Teacher(strict, "another"), "lenient"),
        "function": lambda item: float(len(item.state) < 0),
    }
    first = await pipeline(
        Respond(teacher), folder=tmp_path, scorer=Judge(teacher, "lenient"), min_score=0.5
    ).run(TASKS)
    assert len(first.items) == 16
    answers = [each for each in teacher.asked if "Judge" not in each]
    second = await pipeline(
        Respond(teacher), folder=tmp_path, scorer=scorers[changed], min_score=0.5
    ).run(TASKS)
    assert len(second.items) == (16 if changed == "votes" else 0)
    assert [each for each in teacher.asked if "Judge" not in each] == answers
    third = await pipeline(
        Respond(teacher), folder=tmp_path, scorer=Judge(teacher, "lenient"), min_score=0.5
    ).run(TASKS)
    assert third.items == first.items, "the first judge's scores hold again"


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        (lambda: Respond(Teacher()), lambda: Respond(Teacher(), system="Be brief."), "system"),
        (lambda: SelfInstruct(Teacher()), lambda: SelfInstruct(Teacher(), shown=2), "shown"),
        (lambda: Evolve(Teacher()), lambda: Evolve(Teacher(), novelty=0.5), "novelty"),
        (lambda: Respond(Teacher()), lambda: Respond(Teacher(fingerprint="b")), "model"),
        (lambda: TemplateSynthesiser(["say it"]), lambda: Respond(Teacher()), "Template"),
    ],
)
async def test_another_step_is_refused_by_name(
    before: Callable[[], DataSynthesiser],
    now: Callable[[], DataSynthesiser],
    named: str,
    tmp_path: Path,
) -> None:
    await pipeline(before(), folder=tmp_path, target_size=1).run(TASKS)
    with pytest.raises(ConfigError, match=named) as caught:
        await pipeline(now(), folder=tmp_path, target_size=1).run(TASKS)
    assert "step 1" in str(caught.value)


async def test_a_run_without_any_answer_does_not_block_its_folder(tmp_path: Path) -> None:
    dead = Teacher(lambda _: ConnectionError("401 wrong key"))
    await pipeline(Respond(dead), folder=tmp_path).run(TASKS)
    with pytest.raises(CallbackError):
        await pipeline(Respond(dead), folder=tmp_path, on_error="raise", seed=3).run(TASKS)
    result = await pipeline(
        Respond(Teacher(), system="Another one."), folder=tmp_path, seed=4, batch_size=8
    ).run([TrajectoryItem(f"other {n}", "") for n in range(16)])
    assert len(result.items) == 16
    with pytest.raises(ConfigError, match="batch_size was 8, is 4"):
        await pipeline(Respond(Teacher(), system="Another one."), folder=tmp_path, seed=4,
                       batch_size=4).run(TASKS)  # fmt: skip


# --- a longer run -------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [(5, 40), (16, 17), (30, 31, 90), (40, 10, 50)])
async def test_a_run_may_be_prolonged_and_pays_only_for_what_is_new(
    targets: Sequence[int], tmp_path: Path
) -> None:
    asked: list[str] = []
    for target in targets:
        teacher = Teacher()
        teacher.asked = asked  # numbers the answers on
        steps = (SelfInstruct(teacher), Respond(teacher))
        result = await pipeline(*steps, folder=tmp_path, target_size=target, min_score=None).run(
            TASKS
        )
        assert (len(result.items), result.stop_reason) == (target, "target")
        check_ledger(result)
        before = len(asked)
        again = await pipeline(*steps, folder=tmp_path, target_size=target).run(TASKS)
        assert (again.items, len(asked)) == (result.items, before)
    assert len(asked) <= 2 * (max(targets) + 16 * len(targets))


async def test_a_finite_source_is_used_up_once_when_the_run_grows(tmp_path: Path) -> None:
    for target in (3, 9, 100):
        result = await pipeline(
            Respond(Teacher()), folder=tmp_path, target_size=target, batch_size=4
        ).run(TASKS)
        assert len(result.items) == min(target, 16)
        assert len({item.state for item in result.items}) == len(result.items)
