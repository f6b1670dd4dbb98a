"""Teachers for tests: folders of small models, and a server that answers as vLLM does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
import transformers

from orbiter.train.engine.models.tiny import tiny_model, tiny_tokenizer

WIDER: dict[str, Any] = {"hidden_size": 160, "intermediate_size": 400, "num_hidden_layers": 3}


def wider_model(seed: int = 1, **sizes: object) -> Any:  # noqa: ANN401 - a transformers model
    """Build a larger model than "tiny" with the same tokenizer, whose distributions are uneven."""
    config = transformers.LlamaConfig(**(tiny_model().config.to_dict() | WIDER | sizes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
    return model.eval()


def save(model: Any, folder: Path, tokenizer: Any = None) -> Path:  # noqa: ANN401 - of transformers
    """Write a model with the tiny tokenizer, or another one."""
    model.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


@dataclass
class Endpoint:
    """A server of one model; counts what it is asked."""

    model: Any
    form: str = "prompt_logprobs"
    """Which form it has: "prompt_logprobs", "echo" or "none"."""
    shift: int = 0
    """Added to every token id before its text is looked up: another vocabulary."""
    fail: list[int] = field(default_factory=list)
    """Statuses of the next responses, before it answers."""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return status and body of a response to /v1/completions."""
        self.bodies.append(body)
        if self.fail:
            return self.fail.pop(0), {"error": {"message": "busy"}}
        ids: list[int] = body["prompt"]
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].float()
        each = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0].tolist()
        tokenizer = tiny_tokenizer()
        texts = [tokenizer.decode([min(i + self.shift, 255)]) for i in ids]
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": "length"}
        if self.form == "none" and ("prompt_logprobs" in body or body.get("echo")):
            return 400, {"error": {"message": "unknown parameter"}}
        if self.form == "prompt_logprobs" and "prompt_logprobs" in body:
            known = [
                {str(i): {"logprob": p, "rank": 1, "decoded_token": t}}
                for i, p, t in zip(ids[1:], each, texts[1:], strict=True)
            ]
            choice["prompt_logprobs"] = [None, *known]
        if self.form == "echo" and body.get("echo"):
            # The token that was sampled comes after those of the prompt.
            numbers = [None, *each, -1.0]
            choice["logprobs"] = {"tokens": [*texts, "x"], "token_logprobs": numbers}
        return 200, {"id": "c", "object": "text_completion", "choices": [choice]}


@contextmanager
def serving(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Serve on the loopback interface while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = endpoint.answer(body)
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
