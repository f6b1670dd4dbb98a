"""`orbiter-train init`: create a project that runs unchanged and explains its settings."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from orbiter.train.cli.output import JsonFlag, Output
from orbiter.train.errors import StorageError
from orbiter.train.storage import write_file
from orbiter.train.trajectory import TrajectoryItem

init_app = typer.Typer(rich_markup_mode=None)

CONFIG = """\
# The settings of all orbiter-train commands, one section per command. Settings not listed have
# defaults; a setting on the command line overrides this file:
#
#     orbiter-train train --config config.toml train.learning_rate=1e-4 --dry-run
#
# Paths are relative to this file.

[data]
train = "data.jsonl"    # the tasks; any format that `orbiter-train convert` reads
eval = "eval.jsonl"     # held out: measured before and after, never trained on

# Rewards score the answers: functions in a file of yours. The total is the sum of weight * fn.
[reward]
vowels = "rewards.py:vowels"
brevity = { fn = "rewards.py:brevity", weight = 0.2 }

# Training by reward: orbiter-train train --config config.toml
[train]
model = "tiny"            # built in code, untrained, takes seconds. For a real one:
                          # "smollm2-135m", a folder, or a Hugging Face name
algorithm = "grpo"        # or "ppo"
epochs = 3                # passes over the data
batch_size = 4            # prompts per step
group_size = 8            # answers per prompt, compared with each other
learning_rate = 2e-3      # for "tiny"; 1e-5 to 1e-6 for a real model
max_response_length = 16  # tokens
save_every = 5            # updates between two checkpoints
# kl_coef = 0.02          # how strongly the model is kept close to its start
# lora_rank = 16          # train adapters instead of all weights
# trackers = ["trackio"]  # or "wandb", "tensorboard", "mlflow"; the run's folder has all metrics

# Imitation of the actions in the data: orbiter-train sft --config config.toml
[sft]
model = "tiny"
epochs = 3
batch_size = 4
learning_rate = 3e-3
min_reward = 0.5          # imitate only good items

# More data from templates: orbiter-train synth --config config.toml
[synth]
target_size = 12
out = "more.jsonl"
templates = ["Write a word that rhymes with {word}.", "Use {word} in a {kind} sentence."]
variables = { word = ["sea", "moon", "idea", "ocean"], kind = ["short", "long"] }

# A better prompt instead of better weights: orbiter-train evolve --config config.toml
[evolve]
prompts = ["Answer the request."]
epochs = 2
population_size = 3

# The model that [evolve] uses, and that [synth] may ask (teacher = ["self-instruct"]).
[llm]
model = "smollm2-135m"    # downloaded once, 93 MB; or an endpoint: base_url = "http://127.0.0.1:8000/v1"
max_tokens = 64
"""

REWARDS = '''\
"""Rewards: each is a function of the answer's text; higher is better.

A reward with a parameter named `item` also gets the task: `item.state` is the prompt,
`item.action` the answer in the data, `item.metadata` any other fields of the data.
"""


def vowels(output: str) -> float:
    """Return the share of vowels in the answer: easy to learn, so you can watch it happen."""
    return sum(character in "aeiou" for character in output.lower()) / max(1, len(output))


def brevity(output: str) -> float:
    """Prefer short answers: 1 for an empty one, 0 from 40 characters on."""
    return max(0.0, 1 - len(output) / 40)


def exact(output: str, item) -> float:
    """Compare with the answer in the data; not used by config.toml yet."""
    return float(output.strip() == item.action.strip())
'''

TASKS = (
    *(("Name the sea that you like best.", "aegean"), ("Say a word with many vowels.", "audio")),
    *(("Say hello in Hawaiian.", "aloha"), ("Name a bird of the coast.", "auk")),
    *(("Name a flower.", "azalea"), ("Which letter comes first?", "a")),
    *(("Say a short greeting.", "ave"), ("What do you breathe?", "air")),
    *(("Name a great lake.", "erie"), ("What is a thought?", "an idea")),
    *(("Name a poem of praise.", "ode"), ("What does an owl see with?", "eye")),
    *(("Name a tune for one.", "aria"), ("Say yes in old verse.", "aye")),
    *(("Name an age.", "era"), ("What is water in French?", "eau")),
    *(("Name a continent.", "asia"), ("Name a river in Germany.", "aue")),
    *(("What surrounds a saint?", "aureole"), ("Name a fly-by-night bird.", "oriole")),
)
HELD_OUT = (
    *(("Name an island.", "oahu"), ("Name a state of the plains.", "iowa")),
    *(("Say goodbye in France.", "adieu"), ("What do bees live in?", "apiary")),
    *(("Name a month.", "august"), ("Name a colour of the sky.", "azure")),
    *(("Name a large deer.", "an elk"), ("What is a very long time?", "aeon")),
)


@init_app.command()
def init(
    directory: Annotated[Path, typer.Argument(help="The folder to create.", metavar="DIR")],
    *,
    as_json: JsonFlag = False,
) -> None:
    """Create a starter project: a commented config, a file of rewards, 20 rows of data."""
    output = Output(as_json=as_json)
    files = {
        "config.toml": CONFIG.encode(),
        "rewards.py": REWARDS.encode(),
        "data.jsonl": _lines(TASKS),
        "eval.jsonl": _lines(HELD_OUT),
    }
    # All are checked before the first is written, so that no project is half replaced.
    there = [name for name in files if (directory / name).exists()]
    if there:
        raise StorageError(f"{directory} has {', '.join(there)} already; choose another folder")
    for name, content in files.items():
        write_file(directory / name, content)
        output.say(f"wrote {directory / name}")
    output.say("\nnext:")
    output.say(f"  cd {shlex.quote(str(directory))}")
    output.say("  orbiter-train train --config config.toml --dry-run   # prints the plan")
    output.say("  orbiter-train train --config config.toml             # seconds, on any machine")
    output.result({"folder": str(directory), "files": list(files)})


def _lines(tasks: tuple[tuple[str, str], ...]) -> bytes:
    from orbiter.train.trajectory.codec import encode_item

    items = [TrajectoryItem(prompt, answer, 1.0) for prompt, answer in tasks]
    return b"".join(encode_item(item) + b"\n" for item in items)
