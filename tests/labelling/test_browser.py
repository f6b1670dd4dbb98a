"""The labelling page in a browser: with the keyboard alone, and with hostile answers."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from orbiter.train.evaluation import read_judgements
from orbiter.train.trajectory import TrajectoryItem
from tests.children import started_child
from tests.labelling.conftest import serving
from tests.report.conftest import Opener
from tests.report.hostile import PAYLOADS

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow


def titled(page: Page, title: str) -> None:
    """Wait until the page has this title; its policy forbids waiting for a script."""
    from playwright.sync_api import expect

    expect(page).to_have_title(title, timeout=20_000)


def pairs(count: int) -> list[TrajectoryItem]:
    return [TrajectoryItem(f"task {n}", text) for n in range(count) for text in ("good", "bad")]


def test_everything_can_be_done_with_the_keyboard(open_page: Opener, tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with serving(pairs(4), path) as server:
        page = open_page(server.url)
        for number in range(4):
            titled(page, f"{number + 1} of 4")
            left = page.locator(".answer").first.inner_text()
            if number == 0:
                page.keyboard.press("n")
                page.keyboard.type("0 is a note, and 1 is no label")
                page.keyboard.press("Escape")
            page.keyboard.press("ArrowLeft" if left == "good" else "2")
        page.wait_for_selector("#finished")
        assert "Everything is labelled" in page.locator("#finished").inner_text()
        page.keyboard.press("Backspace")
        page.wait_for_selector("button[aria-pressed=true]")
        assert page.title() == "4 of 4"
        page.keyboard.press("s")
        page.wait_for_selector("#finished")
    judgements = list(read_judgements(path))
    assert [j.value for j in judgements] == [1.0, 1.0, 1.0, 1.0, None]
    assert judgements[0].note == "0 is a note, and 1 is no label"
    assert all((j.seconds or 0) > 0 for j in judgements)


def test_a_page_that_is_opened_again_goes_on(open_page: Opener, tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    items = [TrajectoryItem(f"task {n}", "an answer") for n in range(3)]
    with serving(items, path, "rating") as server:
        page = open_page(server.url)
        page.keyboard.press("9")  # beyond the scale
        page.keyboard.press("4")
        titled(page, "2 of 3")
    with serving(items, path, "rating") as server:
        page = open_page(server.url)
        assert page.title() == "2 of 3"
        page.get_by_role("button", name="Back").click()
        titled(page, "1 of 3")
        assert page.locator("button[aria-pressed=true]").inner_text().startswith("4")
    assert [j.value for j in read_judgements(path)] == [4.0]


def test_hostile_text_stays_text(open_page: Opener, tmp_path: Path) -> None:
    texts = [payload for payload in PAYLOADS if "\ud800" not in payload]  # no text of an item
    assert len(texts) > 40
    items = [TrajectoryItem(payload, payload) for payload in texts]
    with serving(items, tmp_path / "l.jsonl", "right") as server:
        page = open_page(server.url)
        for number in range(len(texts)):
            titled(page, f"{number + 1} of {len(texts)}")
            shown = page.locator("#task").evaluate("node => node.textContent")
            assert shown == page.locator(".answer").evaluate("node => node.textContent")
            assert shown in texts
            assert page.locator("#task > *, .answer > *").count() == 0
            page.keyboard.press("1")
        page.wait_for_selector("#finished")
        origin = server.url.removesuffix("/")
    assert all(request.startswith(origin) for request in open_page.seen.requests)


def test_a_label_that_cannot_be_saved_says_so(open_page: Opener, tmp_path: Path) -> None:
    with serving(pairs(2), tmp_path / "l.jsonl") as server:
        page = open_page(server.url)
        server.session.close()
        page.keyboard.press("1")
        page.wait_for_selector("#error:not(:empty)")
        assert page.title() == "1 of 2"
        open_page.seen.errors.clear()  # the browser notes the failed request


def test_a_narrow_dark_screen_has_no_sideways_scrolling(open_page: Opener, tmp_path: Path) -> None:
    items = [TrajectoryItem("t" * 500, "a" * 400), TrajectoryItem("t" * 500, "b" * 400)]
    with serving(items, tmp_path / "l.jsonl") as server:
        page = open_page(server.url, viewport={"width": 375, "height": 800}, color_scheme="dark")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375


def note(page: Page, words: str) -> None:
    page.keyboard.press("n")
    page.keyboard.type(words)
    page.keyboard.press("Escape")


def test_two_tabs_do_not_overwrite_each_other(open_page: Opener, tmp_path: Path) -> None:
    from playwright.sync_api import expect

    path = tmp_path / "l.jsonl"
    with serving([TrajectoryItem(f"task {n}", "an answer") for n in range(3)], path) as server:
        first, second = open_page(server.url), open_page(server.url)
        note(first, "from the first")
        first.keyboard.press("1")
        titled(first, "2 of 3")
        note(second, "from the second")
        second.keyboard.press("0")
        expect(second.locator("#error")).to_contain_text("labelled this in another tab")
        assert second.title() == "1 of 3"
        assert second.locator("button[aria-pressed=true]").inner_text().startswith("Right")
        assert second.locator("#note").input_value() == "from the first\nfrom the second"
        assert [j.value for j in read_judgements(path)] == [1.0]
        second.keyboard.press("0")
        titled(second, "2 of 3")
        open_page.seen.errors.clear()  # the browser notes the refused request
    last = list(read_judgements(path))[-1]
    assert (last.value, last.note) == (0.0, "from the first\nfrom the second")


def test_the_browsers_buttons_go_from_unit_to_unit_and_lose_no_note(
    open_page: Opener, tmp_path: Path
) -> None:
    path = tmp_path / "l.jsonl"
    with serving([TrajectoryItem(f"task {n}", "an answer") for n in range(3)], path) as server:
        page = open_page(server.url)
        page.keyboard.press("1")
        titled(page, "2 of 3")
        note(page, "a draft")
        page.go_back()
        titled(page, "1 of 3")
        assert page.locator("button[aria-pressed=true]").inner_text().startswith("Right")
        page.go_forward()
        titled(page, "2 of 3")
        assert page.locator("#note").input_value() == "a draft"
        page.keyboard.press("Backspace")
        titled(page, "1 of 3")
        page.keyboard.press("0")
        titled(page, "2 of 3")
        page.keyboard.press("1")
        titled(page, "3 of 3")
        page.reload()
        titled(page, "3 of 3")
        page.keyboard.press("1")
        page.wait_for_selector("#finished")
    assert [(j.value, j.note) for j in read_judgements(path)] == [
        (1.0, ""), (0.0, ""), (1.0, "a draft"), (1.0, ""),
    ]  # fmt: skip


def test_a_session_survives_a_kill_a_restart_and_a_changed_file(
    open_page: Opener, tmp_path: Path
) -> None:
    """With the command itself: killed without warning, its data changed, started again."""
    from playwright.sync_api import expect

    data = tmp_path / "data.jsonl"

    def write(answers: Sequence[str]) -> None:
        items = [TrajectoryItem(f"task {n}", answer) for n, answer in enumerate(answers)]
        lines = [json.dumps({"state": i.state, "action": i.action, "reward": 0}) for i in items]
        data.write_text("\n".join(lines) + "\n")

    command = [sys.executable, "-m", "orbiter.train.cli", "label", str(data), "--rater", "ann"]
    write(["a", "b", "c", "d"])
    port = free_port()
    with started_child([*command, "--port", str(port), "--json"], stdout=subprocess.PIPE) as child:
        page = open_page(address_of(child)["address"])
        for number in (2, 3):
            page.keyboard.press("1")
            titled(page, f"{number} of 4")
        child.kill()
        child.wait()
        note(page, "kept")
        page.keyboard.press("1")
        expect(page.locator("#error")).to_contain_text("Not saved: the command")
        assert page.locator("#note").input_value() == "kept"
    labelled = {j.answers[0] for j in read_judgements(f"{data}.labels.jsonl")}
    assert len(labelled) == 2, "those that the page has shown as saved"
    gone = min(labelled)
    write([answer if answer != gone else "mended" for answer in "abcd"])
    with started_child([*command, "--port", str(port), "--json"], stdout=subprocess.PIPE) as child:
        told = address_of(child)
        assert (told["done"], told["total"], told["elsewhere"]) == (1, 4, 1)
        page.keyboard.press("1")  # the old tab has the old address
        expect(page.locator("#error")).to_contain_text("from an earlier start of the command")
        again = open_page(told["address"])
        while (title := again.title()) != "All labelled":
            again.keyboard.press("1")
            expect(again).not_to_have_title(title)
        open_page.seen.errors.clear()  # the browser notes the requests that failed
    answers = [j.answers[0] for j in read_judgements(f"{data}.labels.jsonl")]
    assert set(answers) == {*"abcd", "mended"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def address_of(child: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for the command to say that it serves, and return what it says."""
    assert child.stdout is not None
    text = ""
    for line in child.stdout:
        text += line
        with contextlib.suppress(ValueError):
            told: dict[str, Any] = json.loads(text)
            return told
    raise AssertionError(text)
