"""Debian's chromium, driven by Playwright; whoever has neither skips these tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass
class Seen:
    """What a page did that a report must never do."""

    requests: list[str] = field(default_factory=list[str])
    dialogs: list[str] = field(default_factory=list[str])
    errors: list[str] = field(default_factory=list[str])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium here; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        # A container's root may not make a sandbox of its own; the pages are ours.
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Opener:
    """Opens pages, and notes what they do."""

    browser: Browser
    seen: Seen = field(default_factory=Seen)
    contexts: list[Any] = field(default_factory=list[Any])

    def __call__(self, address: str | Path, **context: Any) -> Page:  # noqa: ANN401 - playwright's
        opened = self.browser.new_context(
            **({"viewport": {"width": 1280, "height": 900}} | context)
        )
        self.contexts.append(opened)
        page = opened.new_page()
        page.on("request", lambda request: self.seen.requests.append(request.url))
        page.on("dialog", self._dialog)
        page.on("pageerror", lambda error: self.seen.errors.append(str(error)))
        page.on("console", self._console)
        page.goto(address.as_uri() if isinstance(address, Path) else address)
        page.wait_for_selector("html[data-ready]", state="attached")
        return page

    def _dialog(self, dialog: Any) -> None:  # noqa: ANN401 - playwright's
        self.seen.dialogs.append(dialog.message)
        dialog.dismiss()

    def _console(self, message: Any) -> None:  # noqa: ANN401 - playwright's
        if message.type in ("error", "warning"):
            self.seen.errors.append(message.text)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Opener]:
    opener = Opener(browser)
    yield opener
    for context in opener.contexts:
        context.close()
    assert opener.seen.errors == []
    assert opener.seen.dialogs == []
