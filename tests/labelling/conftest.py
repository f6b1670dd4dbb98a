from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orbiter.train.evaluation.judgement import JudgementKind
from orbiter.train.labelling import LabelServer, LabelSession, make_units
from orbiter.train.trajectory import TrajectoryItem
from tests.report.conftest import browser, open_page

__all__ = ["browser", "open_page", "serving"]


@contextmanager
def serving(
    items: list[TrajectoryItem], path: Path, kind: JudgementKind | None = None
) -> Iterator[LabelServer]:
    """Serve the labelling page for these items."""
    with (
        LabelSession(make_units(items, kind), path, rater="ann") as session,
        LabelServer(session) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
