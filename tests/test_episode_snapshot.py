"""A shard of episodes that comes back from the disk answers and samples bit by bit as the one that was saved."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from episode_parts import P, free_shard, make_shard
from shard_chunks import make_chunk

from replay import episode_store, manifest, snapshot
from replay.messages import TERMINATED, EpisodeBlock
from replay.shard import Shard
from replay.snapshot import Saving, SnapshotError, load, save

LENGTHS = [5, 7, 6, 8, 5, 9, 6, 7, 5, 8]
KINDS = {
    "dataset held": {"offline": LENGTHS},
    "dataset streamed": {"offline": LENGTHS, "offline_rows": 25, "refresh_episodes": 1},
    "online alone": {},
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episode_store, "SEGMENT_BYTES", 600)


def feed(shard: Shard, first: int, count: int) -> None:
    """Chunks of two environments: one episode ends in each, one stays open."""
    for n in range(first, first + count):
        runs = [(2 * n, 0, 4 + n % 3, TERMINATED), (2 * n + 1, 0, 3, 0)]
        if n:
            runs.insert(1, (2 * n - 1, 3, 2, TERMINATED))
        assert shard.append(make_chunk(runs, sequence=n, version=n)).status == "ok"


def turn(shard: Shard, number: int) -> list[bytes]:
    """One block and what is written back for it; all that was seen, as bytes."""
    block = shard.sample(2, 4)
    assert isinstance(block, EpisodeBlock)
    values = np.random.default_rng(number).random((4, P), np.float32)
    for slot_B, writes_B in zip(block.slot_UB, block.writes_UB):
        shard.write_back(slot_B, writes_B, values)
    arrays = [block.slot_UB, block.writes_UB, block.version_UB]
    for batch in block.batches:
        arrays += [batch.rows_NF, batch.offset, batch.return_B, batch.posterior_BP, batch.visits_B]
    return [array.tobytes() for array in arrays] + [
        repr((block.returns, block.inserted)).encode(),
    ]


def busy(kind: str, turns: int = 12) -> Shard:
    shard = free_shard(**KINDS[kind], online_rows=60)
    for number in range(turns):
        feed(shard, 2 * number, 2)
        turn(shard, number)
    return shard


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_shard_goes_on_bit_by_bit_as_the_saved_one(kind: str, tmp_path: Path) -> None:
    shard = busy(kind)
    info = save(shard, tmp_path)
    again = free_shard(**KINDS[kind], online_rows=60)
    found = load(again, tmp_path)
    assert found is not None and found.number == 1 and found.inserted == info.inserted == shard.store.inserted
    assert info.segments > 2 and not found.warnings
    for number in range(12, 20):
        assert turn(again, number) == turn(shard, number)
        feed(shard, 2 * number, 2)
        feed(again, 2 * number, 2)
        assert again.stats().open_rows == shard.stats().open_rows > 0
    assert again.state() == shard.state()
    assert again.append(make_chunk([(0, 0, 4, TERMINATED)])).status == "duplicate"


def test_what_is_appended_while_it_is_written_is_not_in_it(tmp_path: Path) -> None:
    shard, twin = busy("dataset streamed"), busy("dataset streamed")
    saving, number = Saving(shard, tmp_path), 12
    while saving.step() is None:
        feed(shard, 2 * number, 2)
        turn(shard, number)
        number += 1
    again = free_shard(**KINDS["dataset streamed"], online_rows=60)
    load(again, tmp_path)
    for number in range(12, 16):
        assert turn(again, number) == turn(twin, number)


@pytest.mark.parametrize("damage", ["manifest", "rows", "columns", "missing", "truncated"])
def test_a_damaged_snapshot_is_passed_over_for_the_older_one_with_a_warning(damage: str, tmp_path: Path) -> None:
    shard = busy("dataset held")
    save(shard, tmp_path)
    inserted = shard.store.inserted
    feed(shard, 24, 2)
    save(shard, tmp_path)
    index = {"columns": 0}.get(damage, 1)
    path = tmp_path / snapshot.segment_name(index, 2)
    if damage == "manifest":
        path = snapshot.manifest_path(tmp_path, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else data)
    again = free_shard(**KINDS["dataset held"], online_rows=60)
    found = load(again, tmp_path)
    assert found is not None and (found.number, again.store.inserted) == (1, inserted)
    assert len(found.warnings) == 1 and "skipped" in found.warnings[0]
    path.unlink(missing_ok=True)
    snapshot.manifest_path(tmp_path, 1).write_bytes(b"{}")
    with pytest.raises(SnapshotError, match="restore the files, or remove the directory"):
        load(free_shard(**KINDS["dataset held"], online_rows=60), tmp_path)


def test_only_the_newest_intact_snapshots_are_kept_and_nothing_else(tmp_path: Path) -> None:
    shard = busy("online alone")
    for number in range(5):
        save(shard, tmp_path)
        feed(shard, 24 + number, 1)
    assert {snapshot.number_of(path) for path in tmp_path.iterdir()} == {4, 5}


def test_a_full_disk_leaves_the_older_snapshots_and_nothing_of_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = busy("online alone")
    save(shard, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    saving = Saving(shard, tmp_path)
    saving.step()

    def full(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(manifest, "write_synced", full)
    with pytest.raises(OSError, match="no space"):
        saving.step()
    assert {path.name for path in tmp_path.iterdir()} == before
    with pytest.raises(RuntimeError, match="begin anew"):
        saving.step()


def test_a_cancelled_snapshot_leaves_no_file(tmp_path: Path) -> None:
    saving = Saving(busy("online alone"), tmp_path)
    saving.step()
    saving.cancel()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"online_rows": 61}, "online_capacity is 60, expected 61"),
        ({"floats": P + 1}, "posterior_floats is 3, expected 4"),
        ({"offline": [*LENGTHS[:-1], 7]}, "does not go with the dataset"),
        ({"offline": LENGTHS[:-1]}, "does not go with the dataset"),
    ],
)
def test_a_snapshot_of_another_shard_or_dataset_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    save(busy("dataset held"), tmp_path)
    with pytest.raises(SnapshotError, match=message):
        load(free_shard(**({"offline": LENGTHS, "online_rows": 60} | change)), tmp_path)


def test_an_empty_directory_has_no_snapshot_and_a_used_shard_takes_none(tmp_path: Path) -> None:
    assert load(make_shard(), tmp_path / "absent") is None
    shard = busy("online alone")
    save(shard, tmp_path)
    with pytest.raises(ValueError, match="load before the first call"):
        load(shard, tmp_path)
