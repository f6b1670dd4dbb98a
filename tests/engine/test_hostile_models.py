"""The code of a hostile model does not run, even if somebody answers "y" on standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from orbiter.train.engine.models.load import load_model
from orbiter.train.runlog import read_run
from tests.children import run_child, started_child

WATCH = """
import json, os, sys
folder, proof = sys.argv[1], sys.argv[2]
sys.path.insert(0, os.path.join(folder, "on_the_path"))  # as the folder of a rewards.py would be
ran = []

def hook(event, args):
    text = " ".join(map(repr, args))
    if event in ("exec", "import", "compile", "pickle.find_class", "os.system", "subprocess.Popen"):
        if "evil" in text or "pwned" in text.lower():
            ran.append(f"{event}: {text[:200]}")

import torch, transformers, peft
from orbiter.train import StorageError
from orbiter.train.cli.app import main
from orbiter.train.engine.models.load import load_model

sys.addaudithook(hook)
outcome = {}

def attempt(name, act):
    try:
        act()
        outcome[name] = "loaded"
    except StorageError as error:
        outcome[name] = f"refused: {error}"
    except SystemExit as ended:
        outcome[name] = f"exit {ended.code}"
    except BaseException as error:
        outcome[name] = f"{type(error).__name__}: {error}"

os.chdir(os.path.join(folder, "project"))
for name in sorted(os.listdir(os.path.join(folder, "models"))):
    path = os.path.join(folder, "models", name)
    attempt(f"load {name}", lambda: load_model(path, device="cpu"))
    words = ["train", "-c", "config.toml", "--dry-run", "--json", f"train.model={path}"]
    attempt(f"train {name}", lambda: main(words))
evil = os.path.join(folder, "models", "config")
words = ["sft", "-c", "config.toml", f"sft.model={evil}", "--out", "runs/s"]
attempt("sft config", lambda: main(words))
attempt("generate config", lambda: main(["generate", "--model", evil, "hi"]))
attempt("eval config", lambda: main(["eval", "-c", "config.toml", "--model", evil]))
attempt("serve config", lambda: main(["serve", evil, "--port", "0"]))
print(json.dumps({"ran": ran, "outcome": outcome}), file=sys.stderr)
"""

CODE = textwrap.dedent("""
    import os
    open(os.environ["PROOF"], "w").write("pwned")
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    class C(LlamaConfig):
        model_type = "evil"
    class M(LlamaForCausalLM):
        config_class = C
    class T(PreTrainedTokenizerFast):
        pass
    def generate(*args, **kwargs):
        return None
""")
LOADED = ("generation", "pickle-beside", "tokenizer-file", "train adapter-auto-mapping", " model")
"""Folders whose hostile part is simply never looked at, and which load without it."""


def hostile_folders(root: Path) -> None:
    """Write models that would run `evil.py`, each by another mechanism."""
    sound = root / "sound"
    loaded = load_model("tiny", device="cpu")
    loaded.model.save_pretrained(sound)
    loaded.tokenizer.save_pretrained(sound)

    def copy(name: str) -> Path:
        folder = root / "models" / name
        folder.mkdir(parents=True)
        for file in sound.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "evil.py").write_text(CODE)
        return folder

    def change(path: Path, **values: object) -> None:
        path.write_text(
            json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values)
        )

    own = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    change(copy("config") / "config.json", model_type="evil", auto_map=own)
    change(
        copy("model") / "config.json",
        architectures=["M"],
        auto_map={"AutoModelForCausalLM": "evil.M"},
    )
    change(
        copy("other-repository") / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "them/evil--evil.C"},
    )
    tokenizer = copy("tokenizer")
    change(
        tokenizer / "tokenizer_config.json",
        tokenizer_class="T",
        auto_map={"AutoTokenizer": ["evil.T", "evil.T"]},
    )
    (copy("tokenizer-file") / "tokenizer.py").write_text(CODE)
    generation = copy("generation")
    (generation / "custom_generate").mkdir()
    (generation / "custom_generate" / "generate.py").write_text(CODE)
    change(
        generation / "generation_config.json",
        custom_generate="evil",
        auto_map={"AutoModel": "evil.M"},
    )
    change(copy("kernel") / "config.json", attn_implementation="them/evil")
    (copy("pickle-beside") / "pytorch_model.bin").write_bytes(PICKLE)
    pickled = copy("pickle")
    (pickled / "model.safetensors").unlink()
    (pickled / "pytorch_model.bin").write_bytes(PICKLE)
    disguised = copy("pickle-disguised")
    (disguised / "model.safetensors").write_bytes(PICKLE)
    for name, config in ADAPTERS.items():
        adapter = root / "models" / f"adapter-{name}"
        adapter.mkdir(parents=True)
        change(adapter / "adapter_config.json", base_model_name_or_path=str(sound), **config)
        (adapter / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        (adapter / "evil.py").write_text(CODE)
    of_evil = root / "models" / "adapter-of-evil"
    of_evil.mkdir()
    change(of_evil / "adapter_config.json", peft_type="LORA", base_model_name_or_path="../config")
    (of_evil / "adapter_model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    pickled = root / "models" / "adapter-pickle"
    pickled.mkdir()
    change(pickled / "adapter_config.json", peft_type="LORA", base_model_name_or_path=str(sound))
    (pickled / "adapter_model.bin").write_bytes(PICKLE)
    (root / "on_the_path").mkdir()
    (root / "on_the_path" / "evil_on_the_path.py").write_text(CODE)


PICKLE = b'cbuiltins\nexec\n(S\'import os; open(os.environ["PROOF"], "w").write("pwned")\'\ntR.'
ADAPTERS: dict[str, dict[str, object]] = {
    "megatron": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"],
                 "megatron_config": {"a": 1}, "megatron_core": "evil_on_the_path"},
    "prompt": {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "prompt_tuning_init": "TEXT",
               "num_virtual_tokens": 2, "prompt_tuning_init_text": "x",
               "tokenizer_name_or_path": "../tokenizer",
               "tokenizer_kwargs": {"trust_remote_code": True}},
    "auto-mapping": {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"],
                     "auto_mapping": {"parent_library": "evil_on_the_path",
                                      "base_model_class": "M"}},
}  # fmt: skip


@pytest.mark.slow
def test_no_code_of_a_hostile_model_runs(tmp_path: Path) -> None:
    hostile_folders(tmp_path)
    make = [sys.executable, "-m", "orbiter.train.cli", "init", str(tmp_path / "project")]
    run_child(make, check=True)
    proof = tmp_path / "proof"
    command = [sys.executable, "-c", WATCH, str(tmp_path), str(proof)]
    environment = os.environ | {"PROOF": str(proof), "HF_HUB_OFFLINE": "1"}
    pipe = subprocess.PIPE
    with started_child(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        out, err = child.communicate("y\n" * 1000)
    found = json.loads(err.splitlines()[-1])
    assert found["ran"] == []
    assert not proof.exists()
    assert "Do you wish to run" not in out + err
    assert len(found["outcome"]) >= 34
    for name, outcome in found["outcome"].items():
        harmless = name.endswith(LOADED) and outcome in ("loaded", "exit 0")
        assert harmless or outcome.startswith(("refused:", "exit 6")), (name, outcome)
    assert "set trust_remote_code = true" in found["outcome"]["load config"]


@pytest.mark.slow
def test_the_config_can_allow_it_and_the_run_says_so(tmp_path: Path) -> None:
    hostile_folders(tmp_path)
    proof, run = tmp_path / "proof", tmp_path / "run"
    make = [sys.executable, "-m", "orbiter.train.cli", "init", str(tmp_path / "project")]
    run_child(make, check=True)
    command = [
        sys.executable,
        "-m",
        "orbiter.train.cli",
        "sft",
        "-c",
        "config.toml",
        "--out",
        str(run),
    ]
    command += [f"sft.model={tmp_path / 'models' / 'config'}", "sft.trust_remote_code=true"]
    command += ["sft.epochs=1", "sft.batch_size=64"]
    environment = os.environ | {"PROOF": str(proof), "HF_HOME": str(tmp_path / "hf")}
    done = run_child(command, cwd=tmp_path / "project", env=environment)
    assert done.returncode == 0, done.stderr
    assert proof.read_text() == "pwned"
    assert read_run(run).config["trust_remote_code"] is True
    assert "trust_remote_code = true" in (run / "config.toml").read_text()
    assert "running the Python code of" in done.stderr
