"""A saved model goes to the hub where asked to, and only then."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orbiter.train import StorageError
from orbiter.train.engine.models.export import push_to_hub
from tests.children import run_child


class Hub(ThreadingHTTPServer):
    """As much of the hub as an upload asks for; everything that was sent is kept."""

    def __init__(self, *, refuses: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refuses = refuses
        self.made: dict[str, object] = {}
        self.files: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.refuses:
            self.answer({"error": "you may not"}, 403)
        elif self.path == "/api/repos/create":
            self.server.made = json.loads(body)
            self.answer({"url": f"{self.server.url}/me/model"})
        elif "/preupload/" in self.path:
            files = [{"path": each["path"]} for each in json.loads(body)["files"]]
            told = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self.answer({"files": [each | told for each in files]})
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            self.server.files = [each["value"]["path"] for each in lines if each["key"] == "file"]
            self.answer(
                {
                    "commitOid": "0" * 40,
                    "commitUrl": f"{self.server.url}/me/model/commit/0",
                    "success": True,
                }
            )
        else:  # whether the model card's header is right
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer({"error": "not found"}, 404)

    def answer(self, told: dict[str, object], status: int = 200) -> None:
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=[False, True])
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    server = Hub(refuses=request.param)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


UPLOAD = (
    "import sys\n"
    "from orbiter.train.engine.models.export import push_to_hub\n"
    "print(push_to_hub(sys.argv[1], 'me/model'))"
)


@pytest.mark.slow
def test_a_model_is_uploaded_whole_and_privately_or_the_refusal_is_told(
    hub: Hub, tmp_path: Path
) -> None:
    names = ["README.md", "config.json", "model.safetensors"]
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"{}")
    save_file({"weight": torch.ones(2)}, tmp_path / names[2])
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_x"}
    done = run_child([sys.executable, "-c", UPLOAD, str(tmp_path)], env=environment)
    if hub.refuses:
        assert "could not be uploaded to me/model" in done.stderr
        assert "StorageError" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.url}/me/model"
    assert sorted(hub.files) == names
    assert hub.made.get("private") is True or hub.made.get("visibility") == "private"


def test_what_is_no_model_is_not_uploaded(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a saved model"):
        push_to_hub(tmp_path, "me/model")
