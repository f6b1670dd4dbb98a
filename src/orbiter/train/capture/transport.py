"""See every model call where its bytes leave an HTTP library, and answer some in this process.

The libraries are httpx, httpx2, requests and aiohttp. Their `send` is wrapped once per process;
outside of any episode the wrapper only reads two context variables. Inside, a request to the path
of a model API becomes an exchange: its body is read, and its response, or stream, is fed to the
exchange on its way to the caller. A library that is imported later is wrapped then; none is
imported here. Clients on other transports (gRPC, sockets) are not seen; use the proxy for those.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

from orbiter.train.capture.in_process import ANSWERING, Answerer, InProcessModels
from orbiter.train.capture.threads import follow_threads

log = logging.getLogger(__name__)
LIBRARIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "httpx2": ("httpx_client", ("Client", "AsyncClient")),
    "httpx": ("httpx_client", ("Client", "AsyncClient")),
    "requests": ("requests_client", ("Session", "adapters")),
    "aiohttp": ("aiohttp_client", ("ClientSession", "BaseConnector", "client_proto")),
}
"""For each library, the file in `clients/` that wraps it, and the attributes that it needs."""


@contextmanager
def answered_by(answerer: Answerer, *, models: Sequence[str] | None = None) -> Iterator[None]:
    """Send model calls made inside the block to `answerer`, in this process and without HTTP.

        with answered_by(session):
            await agent(task)  # its openai, anthropic or httpx clients reach the session

    Tasks and threads started in the block belong to it; `record` sees its calls as usual.

    Args:
        answerer: Anything with `takes`, `handle` and `handle_blocking`, such as a `LiveSession`.
        models: Only calls that name one of these models, so that a judge or a helper model can
            still be reached outside; None sends every call to the answerer.
    """
    watch()
    follow_threads()
    before = ANSWERING.get()
    ANSWERING.set(InProcessModels(answerer, None if models is None else frozenset(models)))
    try:
        yield
    finally:
        ANSWERING.set(before)  # not reset(): a fixture may exit in another context


@functools.cache
def watch() -> None:
    """Wrap the libraries that are imported, and the others on their import; once per process."""
    waiting = {name for name in LIBRARIES if name not in sys.modules}
    for name in LIBRARIES:
        if name in sys.modules:
            _wrap(sys.modules[name])
    if waiting:
        sys.meta_path.insert(0, _WhenImported(waiting))


class _WhenImported:
    """An import hook that wraps a library after it is loaded, and changes nothing else."""

    def __init__(self, waiting: set[str]) -> None:
        self._waiting = waiting

    def find_spec(
        self, name: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self._waiting:
            return None
        # Discarded first: find_spec below calls this finder again.
        self._waiting.discard(name)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def load_and_wrap(module: ModuleType) -> None:
            load(module)
            _wrap(module)

        spec.loader.exec_module = load_and_wrap  # type: ignore[method-assign]  # of this one loader
        return spec


def _wrap(library: ModuleType) -> None:
    home, needs = LIBRARIES[library.__name__]
    if all(hasattr(library, name) for name in needs):
        import_module(f"orbiter.train.capture.clients.{home}").wrap(library)
    else:
        log.warning(
            "%s %s is not captured: it has no %s; use the proxy",
            library.__name__,
            getattr(library, "__version__", "of an unknown version"),
            " or ".join(name for name in needs if not hasattr(library, name)),
        )
