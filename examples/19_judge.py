"""Train by a judge that compares answers, find out how it errs, and notice when it is gamed.

    python examples/19_judge.py

A scripted endpoint replaces the judge model: it likes long answers a little too much. Give
`base_url` your own endpoint, and `calibrate` labels that `orbiter-train label` has written. Prints
what the judge gets wrong, what the run cost, and whether the alarm went off.
"""

import asyncio
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from orbiter.train import RewardSpec, VeRLConfig, VeRLTrainer
from orbiter.train.evaluation import Judgement
from orbiter.train.judging import GroupJudge, calibrate
from orbiter.train.llm import ClientConfig, Price, RemoteChatModel


class Endpoint(BaseHTTPRequestHandler):
    """Scores answers by their length."""

    def do_POST(self) -> None:  # noqa: D102
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = asked["messages"][0]["content"]
        answers = re.findall(r"Attempt \d+:\n<text-\w+>\n(.*?)\n</text-", question, re.DOTALL)
        scores = {f"attempt_{i}": min(1.0, len(a) / 80) for i, a in enumerate(answers, 1)}
        content = json.dumps({"reason": "length", **scores})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())


LABELS = [
    Judgement(rater="ann", kind="better", value=value, task=f"Question {i}", answers=pair)
    for i, (value, pair) in enumerate(
        [(1, ("a long answer", "no")), (0, ("rambling on", "yes"))] * 5
    )
]


async def main(url: str) -> None:
    settings = {"price": Price(input=0.5, output=1.5), "parameters": {"max_tokens": 200}}
    config = ClientConfig(model="judge", base_url=url, **settings)
    async with RemoteChatModel(config, api_key="none") as model:
        judge = GroupJudge(model, "Which answer is better?", max_cost=1.0)
        print(await calibrate(judge, LABELS))
        brevity = RewardSpec("brevity", fn=lambda output: -len(output) / 80)
        run = VeRLConfig(model="tiny", epochs=4, group_size=4, gold_every=2, progress=False)
        trainer = VeRLTrainer(run, [RewardSpec("judge", fn=judge)], gold=brevity)
        await trainer.train(["Say something.", "Name a colour.", "Sing.", "Count."])
        print(trainer.history[-1]["gold/proxy"], trainer.history[-1]["gold/brevity"], judge.spent)


server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
threading.Thread(target=server.serve_forever, daemon=True).start()
asyncio.run(main(f"http://127.0.0.1:{server.server_port}/v1"))
server.shutdown()
