"""The synthesisers and the judge, on scripted models: any async callable is one."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orbiter.train.errors import ConfigError
from orbiter.train.llm import Answer, ClientConfig, Message, Price, RemoteChatModel
from orbiter.train.llm.cache import ResponseCache
from orbiter.train.synthesis import (
    BackTranslate,
    Evolve,
    Respond,
    SelfInstruct,
    SynthesisConfig,
    SynthesisContext,
    SynthesisPipeline,
)
from orbiter.train.synthesis.llm.asking import ChatSynthesiser, task_in
from orbiter.train.synthesis.llm.judge import Judge, agreement_of
from orbiter.train.synthesis.llm.novelty import nearest, rouge_l
from orbiter.train.synthesis.pipeline.result import Rejection
from orbiter.train.trajectory import TrajectoryItem
from tests.llm.server import ChatServer

SEEDS = [
    TrajectoryItem(f"Explain {topic}", f"{topic} is fine") for topic in ("fire", "ice", "salt")
]


@dataclass
class Scripted:
    """Answers in turn, and remembers what it was asked."""

    answers: Sequence[str]
    asked: list[str] = field(default_factory=list[str])

    async def __call__(self, messages: Sequence[Message], /) -> Answer:
        self.asked.append(str(messages[-1]["content"]))
        return Answer(self.answers[(len(self.asked) - 1) % len(self.answers)], cost=0.5)


def context(**given_: object) -> SynthesisContext:
    return SynthesisContext(**{"seeds": SEEDS, "seed": 3, **given_})  # type: ignore[arg-type] # each test its own


async def test_self_instruct_shows_the_pool_and_turns_down_what_is_like_it() -> None:
    model = Scripted(["Task: Compare two rivers", "explain FIRE", "Compare two rivers"])
    made = await SelfInstruct(model, shown=3).generate(3, context=context())
    assert all(seed.state in asked for seed in SEEDS for asked in model.asked)
    assert isinstance(made[0], TrajectoryItem)
    assert (made[0].state, made[0].action, made[0].reward) == ("Compare two rivers", "", None)
    assert [type(m) for m in made[1:]] == [Rejection, Rejection]
    assert made[0].metadata["lineage"]["op"] == "self-instruct"  # type: ignore[index] # a mapping


async def test_evolve_works_on_the_items_of_the_step_before() -> None:
    model = Scripted(["Explain fire to a child and say why it is hot"])
    (made,) = await Evolve(model).generate(1, context=context(items=SEEDS[:1]))
    assert isinstance(made, TrajectoryItem)
    assert made.state == "Explain fire to a child and say why it is hot"
    assert "Explain fire" in model.asked[0]
    (same,) = await Evolve(Scripted(["Explain fire"])).generate(1, context=context(items=SEEDS[:1]))
    assert isinstance(same, Rejection)


async def test_back_translation_keeps_the_action_and_uses_each_seed_once() -> None:
    model = Scripted(["What is it?"])
    made = await BackTranslate(model).generate(9, context=context())
    assert [(m.state, m.action) for m in made if isinstance(m, TrajectoryItem)] == [
        ("What is it?", seed.action) for seed in SEEDS
    ]
    assert await BackTranslate(model).generate(9, context=context(offset=3)) == []


async def test_respond_stops_at_the_first_answer_that_passes() -> None:
    model = Scripted(["3", "4", "5"])
    step = Respond(model, samples=3, verifier=lambda item: item.action == "4")
    (made,) = await step.generate(1, context=context(items=SEEDS[:1]))
    assert isinstance(made, TrajectoryItem)
    assert (made.action, len(model.asked)) == ("4", 2)


async def test_respond_turns_a_task_down_when_no_answer_passes() -> None:
    step = Respond(Scripted(["3"]), samples=2, verifier=lambda _: False)
    (made,) = await step.generate(1, context=context(items=SEEDS[:1]))
    assert isinstance(made, Rejection)
    assert "none of 2 answers passed" in made.detail


async def test_what_is_spent_is_told() -> None:
    spent: list[float] = []
    await Respond(Scripted(["a"])).generate(3, context=context(spend=spent.append))
    assert spent == [0.5, 0.5, 0.5]


async def test_the_median_of_the_votes_is_the_score() -> None:
    votes = [json.dumps({"score": score, "reason": f"r{score}"}) for score in (0.2, 0.9, 0.8)]
    judge = Judge(Scripted(votes), "Is it right?", votes=3)
    verdict = await judge(SEEDS[0])
    assert (verdict.score, verdict.cost) == (0.8, 1.5)
    assert verdict.reason == "r0.8 (votes: 0.2 0.9 0.8)"
    assert judge.agreement == pytest.approx(1 - (0.7 + 0.6 + 0.1) / 3)


async def test_a_vote_is_asked_for_again_twice_and_then_abstains() -> None:
    model = Scripted(["good!", '{"score": 7, "reason": "x"}', '{"score": 0.5, "reason": "ok"}'])
    assert (await Judge(model, "Is it right?")(SEEDS[0])).score == 0.5
    assert "there is no JSON" in model.asked[1]
    assert "Expected `float` <= 1" in model.asked[2]
    never = Scripted(["good!"])
    verdict = await Judge(never, "Is it right?")(SEEDS[0])
    assert (verdict.score, verdict.cost, len(never.asked)) == (None, 1.5, 3)


def test_agreement_needs_two() -> None:
    assert agreement_of([0.4]) is None
    assert agreement_of([0.4, 0.4]) == 1.0


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_rouge_l_is_the_longest_common_subsequence(one: list[str], other: list[str]) -> None:
    def lcs(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        if one[i] == other[j]:
            return 1 + lcs(i + 1, j + 1)
        return max(lcs(i + 1, j), lcs(i, j + 1))

    one, other = one[:6], other[:6]
    expected = 2 * lcs(0, 0) / (len(one) + len(other)) if one and other else 0.0
    assert rouge_l(" ".join(one), " ".join(other)) == expected
    assert nearest(" ".join(one), [" ".join(other)]).similarity == expected


PASSAGE = "Summarise the passage.\n\nPassage: The river rose.\n\n- in one line\n- in French"


@pytest.mark.parametrize(
    ("answer", "task"),
    [
        ("Task: Do it\n\nSure!", "Do it\n\nSure!"),
        ("9. Do it", "Do it"),
        ('"Do it"', "Do it"),
        ("\u201cDo it\u201d", "Do it"),
        ("New task 2: Do it", "Do it"),
        ("**New task:**\n\nDo it", "Do it"),
        ("### Task\n\nDo it", "Do it"),
        ("New Task\n========\nDo it", "Do it"),
        ("**Task**\n\nDo it", "Do it"),
        ("OK\n\nDo it", "Do it"),
        ("Of course! Here you go:\n\nDo it", "Do it"),
        ("Certainly! Below is a new task for you:\n\nDo it", "Do it"),
        (
            "Yes or no, for each of these:\n\nfish, ant",
            "Yes or no, for each of these:\n\nfish, ant",
        ),
        ("Great Britain: name its rivers.\n\nWhy?", "Great Britain: name its rivers.\n\nWhy?"),
        ("Explain the <task> element of BPMN.", "Explain the <task> element of BPMN."),
        ("Do 9.5 of it", "Do 9.5 of it"),
        ("", ""),
        ("Here is a new task:\n\nName a bird.", "Name a bird."),
        ("Here\u2019s one more question on another subject:\nName a bird.", "Name a bird."),
        ("Sure! Here is the rewritten task:\n\nName a bird.", "Name a bird."),
        ("Certainly.\n\nName a bird.", "Name a bird."),
        ("```\nName a bird.\n```", "Name a bird."),
        (PASSAGE, PASSAGE),
        (f"Here is a new task:\n\n{PASSAGE}", PASSAGE),
        (f"Sure.\n<task>\n{PASSAGE}\n</task>\nLet me know!", PASSAGE),
        ("<task>draft</task> Better: <task>Name a bird.</task>", "Name a bird."),
        ("Translate this into French:\n\nGood day", "Translate this into French:\n\nGood day"),
        ("1. Read it.\n2. Sum it up.", "1. Read it.\n2. Sum it up."),
        ('"A" and "B": which is longer?', '"A" and "B": which is longer?'),
        ("Here is a list:\n\na, b\n\nSort it.", "Here is a list:\n\na, b\n\nSort it."),
        ("Fix this:\n```py\nx = 1\n```", "Fix this:\n```py\nx = 1\n```"),
        ("Task:", "Task:"),
        ("\u65b0\u4e00\u70b9\n\n\u5199\u8bd7", "\u65b0\u4e00\u70b9\n\n\u5199\u8bd7"),
    ],
)
def test_the_whole_task_is_taken_out_of_its_wrapping(answer: str, task: str) -> None:
    assert task_in(answer) == task


@pytest.mark.parametrize(
    "answer",
    [
        "<think>Okay, a new task.\n\nMaybe.</think>\n\nName a bird.",
        "Okay, a new task.</think>\nName a bird.",
        "[THINK]Okay, a new task.[/THINK]Name a bird.",
        "<|channel|>analysis<|message|>Okay, a new task.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Name a bird.",
        Answer("Name a bird.", reasoning="Okay, a new task."),
    ],
)
@pytest.mark.parametrize("step", [SelfInstruct, Evolve, BackTranslate, Respond])
async def test_reasoning_is_no_part_of_an_item_and_is_kept_beside_it(
    step: Callable[..., ChatSynthesiser], answer: str | Answer
) -> None:
    async def model(_: Sequence[Message]) -> str | Answer:
        return answer

    seed = TrajectoryItem("Name a fish.", "A carp.", 1.0, {"reasoning": "Carps are fish."})
    (made,) = await step(model).generate(1, context=context(seeds=[seed]))
    assert isinstance(made, TrajectoryItem)
    about_answer = step is Respond
    assert (made.action if about_answer else made.state) == "Name a bird."
    notes = {"reasoning" if about_answer else "task_reasoning": "Okay, a new task."}
    if step is BackTranslate:  # the answer is the seed's, and so is the reasoning before it
        notes["reasoning"] = "Carps are fish."
    kept = {name: made.metadata[name] for name in made.metadata if name.endswith("reasoning")}
    assert "Okay" in str(kept.get("reasoning" if about_answer else "task_reasoning"))
    assert set(kept) == set(notes)


async def test_reasoning_in_a_seed_reaches_no_question() -> None:
    seed = TrajectoryItem("Name a fish.", "<think>Carps swim.</think>A carp.", 1.0)
    model = Scripted(["What swims?", '{"reason": "r", "score": 1}'])
    (made,) = await BackTranslate(model).generate(1, context=context(seeds=[seed]))
    assert isinstance(made, TrajectoryItem)
    assert made.action == seed.action, "the seed's answer stays as it is"
    assert (await Judge(model, "Is it right?")(seed)).score == 1
    assert all("A carp." in asked and "Carps swim" not in asked for asked in model.asked)
    silent = TrajectoryItem("Name a fish.", "<think>Carps swim.</think>")
    (rejected,) = await BackTranslate(model).generate(1, context=context(seeds=[silent]))
    assert isinstance(rejected, Rejection)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("Name a", finish_reason="length"),
        Answer("<task>Name a bi"),
        Answer("<think>Hm, a task about"),
        Answer(""),
        Answer("  \n"),
    ],
)
@pytest.mark.parametrize("step", [SelfInstruct, Evolve, BackTranslate, Respond])
async def test_what_was_cut_off_or_is_empty_is_rejected(
    step: Callable[..., ChatSynthesiser], answer: Answer
) -> None:
    if step is Respond and "<task>" in answer.text:
        return  # an answer may hold any text

    async def model(_: Sequence[Message]) -> Answer:
        return answer

    (made,) = await step(model).generate(1, context=context())
    assert isinstance(made, Rejection)
    assert made.reason == "invalid"


@pytest.mark.parametrize(
    ("first", "second", "least", "most"),
    [
        ("\u8bf7\u5199\u4e00\u9996\u5173\u4e8e\u6625\u5929\u7684\u8bd7\u3002",
         "\u8bf7\u5199\u4e00\u9996\u5173\u4e8e\u79cb\u5929\u7684\u8bd7", 0.85, 0.95),
        ("\u6625\u306e\u8a69\u3092\u66f8\u3044\u3066\u304f\u3060\u3055\u3044",
         "\u79cb\u306e\u8a69\u3092\u66f8\u3044\u3066\u304f\u3060\u3055\u3044", 0.8, 0.95),
        ("\u0e40\u0e02\u0e35\u0e22\u0e19\u0e1a\u0e17\u0e01\u0e27\u0e35",
         "\u0e40\u0e02\u0e35\u0e22\u0e19\u0e1a\u0e17\u0e04\u0e27\u0e32\u0e21", 0.5, 0.9),
        ("\u8bf7\u5199\u8bd7", "\u6570\u5230\u5341", 0.0, 0.0),
        ("Write a poem", "WRITE A POEM!", 1.0, 1.0),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u0935\u093f\u0924\u093e",
         "\u0939\u093f\u0928\u094d\u0926\u0940 \u0915\u0939\u093e\u0928\u0940", 0.5, 0.5),
        ("!?", "!?", 1.0, 1.0),
    ],
)  # fmt: skip
def test_texts_of_every_script_have_words(
    first: str, second: str, least: float, most: float
) -> None:
    assert least <= rouge_l(first, second) <= most


async def test_nothing_to_start_from_is_said() -> None:
    with pytest.raises(ConfigError, match="no source items"):
        await SelfInstruct(Scripted(["x"])).generate(1)


def test_settings_that_cannot_work_are_refused() -> None:
    model = Scripted(["x"])
    with pytest.raises(ConfigError, match=re.escape("must hold {shown}")):
        SelfInstruct(model, instruction="Write a task")
    with pytest.raises(ConfigError, match="with a verifier"):
        Respond(model, samples=2)
    with pytest.raises(ConfigError, match="rubric"):
        Judge(model, " ")


def test_other_words_are_another_fingerprint() -> None:
    model = Scripted(["x"])
    assert Respond(model).fingerprint != Respond(model, system="Be brief").fingerprint
    assert Respond(model).fingerprint == Respond(model).fingerprint


def teacher(text: str) -> str:
    """Tell tasks, answers and judgements apart by what is asked."""
    number = zlib.crc32(text.encode()) % 997
    if "Judge the answer" in text:
        return json.dumps({"score": 0.9 if number % 3 else 0.1, "reason": "so"})
    if "Write one more task" in text:
        return f"Describe matter {number} {number * 7} {number * 11} to child {number * 13}"
    return f"It is number {number}"


async def run(server: ChatServer, folder: Path, budget: float) -> tuple[SynthesisPipeline, int]:
    config = ClientConfig(
        model="m",
        base_url=server.url,
        price=Price(input=1.0, output=1.0),
        parameters={"max_tokens": 5},
        budget=budget,
    )
    async with RemoteChatModel(config, cache=folder / "answers.sqlite") as model:
        pipeline = SynthesisPipeline(
            SynthesisConfig(target_size=20, min_score=0.5, batch_size=4),
            scorer=Judge(model, "Is it right?"),
            run_dir=folder,
        )
        await pipeline.add_step(SelfInstruct(model)).add_step(Respond(model)).run(SEEDS)
        return pipeline, model.usage.answers


async def test_a_pipeline_of_all_of_it_adds_up_and_stops_at_the_budget(tmp_path: Path) -> None:
    with ChatServer(reply=teacher) as server:
        poor, answered = await run(server, tmp_path, budget=0.003)
        assert poor.result is not None
        assert poor.result.stop_reason == "budget"
        assert answered * 15e-6 <= 0.003
        rich, more = await run(server, tmp_path, budget=1.0)
    result = rich.result
    assert result is not None
    assert (result.stop_reason, len(result.items)) == ("target", 20)
    counted = len(result.items) + result.filtered_count + result.trimmed_count
    assert result.generated_count == counted
    assert len(server.paid) <= answered + more + 16, "only what was under way when it stopped"
    with closing(ResponseCache(tmp_path / "answers.sqlite")) as kept:
        assert len(kept) == answered + more, "none was paid twice"
    assert result.cost_per_item == pytest.approx(result.cost / 20)
    assert {item.metadata["score_reason"] for item in result.items} == {"so"}


async def test_a_model_that_fails_is_a_failed_batch_where_that_is_wanted() -> None:
    with ChatServer(lambda *_: "refuse") as server:
        config = ClientConfig(model="m", base_url=server.url)
        async with RemoteChatModel(config) as model:
            pipeline = SynthesisPipeline(SynthesisConfig(target_size=2, on_error="drop"))
            result = await pipeline.add_step(SelfInstruct(model)).run(SEEDS)
    assert result.stop_reason == "failures"
    assert result.rejected == {"failed": 2}
    assert "HTTP 400" in result.failures[0]
