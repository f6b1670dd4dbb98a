"""What is labelled, in which order, and that nothing said is lost or counted for the wrong side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import ConfigError, DataError, StorageError
from orbiter.train.evaluation import Judgement, read_judgements
from orbiter.train.evaluation.judgement import JudgementKind
from orbiter.train.labelling import (
    LabelSession,
    Unit,
    labelled_items,
    labelled_pairs,
    make_units,
    merge,
)
from orbiter.train.preference.pairs import make_pairs
from orbiter.train.trajectory import TrajectoryItem


def items_of(tasks: int, answers: int) -> list[TrajectoryItem]:
    return [
        TrajectoryItem(f"task {t}", f"answer {a} to {t}", 0.5, {"model": f"m{a}"})
        for t in range(tasks)
        for a in range(answers)
    ]


def pairs_of(tasks: int = 8) -> list[Unit]:
    return make_units(items_of(tasks, 2))


@pytest.mark.parametrize(
    ("answers", "kind", "count"),
    [(2, None, 4), (3, None, 8), (1, None, 4), (2, "right", 8), (2, "rating", 8)],
)
def test_units_follow_from_the_data(answers: int, kind: JudgementKind | None, count: int) -> None:
    units = make_units(items_of(4, answers), kind)
    assert len(units) == count
    assert len({unit.subject for unit in units}) == count
    expected = kind or ("better" if answers > 1 else "right")
    assert {unit.kind for unit in units} == {expected}


def test_the_same_text_is_labelled_once_and_empty_answers_never() -> None:
    same = [TrajectoryItem("t", "a"), TrajectoryItem("t", "a"), TrajectoryItem("t", " ")]
    assert len(make_units(same, "right")) == 1
    other_tools = TrajectoryItem("t", "a", tools=[{"type": "function"}])
    assert len(make_units([*same, other_tools], "right")) == 1


@pytest.mark.parametrize(
    ("items", "kind", "message"),
    [
        ([TrajectoryItem("t", "a")], "better", "no task has two different answers"),
        ([TrajectoryItem("t", "")], None, "every action is empty"),
        ([], "right", "every action is empty"),
    ],
)
def test_nothing_to_label_is_explained(
    items: list[TrajectoryItem],
    kind: JudgementKind | None,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        make_units(items, kind)


def test_order_and_sides_are_shuffled_differently_for_each_person(tmp_path: Path) -> None:
    seen: dict[str, list[object]] = {}
    for rater in ("ann", "bob", "ann"):
        with LabelSession(pairs_of(40), tmp_path / f"{rater}.jsonl", rater=rater) as session:
            shown = [session.shown(place) for place in range(40)]
        seen.setdefault(rater, []).append([(s.unit.subject, s.order) for s in shown])
        swapped = sum(s.order == (1, 0) for s in shown)
    assert seen["ann"][0] == seen["ann"][1]
    assert seen["ann"][0] != seen["bob"][0]
    assert 8 <= swapped <= 32


@pytest.mark.parametrize("said", ["left", "right"])
def test_a_side_is_recorded_as_the_answer_that_was_on_it(tmp_path: Path, said: str) -> None:
    with LabelSession(pairs_of(), tmp_path / "l.jsonl", rater="ann") as session:
        for place in range(session.total):
            shown = session.shown(place)
            on_side = shown.unit.answers[shown.order[("left", "right").index(said)]]
            judgement = session.label(place, {"value": said, "seconds": 1.5, "note": "why"})
            assert judgement.answers[0 if judgement.value == 1 else 1] == on_side
            assert judgement.shown == shown.order
    written = list(read_judgements(tmp_path / "l.jsonl"))
    assert len(written) == 8
    assert {(j.note, j.seconds, j.rater) for j in written} == {("why", 1.5, "ann")}


def test_it_goes_on_where_it_stopped_and_the_last_label_counts(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with LabelSession(pairs_of(), path, rater="ann") as session:
        session.label(0, {"value": "left"})
        session.label(1, {"value": None})
        session.label(2, {"value": "equal"})
        session.label(0, {"value": "right"})
        assert (session.done, session.first_open) == (3, 3)
    with LabelSession(pairs_of(), path, rater="ann") as session:
        assert (session.done, session.first_open) == (3, 3)
        given = session.shown(0).given
        assert given is not None
        assert given.value == (1.0 if session.shown(0).order[1] == 0 else 0.0)
    with LabelSession(pairs_of(), path, rater="bob") as session:
        assert session.done == 0
    merged = merge(read_judgements(path))
    assert len(merged.judgements) == 3
    assert merged.raters == {"ann": 2}
    assert len(merged.verdicts) == 2


def test_a_half_written_last_line_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with LabelSession(pairs_of(), path, rater="ann") as session:
        session.label(0, {"value": "left"})
    with path.open("ab") as file:
        file.write(b'{"rater": "ann", "ki')
    with LabelSession(pairs_of(), path, rater="ann") as session:
        assert session.done == 1
        session.label(1, {"value": "left"})
    assert len(list(read_judgements(path))) == 2


def test_a_changed_line_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with LabelSession(pairs_of(), path, rater="ann") as session:
        session.label(0, {"value": "left"})
        session.label(1, {"value": "left"})
    path.write_bytes(path.read_bytes().replace(b'"ann"', b'"eve"', 1))
    with pytest.raises(StorageError, match=r"l\.jsonl:1"):
        LabelSession(pairs_of(), path, rater="ann")


def test_one_process_labels_into_a_file_at_a_time(tmp_path: Path) -> None:
    with (
        LabelSession(pairs_of(), tmp_path / "l.jsonl", rater="ann"),
        pytest.raises(StorageError),
    ):
        LabelSession(pairs_of(), tmp_path / "l.jsonl", rater="bob")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("better", True), ("better", 1), ("better", "both"), ("right", "left"), ("right", 1),
        ("rating", 0), ("rating", 6), ("rating", 2.5), ("rating", True), ("rating", "3"),
        ("better", ["left"]), ("rating", float("nan")),
    ],
)  # fmt: skip
def test_an_answer_of_another_kind_is_refused_and_not_written(
    tmp_path: Path,
    kind: JudgementKind,
    said: object,
) -> None:
    with LabelSession(
        make_units(items_of(2, 2), kind), tmp_path / "l.jsonl", rater="ann"
    ) as session:
        with pytest.raises(DataError, match="value must be"):
            session.label(0, {"value": said})
        assert session.done == 0
    assert (tmp_path / "l.jsonl").read_bytes() == b""


@pytest.mark.parametrize("place", [-1, 8, True, "0", None, 1.0])
def test_a_place_that_does_not_exist_is_refused(tmp_path: Path, place: object) -> None:
    with (
        LabelSession(pairs_of(), tmp_path / "l.jsonl", rater="ann") as session,
        pytest.raises(DataError, match="place must be a whole number from 0 to 7"),
    ):
        session.label(place, {"value": "left"})


@pytest.mark.parametrize(
    ("further", "message"), [({"rater": " "}, "needs a name"), ({"scale": 10}, "from 2 to 9")]
)
def test_wrong_settings_are_refused(tmp_path: Path, further: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelSession(pairs_of(), tmp_path / "l.jsonl", **{"rater": "ann", **further})


def said(
    rater: str, value: float | None, task: str = "t", kind: JudgementKind = "better"
) -> Judgement:
    answers = ("first", "second") if kind == "better" else ("first",)
    cause = "skipped" if value is None else ""
    return Judgement(rater=rater, kind=kind, value=value, task=task, answers=answers, cause=cause)


def test_the_majority_decides_and_a_tie_decides_nothing() -> None:
    merged = merge(
        [
            *(said("ann", 1), said("bob", 1), said("eve", 0)),
            *(said("ann", 1, "u"), said("bob", 0, "u")),
            *(said("ann", 0, "v"), said("bob", None, "v")),
        ]
    )
    assert {verdict.task: verdict.value for verdict in merged.verdicts} == {
        "t": 1.0,
        "u": None,
        "v": 0.0,
    }
    assert merged.overlap == 2
    pairs = labelled_pairs(merged)
    assert [(p.chosen.action, p.rejected.action) for p in pairs] == [
        *(("first", "second"), ("second", "first"))
    ]


def test_full_agreement_has_alpha_one_and_ratings_are_averaged() -> None:
    judgements = [
        said(rater, value, task, "rating")
        for task, value in (("a", 1.0), ("b", 5.0))
        for rater in ("ann", "bob")
    ]
    merged = merge(judgements)
    assert merged.alphas == {"rating": 1.0}
    mixed = merge([said("ann", 2, "a", "rating"), said("bob", 3, "a", "rating")])
    assert [item.reward for item in labelled_items(mixed)] == [2.5]


def test_ratings_of_a_judge_are_not_averaged_with_those_of_people() -> None:
    people = [said("ann", 4, "a", "rating"), said("bob", 1, "b", "rating")]
    judge = [said("Judge(m)", 0.9, "a", "rating"), said("Judge(m)", 1, "b", "rating")]
    with pytest.raises(DataError, match=r"'Judge\(m\)' rates from 0 to 1, and 'ann' gave 4"):
        merge([*people, *judge])
    assert len(merge([*judge, said("Judge(n)", 0.2, "a", "rating")]).verdicts) == 2
    assert merge([*people, said("eve", 1, "a", "rating")]).overlap == 1
    halves = [said("ann", 4.5, "a", "rating"), said("bob", 1.5, "a", "rating")]
    assert merge(halves).verdicts[0].value == 3


def test_labels_of_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="no labels"):
        merge([])


def test_labelled_pairs_are_what_the_preference_trainer_takes(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "task 0"}]
    data = [TrajectoryItem("task 0", text, messages=chat) for text in ("good", "bad")]
    with LabelSession(make_units(data), tmp_path / "l.jsonl", rater="ann") as session:
        order = session.shown(0).order
        session.label(0, {"value": ("left", "right")[order.index(0)]})
    pairs = labelled_pairs(merge(read_judgements(tmp_path / "l.jsonl")), data)
    [pair] = make_pairs(pairs).pairs
    assert pair.chosen.first.action == "good"
    assert pair.chosen.first.messages == chat
    assert pair.margin == 1.0


def test_the_sides_of_a_labelled_pair_keep_the_prompt_that_they_share(tmp_path: Path) -> None:
    """Two prompts look alike on the page, differ in their tools, and share the text "same"."""
    plain = [TrajectoryItem("task", text) for text in ("same", "worse")]
    tools = [{"type": "function", "function": {"name": "look"}}]
    with_tools = [TrajectoryItem("task", text, tools=tools) for text in ("same", "worst")]
    for data in ([*plain, *with_tools], [*with_tools, *plain]):
        path = tmp_path / f"{data[0].tools is None}.jsonl"
        with LabelSession(make_units(data), path, rater="ann") as session:
            assert session.total == 2
            for place in range(2):
                shown = session.shown(place)
                side = [shown.unit.answers[at] for at in shown.order].index("same")
                session.label(place, {"value": ("left", "right")[side]})
        pairs = labelled_pairs(merge(read_judgements(path)), data)
        assert len(make_pairs(pairs).pairs) == 2, "refused if the sides had different prompts"
        of_rejected = {pair.rejected.action: pair.rejected.tools for pair in pairs}
        assert of_rejected == {"worse": None, "worst": tools}


def test_answers_that_differ_in_the_template_settings_are_no_pair() -> None:
    data = [
        TrajectoryItem("t", text, metadata={"chat_template_kwargs": {"enable_thinking": flag}})
        for text, flag in (("a", True), ("b", False))
    ]
    assert {unit.kind for unit in make_units(data)} == {"right"}
    with pytest.raises(DataError, match="no task has two different answers"):
        make_units(data, "better")


def test_the_journal_is_lines_of_json_that_judges_write_too(tmp_path: Path) -> None:
    with LabelSession(pairs_of(1), tmp_path / "l.jsonl", rater="ann") as session:
        session.label(0, {"value": "equal"})
    record = json.loads((tmp_path / "l.jsonl").read_text())
    assert {"rater", "kind", "value", "task", "answers"} <= record.keys()
    assert record["value"] == 0.5


def test_labels_of_answers_that_are_gone_are_counted_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    units = make_units(items_of(4, 1), "right")
    with LabelSession(units, path, rater="ann") as session:
        for place in range(4):
            session.label(place, {"value": True})
    changed = [TrajectoryItem("task 0", "mended"), *items_of(4, 1)[1:]]
    with LabelSession(make_units(changed, "right"), path, rater="ann") as session:
        assert (session.done, session.total, session.elsewhere) == (3, 4, 1)
        assert session.shown(session.first_open).unit.answers == ("mended",)
        session.label(session.first_open, {"value": False})
    with LabelSession(make_units(changed, "right"), path, rater="bob") as session:
        assert session.elsewhere == 0
    with LabelSession(units, path, rater="ann") as session:
        assert (session.done, session.elsewhere) == (4, 1)


def test_a_rating_above_the_scale_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    units = make_units(items_of(2, 1), "rating")
    with LabelSession(units, path, rater="ann", scale=9) as session:
        session.label(0, {"value": 7})
    with pytest.raises(
        ConfigError, match=r"l\.jsonl:\d+ holds the rating 7, and the scale ends at 5"
    ):
        LabelSession(units, path, rater="ann", scale=5)
    with LabelSession(units, path, rater="ann", scale=7) as session:
        assert session.done == 1
