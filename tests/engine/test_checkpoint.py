from __future__ import annotations

import json
import math
import os
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orbiter.train.engine.checkpoint import Checkpoints
from orbiter.train.engine.models.folder import MANIFEST, staged_folder, verify_folder
from orbiter.train.errors import DataError, StorageError, TrainingError
from tests.children import run_child

SAVE_UNDER_FIRE = Path(__file__).with_name("save_under_fire.py")
Groups = dict[str, dict[str, Tensor]]


def groups(step: int = 1) -> Groups:
    return {
        "weights": {"a.weight": torch.randn(4, 3), "bf16": torch.ones(5, dtype=torch.bfloat16)},
        "rng": {"torch": torch.get_rng_state()},
        "buffer": {"token_ids": torch.arange(6).reshape(2, 3) * step, "mask": torch.ones(2) > 0},
        "optimiser": {},
    }


def same(one: Groups, other: Groups) -> bool:
    return one.keys() == other.keys() and all(
        named.keys() == other[group].keys()
        and all(
            torch.equal(tensor, other[group][name]) and tensor.dtype == other[group][name].dtype
            for name, tensor in named.items()
        )
        for group, named in one.items()
    )


def test_what_was_saved_comes_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = groups()
    state = {"position": {"step": 3}, "third": 1 / 3, "tiny": 5e-324, "big": 2**80, "none": None}
    Checkpoints(tmp_path).save(7, tensors=tensors, state=state)
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert (found.step, found.state) == (7, state)
    assert same(found.tensors, tensors)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=30)
@given(state=st.dictionaries(st.text("xyz", max_size=3), JSON, max_size=3))
def test_any_tree_of_json_comes_back(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, object]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    Checkpoints(folder).save(1, tensors={}, state=state)
    found = Checkpoints(folder).latest()
    assert found is not None
    assert found.state == state
    shutil.rmtree(folder)


def test_tensors_that_share_memory_and_views_come_back_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    shared = {"base": base, "rows": base[1:], "turned": base.mT, "tied": base}
    Checkpoints(tmp_path).save(1, tensors={"weights": shared}, state={})
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert same(found.tensors, {"weights": {n: t.contiguous() for n, t in shared.items()}})


def test_a_trained_parameter_is_saved_without_its_graph(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    Checkpoints(tmp_path).save(1, tensors={"weights": {"w": weight}}, state={})
    found = Checkpoints(tmp_path).latest()
    assert found is not None
    assert not found.tensors["weights"]["w"].requires_grad


def test_the_newest_stay_and_older_ones_go(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10, 11):
        checkpoints.save(step, tensors=groups(step), state={"step": step})
    assert checkpoints.steps() == [10, 11]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_a_step_saved_twice_holds_the_second(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for attempt in ("first", "second"):
        checkpoints.save(4, tensors={}, state={"attempt": attempt})
    assert checkpoints.read(4).state == {"attempt": "second"}
    assert len(list(tmp_path.iterdir())) == 1


def test_no_checkpoint_is_none_and_a_missing_one_is_named(tmp_path: Path) -> None:
    nowhere = Checkpoints(tmp_path / "not" / "there")
    assert nowhere.latest() is None
    with pytest.raises(StorageError, match=r"there is no checkpoint .*step-00000003"):
        nowhere.read(3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weights_that_are_no_numbers_are_never_a_checkpoint(tmp_path: Path, bad: float) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tensors=groups(), state={})
    broken = {"weights": {"layer.weight": torch.tensor([1.0, bad])}}
    with pytest.raises(TrainingError, match=r"weights/layer\.weight is no longer finite"):
        checkpoints.save(2, tensors=broken, state={})
    assert checkpoints.steps() == [1]


@pytest.mark.parametrize("state", [{"x": math.nan}, {"x": {1, 2}}, {"x": torch.ones(1)}])
def test_a_state_that_is_no_json_is_refused_before_anything_is_written(
    tmp_path: Path, state: dict[str, object]
) -> None:
    with pytest.raises(DataError, match="must be JSON"):
        Checkpoints(tmp_path).save(1, tensors={}, state=state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("group", ["../weights", "a/b", "", "Weights", "weights.x"])
def test_a_group_cannot_choose_where_its_file_goes(tmp_path: Path, group: str) -> None:
    with pytest.raises(DataError, match="group of tensors"):
        Checkpoints(tmp_path).save(1, tensors={group: {}}, state={})


def two_checkpoints(folder: Path) -> Path:
    """Save steps 1 and 2; return the folder of the second."""
    for step in (1, 2):
        Checkpoints(folder).save(step, tensors=groups(step), state={"step": step, "x": 0.5})
    return folder / "step-00000002"


def test_every_flipped_byte_is_noticed_and_the_checkpoint_before_is_used(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    draw = random.Random(0)
    flips = missed = 0
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        places = {*range(min(len(whole), 300)), *(draw.randrange(len(whole)) for _ in range(40))}
        for place in sorted(places):
            path.write_bytes(flipped(whole, place, draw))
            flips += 1
            try:
                verify_folder(newest)
                missed += 1
            except StorageError:
                pass
        path.write_bytes(flipped(whole, len(whole) // 2, draw))
        checkpoints = Checkpoints(tmp_path)
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 1
        assert len(checkpoints.skipped) == 1
        path.write_bytes(whole)
    assert missed == 0
    assert flips > 1000
    verify_folder(newest)


def flipped(whole: bytes, place: int, draw: random.Random) -> bytes:
    changed = bytearray(whole)
    changed[place] ^= draw.randrange(1, 256)
    return bytes(changed)


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "weights.safetensors"])
def test_a_missing_or_cut_file_makes_latest_take_the_one_before(tmp_path: Path, name: str) -> None:
    path = two_checkpoints(tmp_path) / name
    for cut in (True, False):
        if cut:
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()
        checkpoints = Checkpoints(tmp_path)
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 1
        assert "step-00000002" in checkpoints.skipped[0]


def test_a_file_too_many_is_noticed(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    (newest / "more.safetensors").write_bytes((newest / "rng.safetensors").read_bytes())
    with pytest.raises(StorageError, match=r"more\.safetensors"):
        Checkpoints(tmp_path).read(2)


def test_a_link_in_the_place_of_a_file_or_a_checkpoint_is_refused(tmp_path: Path) -> None:
    newest = two_checkpoints(tmp_path)
    outside = tmp_path / "outside.json"
    (newest / "state.json").rename(outside)
    (newest / "state.json").symlink_to(outside)
    with pytest.raises(StorageError, match="not a plain file"):
        Checkpoints(tmp_path).read(2)
    (tmp_path / "step-00000009").symlink_to(tmp_path / "step-00000001")
    with pytest.raises(StorageError, match="there is no checkpoint"):
        Checkpoints(tmp_path).read(9)


HOSTILE = [
    "../outside", "/etc/hostname", "a/../../b", "..", "", ".", "C:\\x", "a\\b", "x\0y", "//x",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path: Path, name: str) -> None:
    newest = two_checkpoints(tmp_path)
    document = json.loads((newest / MANIFEST).read_text())
    document["files"][name] = document["files"]["state.json"]
    (newest / MANIFEST).write_text(json.dumps(document, indent=1, sort_keys=True))
    with pytest.raises(StorageError, match="not a file inside its folder"):
        verify_folder(newest)


NO_MANIFESTS = [
    "", "[]", "null", "{}", '{"files": 3}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\udcff",
    '{"files": {"a": {"size": "1", "sha256": "", "mtime_ns": 0}}}', "[" * 100_000, '{"files": {}}',
]  # fmt: skip


@pytest.mark.parametrize("text", NO_MANIFESTS, ids=range(len(NO_MANIFESTS)))
def test_any_other_manifest_is_a_storage_error(tmp_path: Path, text: str) -> None:
    newest = two_checkpoints(tmp_path)
    (newest / MANIFEST).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StorageError, match=MANIFEST):
        verify_folder(newest)


def test_what_a_kill_left_is_swept_but_not_what_a_living_process_writes(tmp_path: Path) -> None:
    dead = tmp_path / ".step-00000001.999999999.partial"
    alive = tmp_path / f".step-00000001.{os.getppid()}.partial"
    mine = tmp_path / f".step-00000002.{os.getpid()}.old.partial"
    replaced = tmp_path / "step-00000002"
    lost = tmp_path / f".step-00000003.{os.getpid()}.old.partial"  # its successor never came
    for folder in (dead, alive, mine, replaced, lost):
        folder.mkdir()
    Checkpoints(tmp_path)
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == [alive.name, "step-00000002", "step-00000003"]


def test_an_error_while_saving_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with staged_folder(target) as folder:
        (folder / "config.json").write_text("one")
    with pytest.raises(KeyError), staged_folder(target) as folder:
        raise KeyError((folder / "config.json").write_text("two"))
    assert (target / "config.json").read_text() == "one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_a_read_only_folder_is_a_storage_error_that_names_it(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*file/step-00000001"):
        Checkpoints(blocked).save(1, tensors={}, state={})


def fire(folder: Path, mode: str, script: Path = SAVE_UNDER_FIRE) -> tuple[int, list[str]]:
    command = [sys.executable, str(script), str(folder), mode]
    root = str(SAVE_UNDER_FIRE.parents[2])
    done = run_child(command, env=os.environ | {"PYTHONPATH": root}, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return result["points"], result["wrong"]


REPLACE_UNDER_FIRE = SAVE_UNDER_FIRE.with_name("replace_under_fire.py")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="strikes forked processes")


@needs_fork
@pytest.mark.slow
def test_a_kill_at_every_file_operation_of_a_save_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    points, wrong = fire(tmp_path, "kill")
    assert wrong == []
    assert points >= 25


@needs_fork
@pytest.mark.slow
@pytest.mark.parametrize("system", ["swap", "rename"])
def test_a_kill_while_a_model_is_replaced_leaves_a_model_at_its_path(
    tmp_path: Path, system: str
) -> None:
    if system == "swap" and not sys.platform.startswith(("linux", "darwin")):
        pytest.skip("this system cannot exchange two names")
    points, wrong = fire(tmp_path, system, REPLACE_UNDER_FIRE)
    assert wrong == []
    assert points >= 15


@needs_fork
@pytest.mark.slow
def test_a_kill_within_a_file_of_tensors_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    points, wrong = fire(tmp_path, "torn")
    assert wrong == []
    assert points == 2


@needs_fork
@pytest.mark.slow
def test_a_full_disk_at_every_file_operation_is_named_and_harmless(tmp_path: Path) -> None:
    points, wrong = fire(tmp_path, "full")
    assert wrong == []
    assert points >= 20


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk")
def test_a_really_full_disk_is_named_with_what_is_needed_and_free(tmp_path: Path) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(tmp_path)]
    if run_child(mount).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        checkpoints = Checkpoints(tmp_path / "run")
        checkpoints.save(1, tensors={"weights": {"w": torch.ones(20_000)}}, state={})
        with pytest.raises(
            StorageError, match=r"the disk is full.*400,000 bytes are needed, .* free"
        ):
            checkpoints.save(2, tensors={"weights": {"w": torch.ones(100_000)}}, state={})
        found = checkpoints.latest()
        assert found is not None
        assert found.step == 1
        assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["step-00000001"]
    finally:
        run_child(["umount", "-l", str(tmp_path)], check=True)
