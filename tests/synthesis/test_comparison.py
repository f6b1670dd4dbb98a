"""Rows of agents are compared by what they add: not by the prompt and the history they share."""

import random
from fractions import Fraction

import pytest

from orbiter.train.errors import ConfigError
from orbiter.train.synthesis import CurationReport, SplitReport, deduplicate, split_dataset
from orbiter.train.synthesis.comparison import turns_in, units_of
from orbiter.train.synthesis.similarity import Measure
from orbiter.train.trajectory import TrajectoryDataset, TrajectoryItem
from tests.synthesis.brute_force import close_pairs

SYSTEM = " ".join(f"Rule {n}: always do thing {n} before you answer." for n in range(25))
WORDS = """river stone amber cloud lantern market winter harbour violin copper meadow thunder
pepper anchor marble falcon ribbon cactus velvet saddle orchid bishop tunnel magnet""".split()  # noqa: SIM905 - a word list


def sentence(seed: object, length: int = 20) -> str:
    return " ".join(random.Random(str(seed)).choices(WORDS, k=length))


def rendered(messages: list[dict[str, object]]) -> str:
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def chat(user: str, action: str, system: str = SYSTEM, **more: object) -> TrajectoryItem:
    messages: list[dict[str, object]] = [
        {"role": "system", "content": system},
        {"role": "user", "content": user},
    ]
    return TrajectoryItem(rendered(messages), action, 1.0, messages=messages, **more)  # type: ignore[arg-type]  # fields


def episode(
    task: str, run: int, *, steps: int = 5, with_messages: bool = True, variant: object = ""
) -> list[TrajectoryItem]:
    """Steps of an agent whose prompt repeats all that went before."""
    messages: list[dict[str, object]] = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": task},
    ]
    items = []
    for step in range(steps):
        action = f"look up {sentence((task, variant, step, 'call'), 4)}"
        items.append(
            TrajectoryItem(
                rendered(messages),
                action,
                1.0,
                episode_id=f"{task[:20]}-{run}",
                step=step,
                messages=list(messages) if with_messages else None,
            )
        )
        messages += [
            {"role": "assistant", "content": action},
            {"role": "tool", "content": sentence((task, variant, step, "result"))},
        ]
    return items


@pytest.mark.parametrize("with_messages", [True, False])
def test_tasks_under_one_system_prompt_are_all_kept(with_messages: bool) -> None:
    items = [chat(f"What is {n} plus {7 * n}?", str(8 * n)) for n in range(40)]
    if not with_messages:
        items = [TrajectoryItem(item.state, item.action, 1.0) for item in items]
    assert len(deduplicate(items)) == 40
    assert [len(part) for part in split_dataset(items)] == [32, 4, 4]
    assert len(deduplicate(items, unit="text")) < 5, "the whole text is mostly the system prompt"


@pytest.mark.parametrize("with_messages", [True, False])
def test_no_step_of_an_episode_is_dropped_alone(with_messages: bool) -> None:
    episodes = [episode(sentence(n), 0, with_messages=with_messages, steps=20) for n in range(5)]
    items = [item for each in episodes for item in each]
    assert deduplicate(items) == items
    assert deduplicate(items, unit="step") == items
    assert len(deduplicate(items, unit="text")) < 100
    report = SplitReport()
    parts = split_dataset(items, (0.6, 0.2, 0.2), report=report)
    assert [len(part) for part in parts] == [60, 20, 20]
    assert report.groups == 5


def test_an_episode_run_again_is_dropped_whole() -> None:
    first = episode(sentence("a"), 0)
    again = episode(sentence("a"), 1)
    another = episode(sentence("b"), 0)
    report = CurationReport()
    assert deduplicate([*first, *again, *another], report=report) == [*first, *another]
    assert [(drop.index, drop.witness) for drop in report.dropped] == [(n, 0) for n in range(5, 10)]


def test_an_episode_that_goes_another_way_stays_although_its_task_is_the_same() -> None:
    items = [*episode(sentence("a"), 0), *episode(sentence("a"), 1, variant="other")]
    assert deduplicate(items) == items
    report = SplitReport()
    rest = [item for n in range(8) for item in episode(sentence(n), 0)]
    parts = split_dataset([*items, *rest], (0.5, 0.5), report=report)
    sides = {part for part, held in enumerate(parts) for item in held if item in items}
    assert len(sides) == 1, "one task is never on both sides"
    assert (report.groups, report.biggest_group, report.leaked) == (9, 10, 0)


def test_a_short_greeting_ties_no_episodes_together() -> None:
    items = [
        TrajectoryItem(f"Hello{extra}", sentence((n, step)), 1.0, episode_id=str(n), step=step)
        for n in range(10)
        for step, extra in enumerate(["", "\n" + sentence((n, "next"))])
    ]
    report = SplitReport()
    split_dataset(items, report=report)
    assert report.groups == 10


def test_the_best_episode_by_its_mean_score_stays() -> None:
    low = [
        TrajectoryItem(item.state, item.action, 0.5, episode_id="low", step=item.step)
        for item in episode(sentence("a"), 0, with_messages=False)
    ]
    high = [
        TrajectoryItem(item.state, item.action, r, episode_id="high", step=item.step)
        for item, r in zip(low, (None, None, None, None, 0.9), strict=True)
    ]
    assert deduplicate([*low, *high]) == high
    assert deduplicate([*low, *high], keep="first") == low


def test_steps_are_compared_alone_when_asked_for() -> None:
    first, again = episode(sentence("a"), 0), episode(sentence("a"), 1)
    mixed = [*first, *again[:3], *episode(sentence("a"), 2, variant="x")[3:]]
    assert deduplicate(mixed, unit="step") == [*first, *mixed[8:]]


def test_steps_out_of_order_are_compared_in_the_order_of_their_numbers() -> None:
    first, again = episode(sentence("a"), 0), episode(sentence("a"), 1)
    assert deduplicate([*first, *reversed(again)]) == first


def test_a_history_cut_to_the_last_turns_adds_no_more_than_a_whole_one() -> None:
    whole = episode(sentence("a"), 0, steps=8)
    cut = [
        TrajectoryItem(
            rendered([*item.messages[:2], *item.messages[-4:]])  # type: ignore[index]  # chats
            if len(item.messages or ()) > 6
            else item.state,
            item.action,
            1.0,
            episode_id="cut",
            step=item.step,
            messages=None
            if len(item.messages or ()) <= 6
            else [*item.messages[:2], *item.messages[-4:]],  # type: ignore[index]  # chats
        )
        for item in whole
    ]
    assert [units_of(items, "episode").texts for items in (whole, cut)] == [
        units_of(whole, "episode").texts
    ] * 2


def test_plain_states_that_grow_are_compared_by_their_growth() -> None:
    state, items = sentence("task"), []
    for step in range(6):
        items.append(TrajectoryItem(state, f"act {step}", 1.0, episode_id="e", step=step))
        state += f"\nact {step}\n{sentence(step, 6)}"
    texts = units_of(items, "step").texts
    assert [text.split() for text in texts[1:]] == [
        [*sentence(step, 6).split(), "act", str(step + 1)] for step in range(5)
    ]


def test_different_instructions_are_different_tasks() -> None:
    prompts = [sentence(n, 60) for n in range(4)]
    items = [chat("Go.", "done", prompt) for prompt in prompts for _ in range(2)]
    assert deduplicate(items) == items[::2]
    report = SplitReport()
    split_dataset(items, (0.5, 0.5), report=report)
    assert (report.groups, report.biggest_group) == (4, 2)


def test_a_task_inside_the_system_prompt_is_compared() -> None:
    items = [
        chat("Go.", "done", f"{SYSTEM} Today's task: {sentence(n, 8)}.")
        for n in range(12)
        for _ in range(2)
    ]
    assert deduplicate(items) == items[::2]


def test_a_date_in_the_system_prompt_changes_nothing() -> None:
    items = [
        chat(f"What is {n} plus {7 * n}?", str(8 * n), f"Today is 2026-11-{n % 28}. {SYSTEM}")
        for n in range(40)
    ]
    assert len(deduplicate(items)) == 40
    assert len(split_dataset(items)) == 3
    one_task = [chat(sentence("q", 30), "a", f"Today is 2026-11-{n}. {SYSTEM}") for n in range(9)]
    assert len(deduplicate(one_task, 0.8)) == 1


def test_worked_examples_that_rows_share_are_instructions() -> None:
    shots: list[dict[str, object]] = [
        {"role": role, "content": sentence((role, n), 25)}
        for n in range(6)
        for role in ("user", "assistant")
    ]
    items = []
    for n in range(20):
        messages: list[dict[str, object]] = [
            *shots,
            {"role": "user", "content": f"And what is {n} times {n + 1}?"},
        ]
        items.append(TrajectoryItem(rendered(messages), str(n * (n + 1)), 1.0, messages=messages))
    assert deduplicate(items) == items
    assert deduplicate([*items, *items]) == items


def test_a_small_rewording_of_the_task_is_found_behind_the_system_prompt() -> None:
    words = sentence("q", 60).split()
    reworded = " ".join([*words[:30], "gently", *words[31:]])
    items = [chat(" ".join(words), "the answer"), chat(reworded, "the answer")]
    assert deduplicate(items) == items[:1]


def test_a_row_that_shares_nothing_is_compared_word_for_word() -> None:
    items = [TrajectoryItem("What is 1?", "one", 1.0), TrajectoryItem("What is 2?", "two", 1.0)]
    assert units_of(items, "episode").texts == ["What is 1?\none", "What is 2?\ntwo"]
    asked = [{"role": "user", "content": "What is 1?"}]
    single = TrajectoryItem("[user]\nWhat is 1?", "one", 1.0, messages=asked)
    assert units_of([single], "episode").texts == ["[user]\nWhat is 1?\none"]


def test_an_episode_of_the_reference_set_keeps_its_like_out() -> None:
    test_set = episode(sentence("a"), 0)
    data = [*episode(sentence("a"), 0), *episode(sentence("b"), 0)]
    report = CurationReport()
    assert deduplicate(data, against=test_set, report=report) == data[5:]
    assert report.by_reason == {"duplicate_of_reference": 5}
    assert {drop.witness for drop in report.dropped} == {0}


def test_a_data_set_and_mappings_are_treated_alike() -> None:
    items = [*episode(sentence("a"), 0), *episode(sentence("a"), 1), *episode(sentence("b"), 0)]
    kept = [*items[:5], *items[10:]]
    data = TrajectoryDataset()
    data.extend(items)
    assert list(deduplicate(data)) == kept
    rows = [item.to_dict() for item in items]
    assert deduplicate(rows) == [item.to_dict() for item in kept]


def test_a_key_is_compared_per_episode_unless_single_rows_are_asked_for() -> None:
    rows = [
        {"state": f"s{n}", "goal": goal, "episode_id": run}
        for n, (goal, run) in enumerate([("x", 1), ("y", 1), ("x", 2), ("y", 2), ("x", 3)])
    ]
    assert deduplicate(rows, key="goal") == [rows[0], rows[1], rows[4]]
    assert deduplicate(rows, key="goal", unit="step") == rows[:2]


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unit must be one of .* did you mean 'episode'"):
        deduplicate([{"state": "s"}], unit="episodes")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ConfigError, match="unit must be one of"):
        split_dataset([{"state": "s"}], unit="row")  # type: ignore[arg-type]  # wrong on purpose


def test_the_form_of_captured_states_is_read_back() -> None:
    state = "[system]\nA [user] is\n\nnot a role.\n\n[user]\nHi\n\n[tool add]\n5"
    assert turns_in(state) == [
        ("system", "A [user] is\n\nnot a role."),
        ("user", "Hi"),
        ("tool add", "5"),
    ]
    assert turns_in("[1] first\n\n[user]\nx") == [("", "[1] first\n\n[user]\nx")]


# ── scripts without spaces ────────────────────────────────────────────────────────────────────────

SCRIPTS = {
    "Chinese": [chr(0x4E00 + 37 * n) for n in range(300)],
    "Japanese": [chr(0x3042 + n) for n in range(80)] + [chr(0x5000 + 91 * n) for n in range(100)],
    "Thai": [chr(0xE01 + n) + mark for n in range(46) for mark in ("", "\u0e34", "\u0e49")],
    "Khmer": [chr(0x1780 + n) for n in range(33)],
    "Burmese": [chr(0x1000 + n) + mark for n in range(33) for mark in ("", "\u103c")],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_without_spaces_are_compared_by_their_characters(script: str) -> None:
    draw = random.Random(1)
    rows = []
    for _ in range(100):
        letters = draw.choices(SCRIPTS[script], k=57)
        rows.append({"state": "".join(letters)})
        letters[draw.randrange(57)] = draw.choice(SCRIPTS[script])
        rows.append({"state": "".join(letters)})
    assert len(deduplicate(rows, 0.8)) == 100
    report = SplitReport()
    train, test = split_dataset(rows, (0.5, 0.5), report=report)
    held = [{str(row["state"])[:12] for row in part} for part in (train, test)]
    assert report.groups == 100
    assert report.leaked == 0
    assert len(held[0] & held[1]) == 0
    assert close_pairs([str(row["state"]) for row in deduplicate(rows, 0.3)], "0.3", 3) == {}


def test_marks_stay_with_their_letter_and_other_scripts_with_their_spaces() -> None:
    words = Measure(Fraction(1, 2)).words
    assert words("使用Python编程") == ["使", "用", "python", "编", "程"]
    assert words("ที่นี่") == ["ที่", "นี่"]
    assert words("Größe Ελλάδα страна مرحبا שלום 한국어") == [
        *("grösse", "ελλάδα", "страна", "مرحبا", "שלום", "한국어"),
    ]


@pytest.mark.slow
def test_the_compiled_path_agrees_for_scripts_without_spaces() -> None:
    draw = random.Random(2)
    rows = []
    for _ in range(2_500):
        letters = draw.choices(SCRIPTS["Chinese"], k=draw.randint(1, 30))
        for _ in range(2):
            copy = list(letters)
            for _ in range(draw.randint(0, 2)):
                copy.insert(draw.randrange(len(copy)), draw.choice(SCRIPTS["Thai"]))
            rows.append({"state": "".join(copy)})
    many = deduplicate(rows, 0.7)
    few = [row for first in range(0, 5_000, 2) for row in deduplicate(rows[first : first + 2], 0.7)]
    assert len(rows) > 4_000
    assert {str(row["state"]) for row in many} <= {str(row["state"]) for row in few}
    assert 2_500 < len(many) <= len(few)
