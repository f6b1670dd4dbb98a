from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from orbiter.train import DataError, TrajectoryItem
from orbiter.train.engine.models.load import load_model
from orbiter.train.engine.policy import make_policy
from orbiter.train.engine.update import micro_batches
from orbiter.train.formats.preference import preference_pairs
from orbiter.train.formats.registry import read, write
from orbiter.train.preference.encoding import AttemptEncoder, EncodedPair, batch_of, encode_pairs
from orbiter.train.preference.pairs import PreferencePair, make_pairs


def item(state: str, action: str, reward: float | None = None, **more: Any) -> TrajectoryItem:  # noqa: ANN401 - the fields of an item
    return TrajectoryItem(state, action, reward, **more)


def episode(task: str, name: str, reward: float, *answers: str) -> list[TrajectoryItem]:
    """Return an episode whose every turn continues the one before."""
    messages: list[dict[str, object]] = [{"role": "user", "content": task}]
    items = []
    for step, answer in enumerate(answers):
        items.append(
            TrajectoryItem(
                task,
                answer,
                reward,
                task_id=task,
                episode_id=name,
                step=step,
                messages=list(messages),
            )
        )
        messages += [
            {"role": "assistant", "content": answer},
            {"role": "user", "content": "Go on."},
        ]
    return items


def told(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen.items[-1].action, pair.rejected.items[-1].action) for pair in pairs]


def encoded(pairs: list[PreferencePair], **settings: Any) -> list[EncodedPair]:  # noqa: ANN401 - AttemptEncoder's
    tokenizer = load_model("tiny").tokenizer
    sides = [side for pair in pairs for side in pair.sides]
    encoder = AttemptEncoder(tokenizer, sides, **({"context": 512} | settings))
    return encode_pairs(encoder, pairs)


def test_each_answer_is_used_once_the_best_with_the_worst() -> None:
    items = [item("q", name, reward) for name, reward in zip("abcde", (3, 1, 5, 2, 4), strict=True)]
    assert told(make_pairs(items).pairs) == [("c", "b"), ("e", "d")]
    assert told(make_pairs(items, per_task=3).pairs)[0] == ("c", "b")
    assert len(make_pairs(items, per_task=3).pairs) == 3
    assert len(make_pairs(items, per_task=100).pairs) == 10
    assert told(make_pairs(items, min_margin=3).pairs) == [("c", "b")]


def test_explicit_pairs_to_one_prompt_are_all_kept() -> None:
    rows = [("q", f"good {n}", 1.0) for n in range(3)] + [("q", f"bad {n}", 0.0) for n in range(3)]
    pairs = make_pairs([item(*row) for row in rows]).pairs
    assert len(pairs) == 3
    assert {pair.task for pair in pairs} == {0}


ROWS: dict[str, Callable[[str, str, str], dict[str, Any]]] = {
    "trl": lambda prompt, good, bad: {"prompt": prompt, "chosen": good, "rejected": bad},
    "openai": lambda prompt, good, bad: {
        "input": {"messages": [{"role": "user", "content": prompt}]},
        "preferred_output": [{"role": "assistant", "content": good}],
        "non_preferred_output": [{"role": "assistant", "content": bad}],
    },
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(
    "rows",
    [
        [("two stars", "one star"), ("five stars", "four stars")],
        [("a", "b"), ("b", "c")],
        [("a", "b"), ("c", "b"), ("a", "d")],
        [("a", "b"), ("b", "c"), ("c", "a")],
    ],
)
def test_the_rows_of_a_preference_file_stay_the_pairs_that_they_are(
    rows: list[tuple[str, str]], kind: str, tmp_path: Path
) -> None:
    """Rows of one prompt only compare their own two answers, so none may be paired across rows."""
    file = tmp_path / "pairs.jsonl"
    other = [("yes", "no"), ("maybe", "no")]
    made = [("q", *row) for row in rows]
    made[1:1] = [("p", *row) for row in other]  # the rows of a prompt need not be together
    file.write_text("".join(json.dumps(ROWS[kind](*row)) + "\n" for row in made))
    items = list(read(file))
    pairs = make_pairs(items).pairs
    assert told(pairs) == [*rows, *other]
    assert told(make_pairs(items, per_task=1).pairs) == [rows[0], other[0]]
    copied = tmp_path / "copied.jsonl"
    report = write(items, copied, "openai-dpo" if kind == "trl" else "trl-preference")
    assert (report.written, report.left_out.get("items in no pair")) == (2 * len(made), None)
    assert told(make_pairs(list(read(copied))).pairs) == [*rows, *other]


def test_scores_still_choose_the_widest_pairs(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": good, "rejected": bad, "score_chosen": b, "score_rejected": w}
        for good, b, bad, w in (("two", 2.0, "one", 1.0), ("five", 5.0, "four", 4.0))
    ]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert told(make_pairs(list(read(file))).pairs) == [("five", "one"), ("four", "two")]


def test_a_label_counts_where_there_is_no_reward() -> None:
    items = [
        item("q", "good", metadata={"label": True}),
        item("q", "bad", metadata={"label": False}),
        item("q", "best", 2.0, metadata={"label": False}),
    ]
    pairs = make_pairs(items, per_task=9).pairs
    assert told(pairs) == [("best", "bad"), ("best", "good"), ("good", "bad")]


def test_the_attempts_at_a_task_are_compared_as_whole_episodes() -> None:
    items = episode("t", "e0", 0.0, "x", "wrong") + episode("t", "e1", 1.0, "x", "y", "right")
    (pair,) = make_pairs(items).pairs
    assert [len(side.items) for side in pair.sides] == [3, 2]
    assert pair.margin == 1.0
    (both,) = encoded([pair])
    assert len(both.chosen.streams) == 1, "the turns continue each other"
    stream = both.chosen.streams[0]
    tokenizer = load_model("tiny").tokenizer
    trained = [t for t, mask in zip(stream.token_ids, stream.mask, strict=True) if mask]
    assert tokenizer.decode(trained, skip_special_tokens=True) == "xyright"


def test_an_episode_is_worth_the_reward_of_its_last_step() -> None:
    def rewarded(name: str, *rewards: float | None) -> list[TrajectoryItem]:
        steps = episode("t", name, 0.0, *(f"{name}{place}" for place in range(len(rewards))))
        return [replace(step, reward=r) for step, r in zip(steps, rewards, strict=True)]

    misleading = rewarded("bad", 1.0, 0.0) + rewarded("good", 0.0, 1.0)
    assert told(make_pairs(misleading).pairs) == [("good1", "bad1")]
    only_at_the_end = rewarded("bad", None, 0.0) + rewarded("good", None, None, 1.0)
    assert told(make_pairs(only_at_the_end).pairs) == [("good2", "bad1")]


def test_the_steps_of_episodes_can_be_compared_one_by_one() -> None:
    items = episode("t", "e0", 0.0, "bad", "z") + episode("t", "e1", 1.0, "good", "w")
    assert told(make_pairs(items, whole_episodes=False).pairs) == [("good", "bad")]


def test_pairs_that_the_caller_has_made_are_taken_as_they_are() -> None:
    items = [item("q", name, reward) for name, reward in zip("abc", (1, 2, 3), strict=True)]
    made = list(preference_pairs(items, max_per_state=2))
    assert told(make_pairs(made).pairs) == [("c", "a"), ("c", "b")]
    swapped = [made[0]._replace(chosen=made[0].rejected, rejected=made[0].chosen)]
    with pytest.raises(DataError, match=r"pair 0 has its sides swapped: .* reward 1, .* 3"):
        make_pairs(swapped)
    other = [made[0]._replace(rejected=item("another", "a", 0.0))]
    with pytest.raises(DataError, match="pair 0 are to different prompts"):
        make_pairs(other)


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([item("q", "a", 1.0), item("p", "b", 0.0)], "2 tasks with a single attempt; sample"),
        ([item("q", "a", 1.0), item("q", "b", 1.0)], "1 tasks whose attempts all have the same"),
        ([item("q", "a", 1.0), item("q", "a", 0.0)], "1 pairs of identical answers; sample at"),
        ([item("q", "", 1.0), item("q", "b", 0.0)], "1 pairs whose better answer is empty"),
        ([item("q", "a"), item("q", "b")], "2 attempts without a reward or label; score"),
        (["q", "p"], "2 attempts without a reward"),
        ([], "empty"),
        (None, "must be a TrajectoryDataset"),
    ],
)
def test_data_without_a_pair_is_refused_with_the_reason(items: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_pairs(items)


def test_what_is_in_no_pair_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    items = [
        *(item("q", "a", 1.0), item("q", "b", 0.0)),
        *(item("tie", "a", 1.0), item("tie", "b", 1.0)),
        item("alone", "a", 1.0),
        item("q", "c"),
        *(item("same", "a", 1.0), item("same", "a", 0.0)),
        *(replace(step, metadata={"episode_error": "x"}) for step in episode("t", "e", 0.0, "a")),
    ]
    found = make_pairs(items)
    assert len(found.pairs) == 1
    assert set(found.left_out.values()) == {1}
    assert len(found.left_out) == 5
    assert "in none of them" in caplog.text


def test_episodes_that_begin_differently_are_paired_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = episode("t", "e0", 0.0, "a"), episode("t", "e1", 1.0, "b")
    changed = [replace(step, messages=[{"role": "user", "content": "11:02. t"}]) for step in second]
    assert len(make_pairs([*first, *changed]).pairs) == 1
    assert "in 1 of 1 pairs the two episodes begin with different prompts" in caplog.text


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+3?", "chosen": "5", "rejected": "6"},
        {
            "input": {"messages": [{"role": "user", "content": "2+3?"}]},
            "preferred_output": [{"role": "assistant", "content": "5"}],
            "non_preferred_output": [{"role": "assistant", "content": "6"}],
        },
    ],
)
def test_the_preference_files_of_trl_and_openai_make_pairs(
    row: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert told(make_pairs(list(read(file))).pairs) == [("5", "6")]


def test_a_side_of_several_messages_is_one_attempt(tmp_path: Path) -> None:
    turns = [
        {"role": "assistant", "content": "let me look"},
        {"role": "user", "content": "well?"},
        {"role": "assistant", "content": "5"},
    ]
    row = {
        "prompt": [{"role": "user", "content": "2+3?"}],
        "chosen": turns,
        "rejected": [{"role": "assistant", "content": "6"}],
    }
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    (pair,) = make_pairs(list(read(file))).pairs
    assert [len(side.items) for side in pair.sides] == [2, 1]


def test_a_shared_prompt_is_one_group_and_runs_once() -> None:
    items = [item(f"q{n}", a, r) for n in range(3) for a, r in (("yes", 1.0), ("never", 0.0))]
    pairs = encoded(make_pairs(items).pairs)
    batch = batch_of([pair.sides for pair in pairs])
    assert batch.group.tolist() == [0, 0, 1, 1, 2, 2]
    loaded = load_model("tiny")
    forward = make_policy(loaded.model, loaded.tokenizer, device="cpu").forward
    assert forward.name == "fast"
    assert int(forward.cost(batch).sum()) == sum(pair.length for pair in pairs)


def test_the_sides_of_a_pair_are_never_in_different_micro_batches() -> None:
    first, second = episode("a", "e0", 0.0, "x", "yyyyyy"), episode("a", "e1", 1.0, "z" * 30)
    changed = [replace(step, messages=[{"role": "user", "content": "b"}]) for step in second]
    more = [item(f"q{n}", a * 9, r) for n in range(3) for a, r in (("y", 1.0), ("n", 0.0))]
    pairs = encoded(make_pairs([*first, *changed, *more]).pairs)
    batch = batch_of([pair.sides for pair in pairs])
    loaded = load_model("tiny")
    forward = make_policy(loaded.model, loaded.tokenizer, device="cpu").forward
    for budget in (1, 60, 120, 10_000):
        every = torch.arange(len(batch.length))
        parts = [part.rows for part in micro_batches(forward, batch, every, budget)]
        assert sorted(row for part in parts for row in part.tolist()) == list(range(8))
        homes = [set(batch.select(part).unit.tolist()) for part in parts]  # type: ignore[union-attr]
        assert sum(map(len, homes)) == len(set.union(*homes)) == 4
    assert len(parts) == 1


def test_a_pair_that_is_too_long_is_refused_left_out_or_cut_alike(
    caplog: pytest.LogCaptureFixture,
) -> None:
    items = [
        *(item("x" * 300, "yes", 1.0), item("x" * 300, "never ever", 0.0)),
        *(item("q", "yes", 1.0), item("q", "no", 0.0)),
    ]
    pairs = make_pairs(items).pairs
    with pytest.raises(DataError, match=r"pair 0 does not fit: .* on_long_prompt='drop'"):
        encoded(pairs, context=120)
    assert len(encoded(pairs, context=120, on_long_prompt="drop")) == 1
    assert "1 left out, 0 cut" in caplog.text
    cut = encoded(pairs, context=120, on_long_prompt="truncate-left")
    assert len(cut) == 2
    assert cut[0].chosen.prompt == cut[0].rejected.prompt
    assert max(side.longest for side in cut[0].sides) == 120
    assert encoded(pairs, context=400, longest_prompt=50, on_long_prompt="drop") == cut[1:]
    with pytest.raises(DataError, match="nothing fits the model's context of 5"):
        encoded(pairs, context=5, on_long_prompt="drop")


def test_an_episode_that_is_too_long_cannot_be_cut() -> None:
    items = episode("t" * 200, "e0", 0.0, "a", "b") + episode("t" * 200, "e1", 1.0, "c", "d")
    with pytest.raises(DataError, match="cannot cut episodes"):
        encoded(make_pairs(items).pairs, context=100, on_long_prompt="truncate-left")


def test_answers_that_are_the_same_tokens_are_refused() -> None:
    same = {"prompt_token_ids": [1, 5, 6], "token_ids": [104, 105]}
    pairs = make_pairs([item("q", "hi", 1.0, **same), item("q", "hi ", 0.0, **same)]).pairs
    with pytest.raises(DataError, match="the two answers of all 1 pairs are the same tokens"):
        encoded(pairs)
