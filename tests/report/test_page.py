from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from orbiter.train.errors import StorageError
from orbiter.train.report import write_comparison, write_report
from orbiter.train.report.page import island, parts, policy, render
from tests.report.folders import evolution, story, training

KILOBYTES = 700


def island_of(page: str) -> dict[str, Any]:
    data = page.partition('<script type="application/json" id="data">')[2].partition("</script>")[0]
    return dict(json.loads(data))


def test_a_report_of_200_steps_is_one_small_file_that_fetches_nothing(tmp_path: Path) -> None:
    words = "a prompt as long as one of the demo's, give or take a few words " * 3
    training(tmp_path / "grpo", steps=200, prompts=8, words=words)
    story(tmp_path)
    evolution(tmp_path / "prompt", words=words)
    path = write_report(tmp_path)
    assert path == tmp_path / "report.html"
    assert 100 < path.stat().st_size / 1000 < KILOBYTES
    page = path.read_text()
    code = page.replace(json.dumps(island_of(page)), "")
    outside = re.findall(r"(?:https?:)?//[\w.]+\.\w+", re.sub(r'id="data">.*?</script>', "", code))
    assert set(outside) == {"http://www.w3.org"}  # the name of SVG, which nobody fetches
    assert not re.search(r"<(?:link|img|iframe|object|embed)|@import|url\(", page)


def test_the_policy_allows_this_script_and_this_style_alone(tmp_path: Path) -> None:
    page = write_report(training(tmp_path, steps=2)).read_text()
    said = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert said is not None
    assert said[1] == policy()
    assert said[1].startswith("default-src 'none'; ")
    assert "unsafe" not in said[1]
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in said[1]
    assert "connect-src" not in said[1]
    assert "connect-src 'self'" in policy(live=True)


def test_no_text_can_leave_the_island() -> None:
    hostile = "</script><!--<script>&amp;\u2028\u2029\ud800{{style}}]]>"
    text = island({hostile: [hostile]})
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == {hostile: [hostile]}
    assert island_of(render({"made": hostile, "runs": []})) == {"made": hostile, "runs": []}


def test_the_script_makes_no_html_and_no_code_of_any_text() -> None:
    script = parts().script
    doors = (
        *("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function"),
        *("DOMParser", "javascript:", "createContextualFragment"),
    )
    for door in doors:
        assert door not in script, door


def test_two_runs_are_laid_side_by_side_in_one_small_file(tmp_path: Path) -> None:
    a, b = (training(tmp_path / name, steps=200, prompts=8, seed=s) for s, name in enumerate("ab"))
    path = write_comparison(a, b, tmp_path / "out" / "two.html")
    assert path.stat().st_size / 1000 < KILOBYTES
    assert [run["name"] for run in island_of(path.read_text())["runs"]] == ["a", "b"]


@pytest.mark.skipif(os.name == "nt", reason="folders of Windows have no such permission")
def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    training(tmp_path / "run", steps=2)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*report\.html"):
        write_report(tmp_path / "run", tmp_path / "file" / "report.html")
