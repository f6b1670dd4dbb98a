"""No line of src/ can run code that came with data or with a model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "orbiter" / "train"
LOADERS = {"from_pretrained", "from_config", "load_dataset", "pipeline", "load_tool"}
"""Functions of Transformers and datasets that may run code of what they load."""
WITHOUT_ARGUMENT = {"PeftModel"}
"""Classes whose `from_pretrained` has no trust_remote_code: they only read weights and JSON."""
OPT_IN = "engine/models/pretrained.py"
"""The one file that passes on the config's `trust_remote_code`."""
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "input"}
UNSAFE_METHODS = {
    ("torch", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("os", "system"),
    ("os", "popen"), ("hub", "load"), ("numpy", "fromfile"),
}  # fmt: skip
IMPORTS_BY_NAME = {
    "__init__.py", "errors.py", "cli/app.py", "formats/registry.py", "runlog/trackers.py",
    "cli/settings/catalogue.py", "capture/encoding.py",  # names of this package's own tables
    "cli/code.py", "verl/cluster/inside/shipment.py",  # the user's own functions, by their config
    "capture/transport.py",  # wraps the loader of a module that the user imports
    "verl/cluster/inside/check.py",  # verl's own modules
    "demo/multi_turn/apis.py",  # our table's names, in the wheel whose checksum the demo verifies
}  # fmt: skip


def findings(tree: ast.AST, file: str) -> Iterator[str]:
    """Yield what must not be in a file of src/."""
    for node in ast.walk(tree):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            roots = {name.partition(".")[0] for name in [*names, getattr(node, "module", "") or ""]}
            for name in sorted(roots & UNSAFE_MODULES):
                yield f"{where}: imports {name}"
        if isinstance(node, ast.Call):
            yield from (f"{where}: {what}" for what in _of_call(node, file))


def _of_call(call: ast.Call, file: str) -> Iterator[str]:
    name, owner = _name(call.func), _name(getattr(call.func, "value", None))
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if isinstance(call.func, ast.Name) and name in UNSAFE_CALLS:
        yield f"calls {name}"
    if (owner, name) in UNSAFE_METHODS:
        yield f"calls {owner}.{name}"
    if (owner, name) == ("yaml", "load") and len(call.args) < 2 and "Loader" not in given:
        yield "calls yaml.load without a safe loader"
    if _is_true(given.get("shell")) or _is_true(given.get("allow_pickle")):
        yield "passes shell=True or allow_pickle=True"
    fixed = bool(call.args) and isinstance(call.args[0], ast.Constant)
    if name in ("import_module", "exec_module") and not fixed and file not in IMPORTS_BY_NAME:
        yield f"calls {name}: add the file to the table, with who chooses the name"
    if name in LOADERS and owner not in WITHOUT_ARGUMENT:
        trust = given.get("trust_remote_code")
        passes_on = _name(trust) == "trust_remote_code" and file == OPT_IN
        if not passes_on and not (isinstance(trust, ast.Constant) and trust.value is False):
            yield f"calls {name} without trust_remote_code=False"
    elif _is_true(given.get("trust_remote_code")):
        yield "passes trust_remote_code=True"


def _name(node: ast.AST | None) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _is_true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def test_no_code_of_data_or_models_can_run() -> None:
    found = [
        finding
        for path in sorted(SOURCE.rglob("*.py"))
        for finding in findings(ast.parse(path.read_bytes()), path.relative_to(SOURCE).as_posix())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "AutoModel.from_pretrained(x)",
        "transformers.AutoConfig.from_pretrained(x, local_files_only=True)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=None)",
        "AutoTokenizer.from_pretrained(x, trust_remote_code=trust_remote_code)",
        "AutoModel.from_config(x, trust_remote_code=True)",
        "load_model(x, trust_remote_code=True)",
        "datasets.load_dataset(x)",
        "torch.load(x, weights_only=True)",
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "exec(x)",
        "input('run it? ')",
        "yaml.load(x)",
        "subprocess.run(x, shell=True)",
        "numpy.load(x, allow_pickle=True)",
        "importlib.import_module(x)",
    ],
)
def test_a_planted_line_is_found(line: str) -> None:
    assert list(findings(ast.parse(line), "new.py"))
