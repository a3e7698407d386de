"""Checkpoints: whole and intact, or not taken; the newest good one, or an error that names every problem."""

from __future__ import annotations

import errno
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learners import checkpoint
from learners.checkpoint import MANIFEST, TENSORS, CheckpointError, load_newest, prefixed, save
from replay import manifest

CONFIG = {"algorithm": "softgac", "batch_size": 256}


def _save(directory: Path, value: float, keep: int = 3) -> Path:
    tensors = {"learner/w": torch.full((3, 4), value), "learner/rng": np.arange(9, dtype=np.uint8)}
    return save(directory, tensors, {**CONFIG, "updates": int(value)}, keep=keep)


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_what_was_saved_is_loaded_bit_for_bit_with_its_parts(tmp_path: Path) -> None:
    weird = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45])
    flat = torch.arange(6.0)
    learner = {
        "weird": weird,
        "a": flat[:2],
        "b": flat[2:].view(2, 2),
        "step": torch.tensor(3),
        "half": flat.bfloat16(),
    }
    worker = {"rng": np.arange(7, dtype=np.uint8), "steps": np.int64(5)}
    path = save(tmp_path, {**prefixed("learner", learner), **prefixed("worker1", worker)}, CONFIG, keep=1)
    loaded = load_newest(tmp_path, CONFIG)
    assert loaded is not None and loaded.path == path and loaded.warnings == () and loaded.meta == CONFIG
    for name, tensor in learner.items():
        seen = loaded.part("learner")[name]
        assert seen.dtype == tensor.dtype and seen.shape == tensor.shape
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        assert torch.equal(seen.view(bits), tensor.contiguous().view(bits))
    assert loaded.part("worker1")["rng"].tolist() == list(range(7)) and loaded.part("worker1")["steps"].item() == 5
    assert loaded.part("worker") == {}


def test_no_checkpoint_at_all_is_none_and_so_is_a_save_that_never_finished(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent", CONFIG) is None
    (tmp_path / ".tmp-checkpoint-1").mkdir()
    assert load_newest(tmp_path, CONFIG) is None
    _save(tmp_path, 1)
    assert not list(tmp_path.glob(".tmp*"))


FAULTS = {
    "truncated tensors": (lambda p: (p / TENSORS).write_bytes((p / TENSORS).read_bytes()[:-1]), "truncated"),
    "empty tensors": (lambda p: (p / TENSORS).write_bytes(b""), "truncated: 0 bytes"),
    "missing tensors": (lambda p: (p / TENSORS).unlink(), "tensors.safetensors is missing"),
    "flipped tensors": (lambda p: _flip(p / TENSORS, -3), "tensors.safetensors is damaged"),
    "missing manifest": (lambda p: (p / MANIFEST).unlink(), "manifest.json is missing"),
    "truncated manifest": (lambda p: (p / MANIFEST).write_bytes((p / MANIFEST).read_bytes()[:40]), "damaged or trunc"),
    "manifest of another shape": (lambda p: (p / MANIFEST).write_text("[1]"), "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_newest_checkpoint_is_named_and_the_older_one_is_taken(tmp_path: Path, fault: str) -> None:
    damage, problem = FAULTS[fault]
    older, newest = _save(tmp_path, 1), _save(tmp_path, 2)
    damage(newest)
    loaded = load_newest(tmp_path, CONFIG)
    assert loaded is not None and loaded.path == older and loaded.meta["updates"] == 1
    assert len(loaded.warnings) == 1 and str(newest) in loaded.warnings[0] and problem in loaded.warnings[0]


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = _save(tmp_path_factory.mktemp("flip"), 1)
    file = path / data.draw(st.sampled_from([TENSORS, MANIFEST]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(bytes(content))
    with pytest.raises(CheckpointError):
        load_newest(path.parent, CONFIG)


def test_another_configuration_is_refused_naming_the_fields_and_both_values(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    with pytest.raises(
        CheckpointError, match=r"batch_size is 256 there, 128 here; env is absent there, 'Hopper-v5' here"
    ):
        load_newest(tmp_path, {"batch_size": 128, "env": "Hopper-v5", "algorithm": "softgac"})


def test_all_invalid_is_an_error_that_lists_each_path_with_its_problem_and_what_to_do(tmp_path: Path) -> None:
    first, second = _save(tmp_path, 1), _save(tmp_path, 2)
    _flip(first / TENSORS, -1)
    (second / MANIFEST).unlink()
    with pytest.raises(CheckpointError) as caught:
        load_newest(tmp_path, CONFIG)
    text = str(caught.value)
    assert f"{first}: tensors.safetensors is damaged" in text and f"{second}: manifest.json is missing" in text
    assert text.endswith("new run directory")  # others add their own words


def test_the_newest_keep_valid_ones_stay_and_damaged_ones_do_not_count(tmp_path: Path) -> None:
    paths = [_save(tmp_path, value, keep=2) for value in (1, 2, 3)]
    assert [p.exists() for p in paths] == [False, True, True]
    _flip(paths[2] / TENSORS, -1)
    fourth = _save(tmp_path, 4, keep=2)
    assert paths[1].exists() and fourth.exists()
    fifth = _save(tmp_path, 5, keep=2)
    assert [p.exists() for p in (*paths, fourth, fifth)] == [False, False, False, True, True]


@pytest.mark.parametrize("file", [TENSORS, MANIFEST])
def test_a_full_disk_leaves_the_older_checkpoints_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    older = _save(tmp_path, 1, keep=1)
    fired = []

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        if path.name == file:
            fired.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write_synced", full)
    with pytest.raises(OSError, match="No space left"):
        _save(tmp_path, 2, keep=1)
    assert fired and [p.name for p in tmp_path.iterdir()] == [older.name]
    loaded = load_newest(tmp_path, CONFIG)
    assert loaded is not None and loaded.meta["updates"] == 1


def test_files_and_directories_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_write, real_sync, real_rename = manifest.write_synced, checkpoint.fsync_directory, checkpoint.os.rename
    monkeypatch.setattr(manifest, "write_synced", lambda p, d: (events.append(p.name), real_write(p, d)))
    monkeypatch.setattr(checkpoint, "fsync_directory", lambda p: (events.append(f"dir {p.name}"), real_sync(p)))
    monkeypatch.setattr(checkpoint.os, "rename", lambda a, b: (events.append("rename"), real_rename(a, b)))
    directory = tmp_path / "checkpoints"
    _save(directory, 1)
    assert (
        events[:2] == [TENSORS, MANIFEST]
        and events[2].startswith("dir .tmp")
        and events[3:] == ["rename", "dir checkpoints"]
    )


def test_meta_that_is_not_json_and_keep_below_one_are_refused_leaving_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be JSON"):
        save(tmp_path, {}, {"x": object()}, keep=1)
    with pytest.raises(ValueError, match="at least 1"):
        save(tmp_path, {}, {}, keep=0)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_format_1_is_read_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    """As b591b3b and before wrote them: the digest stands among the manifest's fields, the tensors' under ``files``."""
    path = _save(tmp_path, 7)
    data = (path / TENSORS).read_bytes()
    files = {TENSORS: {"bytes": len(data), "blake2b": blake2b(data, digest_size=32).hexdigest()}}
    old = {"format": 1, "meta": {**CONFIG, "updates": 7}, "files": files}
    canonical = json.dumps(old, sort_keys=True, indent=1).encode()
    old["digest"] = blake2b(canonical, digest_size=32).hexdigest()
    (path / MANIFEST).write_bytes(json.dumps(old, sort_keys=True, indent=1).encode())
    loaded = load_newest(tmp_path, CONFIG)
    assert loaded is not None and loaded.meta["updates"] == 7 and loaded.part("learner")["w"].unique().item() == 7
    assert checkpoint.newest_meta(tmp_path) == loaded.meta
    _flip(path / MANIFEST, 100)
    with pytest.raises(CheckpointError, match=r"manifest.json is damaged"):
        load_newest(tmp_path, CONFIG)


def test_a_checkpoint_of_a_later_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    content = manifest.read_manifest(path / MANIFEST)
    manifest.write_manifest(path / MANIFEST, content | {"format": 3})
    with pytest.raises(
        CheckpointError, match=r"format 3, this version reads 1 and 2; use the version .* that wrote it"
    ):
        load_newest(tmp_path, CONFIG)


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    assert sorted(p.name for p in path.iterdir()) == [MANIFEST, TENSORS]
    json.loads((path / MANIFEST).read_text())
    header = (path / TENSORS).read_bytes()
    json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
