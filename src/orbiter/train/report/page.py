"""Render a document as one self-contained HTML file with style, script and data inside.

The page fetches nothing and runs only the script whose hash its content security policy names. The
data is in a block of JSON that an HTML parser cannot leave early, and the script inserts it as text
only.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import NamedTuple

SCRIPTS = (
    "dom.js",
    "number.js",
    "chart.js",
    "pictures.js",
    "answer.js",
    "browser.js",
    "samples.js",
    "episodes.js",
    "result.js",
    "compared.js",
    "curves.js",
    "evolution.js",
    "settings.js",
    "page.js",
)
"""The files that make up the script, in order."""


class PageParts(NamedTuple):
    """The constant parts of a page."""

    html: str
    style: str
    script: str

    def policy(self, *, live: bool = False) -> str:
        """Return the content security policy, which allows this style and this script only.

        A live page may also send requests to its own address.
        """
        style, script = _hash(self.style), _hash(self.script)
        asks = "connect-src 'self'; " if live else ""
        return (
            f"default-src 'none'; script-src {script}; style-src {style}; img-src data:; {asks}"
            "base-uri 'none'; form-action 'none'"
        )

    def render(self, document: Mapping[str, object], *, live: bool = False) -> str:
        """Return the page that draws `document`."""
        pieces = {
            "policy": self.policy(live=live),
            "style": self.style,
            "script": self.script,
            "data": island(document),
        }
        # Split once instead of replacing in turn: inserted text may itself look like a slot.
        head, *rest = self.html.split("{{")
        for part in rest:
            name, _, tail = part.partition("}}")
            head += pieces[name] + tail
        return head


def in_strict_mode(*scripts: str) -> str:
    """Return scripts as one, whose names do not leave it."""
    joined = "\n".join(scripts)
    return f'"use strict";\n(() => {{\n{joined}\n}})();\n'


def page_file(name: str) -> str:
    """Return one of the report page's files, such as `dom.js`, which other pages use too."""
    return (files(__package__) / "page" / name).read_text("utf-8")


@cache
def parts() -> PageParts:
    """Return the constant parts of the report page, read once."""
    scripts = in_strict_mode(*map(page_file, SCRIPTS))
    return PageParts(page_file("page.html"), page_file("page.css"), scripts)


def policy(*, live: bool = False) -> str:
    """Return the content security policy of the report page."""
    return parts().policy(live=live)


def render(document: Mapping[str, object], *, live: bool = False) -> str:
    """Return the report page that draws `document`."""
    return parts().render(document, live=live)


def island(document: Mapping[str, object]) -> str:
    """Return the document as ASCII JSON, without any character that is special in HTML."""
    # NaN is no JSON, and the page's parser would refuse the whole document.
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
