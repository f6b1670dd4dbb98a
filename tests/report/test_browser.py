from __future__ import annotations

import json
import random
import statistics
import threading
from pathlib import Path

import pytest

from orbiter.train.report import (
    Exam,
    LedgerStep,
    Story,
    Task,
    keep_story,
    write_comparison,
    write_report,
    write_traces,
)
from orbiter.train.report.live import LiveServer
from orbiter.train.runlog import RunLog
from orbiter.train.trajectory import TrajectoryItem
from tests.report.conftest import Opener
from tests.report.folders import CONFIG, evolution, go_on, story, training
from tests.report.hostile import PAYLOADS

pytestmark = pytest.mark.slow

PHONE = {"viewport": {"width": 375, "height": 800}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    training(folder / "grpo", steps=200, prompts=8)
    story(folder)
    evolution(folder / "prompt")
    return write_report(folder)


def test_every_part_of_a_run_is_drawn(open_page: Opener, report: Path) -> None:
    page = open_page(report)
    titles = page.locator("h2").all_inner_texts()
    assert titles == [
        *("Result", "Curves", "Samples", "Answers", "Data", "Evolution"),
        "Settings and environment",
    ]
    names = page.locator("#curves figcaption h3").all_inner_texts()
    assert names[:8] == [
        *("Reward", "Rewards by component", "Loss", "KL", "Entropy", "Length"),
        *("Clip fraction", "Speed"),
    ]
    curves = page.locator("#curves .charts").first.locator("path.line:not(.raw)")
    assert curves.count() == 9
    for number in range(9):
        assert (curves.nth(number).get_attribute("d") or "").count("L") == 199
    assert page.locator(".heat .cell").count() > 200
    assert page.locator(".whisker").count() == 2
    assert "+55.0 [" in page.locator("#result table").first.inner_text()
    assert page.locator("#data li").count() == 2
    assert page.locator(".lineage li").count() == 3
    assert page.locator(".lineage ins").count() >= 2
    assert open_page.seen.requests == [report.as_uri()]


def test_pointing_at_a_curve_tells_the_values_of_that_step_in_all(
    open_page: Opener, report: Path
) -> None:
    page = open_page(report)
    chart = page.locator("#curves-Entropy-0")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 46, box["y"] + 60)
    where = page.locator("#curves figcaption .where")
    assert where.first.inner_text() == where.nth(4).inner_text() == "step 1"
    entropy = page.locator("figure", has=chart).locator(".legend b")
    assert entropy.inner_text() == "1"
    page.mouse.move(box["x"] + box["width"] - 10, box["y"] + 60)
    assert where.first.inner_text() == "step 200"
    assert entropy.inner_text() == "0.005"


def test_the_keyboard_reaches_curves_tabs_search_and_samples(
    open_page: Opener, report: Path
) -> None:
    page = open_page(report)
    page.locator("#curves-Entropy-0").focus()
    page.keyboard.press("Home")
    assert page.locator("#curves .where").first.inner_text() == "step 1"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowRight")
    assert page.locator("#curves .where").first.inner_text() == "step 12"
    page.keyboard.press("Escape")
    assert page.locator("#curves .where").first.inner_text() == ""
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "samples-0-search"
    page.keyboard.type("Question 7:")
    rows = page.locator("#samples-0-list li")
    page.locator("#samples-0-list").focus()
    page.keyboard.press("End")
    assert rows.last.get_attribute("aria-selected") == "true"
    last = page.locator("#samples-0-detail").inner_text()
    page.keyboard.press("ArrowUp")
    assert page.locator("#samples-0-detail").inner_text() != last
    assert rows.nth(rows.count() - 2).get_attribute("aria-selected") == "true"
    for _ in range(200):  # every control has a place in the order of the tab key
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "answers-search":
            break
    else:
        raise AssertionError("the tab key never came to the answers")


def test_a_search_finds_in_prompts_and_outputs_and_marks_what_it_found(
    open_page: Opener, report: Path
) -> None:
    page = open_page(report)
    search, rows = page.locator("#samples-0-search"), page.locator("#samples-0-list li")
    everything = rows.count()
    search.fill("question 7: STEP=")
    found = rows.count()
    assert 0 < found < everything
    assert page.locator("#samples .count").inner_text() == f"{found} of {everything} groups"
    assert all("7:" in text for text in rows.all_inner_texts())
    assert page.locator("#samples-0-detail mark").first.inner_text().lower() in "question 7: step="
    search.fill("nowhere to be found")
    assert rows.count() == 0
    assert "Nothing matches" in page.locator("#samples-0-detail").inner_text()
    search.fill("")
    page.locator("#samples-0-filter").select_option("most changed")
    assert 0 < rows.count() < everything
    page.locator("#samples-0-filter").select_option("all")
    page.locator("#samples-0-sort").select_option("highest reward")
    values = [float(v) for v in page.locator("#samples-0-list .value").all_inner_texts()[:20]]
    assert values == sorted(values, reverse=True)


def test_a_group_shows_each_output_with_rewards_advantage_and_its_call(
    open_page: Opener, report: Path
) -> None:
    page = open_page(report)
    outputs = page.locator("#samples-0-detail .outputs > li")
    assert outputs.count() == 4
    totals = [
        float(t.replace("\u2212", "-")) for t in page.locator(".outputs .total").all_inner_texts()
    ]
    assert totals[:4] == sorted(totals[:4], reverse=True)
    first = outputs.first
    assert first.locator(".tool").inner_text() == "find"
    assert first.locator("dt").all_inner_texts() == ["step", "what"]
    assert first.locator(".chip").first.inner_text().startswith("call ")
    assert first.locator(".advantage").inner_text().startswith("+")
    page.locator("#samples-0-raw").check()
    assert page.locator("#samples-0-detail .call").count() == 0
    assert "find(step=1" in outputs.first.inner_text()


def test_hostile_text_stays_text_wherever_it_stands(open_page: Opener, tmp_path: Path) -> None:
    assert len(PAYLOADS) >= 40
    page = open_page(hostile_report(tmp_path))
    assert page.evaluate("document.scripts.length") == 2
    wrong = "iframe,object,embed,link,base,form,img,video,template,math,style:not(head > style)"
    assert page.locator(wrong).count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every(e => [...e.attributes].every("
        "a => !/^(on|style$|src|action|formaction|xlink)/.test(a.name)"
        " && (a.name !== 'href' || /^#[a-z]+$/.test(a.value))))"
    )
    rows = page.locator("#samples-0-list li")
    assert rows.count() == len(PAYLOADS)
    raw = page.locator("#samples-0-detail .prompt")
    page.locator("#samples-0-list").focus()
    for payload in PAYLOADS:  # one after the other is opened, and read back as it was written
        shown = raw.evaluate("node => node.textContent")
        if len(payload) < 2_000:
            assert shown == payload.replace("\ud800", "\ufffd") or shown == payload
        page.keyboard.press("ArrowDown")
    for words in ("<script>", "onerror", "\u0130", "=hyperlink", "__proto__"):
        page.locator("#samples-0-search").fill(words)
    page.locator(".chart").first.hover()
    page.wait_for_timeout(200)
    assert open_page.seen.requests == [page.url]
    assert open_page.seen.dialogs == []


def hostile_report(folder: Path) -> Path:
    writable = [p for p in PAYLOADS if "\ud800" not in p]
    run = folder / "<img src=x onerror=alert(1)>"
    with RunLog(run, {"algorithm": PAYLOADS[0], "model": PAYLOADS[1], "s": list(PAYLOADS)}) as log:
        for step, payload in enumerate(PAYLOADS, start=1):
            log.write(step, {"reward": 0.5, f"reward/{payload}": 1.0, payload: step / 7})
            call = {"function": {"name": payload, "arguments": json.dumps({payload: payload})}}
            turn = {"role": payload, "content": payload, "tool_calls": [call]}
            output = {"text": payload, "reward": step / 9, "rewards": {payload: 1.0}}
            log.sample(step, {"task": payload, "prompt": payload, "outputs": [output] * 2})
            log.sample(step, {"prompt": payload, "messages": [turn], "outputs": [output]})
    lines = (run / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (run / "samples.jsonl").write_bytes(b"".join(lines[::2]))
    chats = folder / "chats"
    with RunLog(chats, {}) as log:
        log.write(1, {"loss": 1.0})
    (chats / "samples.jsonl").write_bytes(b"".join(lines[1::2]))
    for number, payload in enumerate(writable):
        evolution(folder / f"evolution{number}" if number < 5 else folder / "e", words=payload)
    keep_story(
        folder,
        Story(
            title=writable[0],
            summary=" ".join(writable),
            measure=writable[0],
            tasks=[Task(prompt=p, name=p, expected=p) for p in writable],
            exams=[
                Exam(name=p, note=p, scores=[0.5] * len(writable), outputs=writable)
                for p in writable[:8]
            ],
            ledger=[LedgerStep(name=p, kept=3, dropped={p: 1}, note=p) for p in writable],
            facts={p: p for p in writable},
        ),
    )
    return write_report(folder)


def test_on_a_phone_nothing_is_wider_than_the_screen(
    open_page: Opener, report: Path, tmp_path: Path
) -> None:
    for path in (report, hostile_report(tmp_path)):
        page = open_page(path, **PHONE)
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.locator("#samples-0-list li").nth(2).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def test_light_and_dark_follow_the_system_until_the_reader_chooses(
    open_page: Opener, report: Path
) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = open_page(report, color_scheme="light")
    dark = open_page(report, color_scheme="dark")
    bright, dim = light.evaluate(ground), dark.evaluate(ground)
    assert bright != dim
    light.locator("#theme").select_option("dark")
    dark.locator("#theme").select_option("light")
    assert (light.evaluate(ground), dark.evaluate(ground)) == (dim, bright)


def test_text_can_be_told_from_its_ground(open_page: Opener, report: Path) -> None:
    """WCAG's contrast of 4.5 for text, 3 for lines, in both colours."""
    for scheme in ("light", "dark"):
        page = open_page(report, color_scheme=scheme)
        for name in ("ink", "soft", "c0", "c1", "c2", "c3", "c5", "good", "bad"):
            for ground in ("ground", "card"):
                wanted = 4.5 if name in ("ink", "soft", "good", "bad") else 3
                assert (
                    contrast(page.evaluate(COLOUR, name), page.evaluate(COLOUR, ground)) >= wanted
                )


COLOUR = """name => {
  const probe = document.createElement("i");
  document.body.append(probe);
  probe.style.color = `var(--${name})`;
  const found = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
  probe.remove();
  return found;
}"""


def contrast(a: list[int], b: list[int]) -> float:
    low, high = sorted(map(luminance, (a, b)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: list[int]) -> float:
    linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_two_runs_lie_over_each_other_and_side_by_side(open_page: Opener, tmp_path: Path) -> None:
    a, b = (training(tmp_path / name, steps=50, seed=s) for s, name in enumerate("ab"))
    page = open_page(write_comparison(a, b, tmp_path / "two.html"))
    assert page.title() == "a against b"
    assert page.locator("#result .halves > div").count() == 2
    legends = page.locator("#curves .charts").first.locator(".legend").all_inner_texts()
    assert all("A a" in text and "B b" in text for text in legends)
    assert page.locator("#shared-list li").count() > 5
    assert page.locator("#shared-detail .halves > div").count() == 2
    assert page.locator("#settings tr.differs th").all_inner_texts()[0] == "seed"


def test_live_the_page_follows_the_run_and_keeps_what_the_reader_does(
    open_page: Opener, tmp_path: Path
) -> None:
    with LiveServer(training(tmp_path, steps=3), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            page = open_page(server.url)
            search = page.locator("#samples-0-search")
            search.fill("question")
            with RunLog(tmp_path, CONFIG | {"seed": 0}) as log:
                for step in range(4, 8):
                    go_on(log, step, 7, random.Random(step))
            page.locator("#samples .count", has_text="21 groups").wait_for(timeout=60_000)
            assert search.input_value() == "question"
            assert page.evaluate("document.activeElement.id") == "samples-0-search"
            assert "live" in page.locator("#live").inner_text()
            asked = {url.removeprefix(server.url) for url in open_page.seen.requests}
            assert asked <= {"", "data", "favicon.ico"}
        finally:
            server.shutdown()
            thread.join()


def test_the_page_of_200_steps_can_be_used_within_a_second(open_page: Opener, report: Path) -> None:
    """From the start of the navigation to a page that answers; median of five, CPU-bound."""
    ready = [
        float(open_page(report).evaluate("document.documentElement.dataset.ready"))
        for _ in range(5)
    ]
    assert statistics.median(ready) < 5_000  # on a machine shared with other tests


@pytest.mark.parametrize("width", [390, 1280])
def test_bars_of_advantages_are_drawn_on_both_sides(
    open_page: Opener, report: Path, width: int
) -> None:
    page = open_page(report, viewport={"width": width, "height": 900})
    drawn = page.evaluate(
        """() => [...document.querySelectorAll("#samples-0-detail svg.lean")].map((svg) => {
            const bar = svg.querySelector("rect"), frame = svg.getBoundingClientRect();
            const box = bar.getBoundingClientRect();
            return {side: svg.classList.contains("more") ? "more" : "less", width: box.width,
                    inside: box.left >= frame.left - 0.5 && box.right <= frame.right + 0.5,
                    right: box.left >= (frame.left + frame.right) / 2 - 1,
                    tall: box.height > 1, color: getComputedStyle(bar).fill};
        })"""
    )
    assert {bar["side"] for bar in drawn} == {"more", "less"}
    for bar in drawn:
        assert bar["width"] > 1, bar
        assert bar["tall"], bar
        assert bar["inside"], bar
        assert bar["right"] == (bar["side"] == "more"), bar
        assert bar["color"] != "none"
    assert len({bar["color"] for bar in drawn}) == 2


def test_at_390_pixels_every_value_of_the_result_is_within_the_screen(
    open_page: Opener, report: Path
) -> None:
    page = open_page(report, viewport={"width": 390, "height": 900})
    cells = page.evaluate(
        """() => [...document.querySelectorAll("#result :is(td, th)")]
            .filter((cell) => cell.offsetParent !== null)
            .map((cell) => [cell.innerText, cell.getBoundingClientRect().right])"""
    )
    assert any("+55.0" in text for text, _ in cells)
    assert max(right for _, right in cells) <= 390


def test_a_row_shows_what_its_task_asks_and_not_what_all_tasks_share(
    open_page: Opener, tmp_path: Path
) -> None:
    shared = "[system]\nYou help customers of a shop, kindly and briefly."
    states = [
        f"{shared}\n\n[user]\nWhere is my parcel?",
        f"{shared}\n\n[user]\nHello.\n\n[assistant]\nYes?\n\n[user]\nMy lamp is broken.",
        f"{shared}\n\n[user]\nWhat is late?\n\n[tool find]\nnothing",
        '{"task_id": "7", "question": "Is it open on Sunday?", "day": "Sunday"}',
        '{"task_id": "8"}',
        "[not a transcript] plain words",
    ]
    items = [TrajectoryItem(state, "Done.", 1.0, task_id=f"t{n}") for n, state in enumerate(states)]
    page = open_page(write_traces(tmp_path / "traces.jsonl", items))
    assert page.locator("#samples-0-list .line").all_inner_texts() == [
        "t0 · Where is my parcel?",
        "t1 · My lamp is broken.",
        "t2 · What is late?",
        "t3 · Is it open on Sunday?",
        't4 · {"task_id": "8"}',
        "t5 · [not a transcript] plain words",
    ]


@pytest.mark.parametrize("tasks", [1, 3])
def test_answers_to_few_tasks_fill_their_section(
    open_page: Opener, tmp_path: Path, tasks: int
) -> None:
    training(tmp_path, steps=2)
    keep_story(
        tmp_path,
        Story(
            tasks=[Task(prompt=f"Say {number}.") for number in range(tasks)],
            exams=[
                Exam(name="before", scores=[0.0] * tasks, outputs=["one"] * tasks),
                Exam(name="after", scores=[1.0] * tasks, outputs=["two"] * tasks),
            ],
        ),
    )
    page = open_page(write_report(tmp_path))
    section = page.locator("#answers").bounding_box()
    assert section is not None
    detail = page.locator("#answers .outputs li").last.bounding_box()
    assert detail is not None
    blank = section["y"] + section["height"] - (detail["y"] + detail["height"])
    assert blank < 150, f"{blank} pixels below the last answer are blank"
