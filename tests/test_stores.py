"""The contract of a store, over both: what a shard and a snapshot promise does not depend on what the items are."""

from __future__ import annotations

import errno
import json
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
from episode_parts import free_shard
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors
from shard_chunks import make_chunk, make_shard

from replay import manifest, snapshot
from replay.messages import TERMINATED, Chunk, Wait
from replay.shard import Shard

STORES = {
    "transitions": lambda: make_shard(4_096, seed=1),
    "episodes": lambda: free_shard(online_rows=4_096, seed=1),
    "episodes and a dataset": lambda: free_shard(online_rows=4_096, offline=[5, 7, 6], seed=1),
}
store = pytest.mark.parametrize("kind", STORES)


def chunk(number: int) -> Chunk:
    return make_chunk([(2 * number, 0, 9, TERMINATED), (2 * number + 1, 0, 7, 0)], sequence=number, version=number)


def ready(kind: str, chunks: int = 20) -> Shard:
    shard = STORES[kind]()
    for number in range(chunks):
        assert shard.append(chunk(number)).status == "ok"
    return shard


def drawn(shard: Shard) -> list[bytes]:
    block = shard.sample(2, 8)
    assert not isinstance(block, Wait)
    return [block.slot_UB.tobytes(), block.writes_UB.tobytes(), block.version_UB.tobytes(), repr(block).encode()]


@store
def test_a_chunk_is_stored_once_counted_once_and_rejected_as_a_whole(kind: str) -> None:
    shard = ready(kind, 3)
    assert shard.append(chunk(1)).status == "duplicate"
    broken = chunk(3)
    broken.rows_ND[2, 0] = np.nan
    assert shard.append(broken).reason.startswith("nonfinite: ")
    stats = shard.stats()
    assert (stats.stored_rows, stats.duplicate_rows, stats.rejected_rows) == (48, 16, {"nonfinite": 16})
    assert stats.received_rows == 80 and shard.store.inserted == 48
    shard.close()
    assert shard.append(chunk(4)).reason.startswith("closed: ")


@store
def test_a_block_names_what_it_holds_and_its_arrays_are_the_receivers(kind: str) -> None:
    shard, twin = ready(kind), ready(kind)
    block = shard.sample(3, 8)
    assert not isinstance(block, Wait)
    assert block.slot_UB.shape == block.writes_UB.shape == block.version_UB.shape == (3, 8)
    assert (block.shard, block.inserted) == (0, 320)
    for array in (block.slot_UB, block.writes_UB, block.version_UB):
        array[:] = -7
    twin.sample(3, 8)
    assert drawn(shard) == drawn(twin)


@store
def test_a_snapshot_is_the_shard_when_it_began_and_is_loaded_bit_by_bit(kind: str, tmp_path: Path) -> None:
    shard, then, again = ready(kind), ready(kind), STORES[kind]()
    saving, number = snapshot.Saving(shard, tmp_path), 20
    with pytest.raises(RuntimeError, match="being saved already"):
        snapshot.Saving(shard, tmp_path)
    while saving.step() is None:
        shard.append(chunk(number))
        shard.sample(1, 4)
        number += 1
    info = snapshot.load(again, tmp_path)
    assert info is not None and (info.inserted, info.warnings) == (then.store.inserted, ())
    assert again.state() == then.state()
    for number in range(20, 24):
        assert drawn(again) == drawn(then)
        assert [each.append(chunk(number)).status for each in (again, then)] == ["ok", "ok"]
    assert again.append(chunk(3)).status == "duplicate"
    with pytest.raises(ValueError, match="load before the first call"):
        snapshot.load(again, tmp_path)


@store
def test_a_snapshot_that_fails_leaves_nothing_and_the_next_one_is_complete(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = ready(kind)
    snapshot.save(shard, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    shard.append(chunk(20))
    with monkeypatch.context() as full:

        def half(path: Path, data: bytes) -> None:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

        full.setattr(manifest, "write_synced", half)
        with pytest.raises(OSError, match="No space left"):
            snapshot.save(shard, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    snapshot.save(shard, tmp_path)
    again = STORES[kind]()
    assert snapshot.load(again, tmp_path) is not None and again.state() == shard.state()


@store
def test_a_snapshot_of_another_format_is_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    info = snapshot.save(ready(kind), tmp_path)
    manifest.write_manifest(info.path, manifest.read_manifest(info.path) | {"format": 99})
    with pytest.raises(snapshot.SnapshotError, match=r"has format 99, this version reads .*resume with the version"):
        snapshot.load(STORES[kind](), tmp_path)


def test_a_snapshot_of_transitions_of_format_1_is_read_without_its_priorities(tmp_path: Path) -> None:
    """As versions before the stores wrote them: a priority for each row, and digests of 128 bits."""
    shard = ready("transitions")
    info = snapshot.save(shard, tmp_path)
    content = manifest.read_manifest(info.path) | {"format": 1}
    for entry in content["segments"]:
        path = tmp_path / entry["file"]
        arrays = from_safetensors(path.read_bytes())
        data = to_safetensors(arrays | {"priority": np.zeros(len(arrays["rows"]), np.float32)})
        path.write_bytes(data)
        entry |= {"bytes": len(data), "digest": blake2b(data, digest_size=16).hexdigest()}
    digest = blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()
    info.path.write_text(json.dumps({"digest": digest, "manifest": content}))
    again = STORES["transitions"]()
    found = snapshot.load(again, tmp_path)
    assert found is not None and found.warnings == () and again.state() == shard.state()
    assert drawn(again) == drawn(shard)
    assert manifest.read_manifest(snapshot.save(again, tmp_path).path)["format"] == 2
