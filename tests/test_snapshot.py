"""Snapshots: bit-exact, atomic, and the newest valid one is found whatever was damaged."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shard_chunks import held, make_chunk, make_shard

from replay.shard import Shard
from replay.snapshot import HELD, Saving, SnapshotError, load, save

CAPACITY = 4_096  # 16 segments of 256 slots


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.transition_store.SEGMENT_BYTES", 1)


def new_shard(capacity: int = CAPACITY, seed: int = 0, **options: float) -> Shard:
    return make_shard(capacity, seed=seed, n_step=3, **options)


def feed(shard: Shard, first: int, count: int, rows: int = 32) -> None:
    """Chunks ``first`` .. of two never-ending episodes."""
    for i in range(first, first + count):
        runs = [(0, i * rows // 2, rows // 2, 0), (1, i * rows // 2, rows // 2, 0)]
        assert shard.append(make_chunk(runs, sequence=i, version=i)).status == "ok"


def assert_alike(a: Shard, b: Shard) -> None:
    """The same now, and after the same appends and samples."""
    for _ in range(3):
        assert (held(a) == held(b)).all()
        assert a.state() == b.state()
        left, right = a.sample(2, 64), b.sample(2, 64)
        assert (left.rows_UBD == right.rows_UBD).all() and (left.slot_UB == right.slot_UB).all()
        assert (left.writes_UB == right.writes_UB).all() and (left.version_UB == right.version_UB).all()
        for shard in (a, b):
            feed(shard, shard.store.inserted // 32, 2)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("chunks", [1, 20, 200])
def test_a_loaded_shard_answers_and_samples_bit_by_bit_as_the_saved_one(tmp_path: Path, chunks: int) -> None:
    shard, again = new_shard(), new_shard(seed=1)
    feed(shard, 0, chunks)
    shard.sample(3, 16)
    info = save(shard, tmp_path)
    loaded = load(again, tmp_path)
    assert loaded is not None and (loaded.number, loaded.inserted) == (info.number, shard.store.inserted)
    assert loaded.warnings == ()
    assert_alike(shard, again)


def test_a_chunk_stored_before_the_snapshot_is_a_duplicate_after_loading_it(tmp_path: Path) -> None:
    shard, again = new_shard(), new_shard()
    feed(shard, 0, 5)
    save(shard, tmp_path)
    load(again, tmp_path)
    assert again.append(make_chunk([(0, 0, 4, 0)], sequence=3)).status == "duplicate"
    assert again.append(make_chunk([(7, 0, 4, 0)], sequence=5)).status == "ok"


def test_only_changed_segments_are_written_again_and_unused_files_go(tmp_path: Path) -> None:
    shard = new_shard()
    feed(shard, 0, 120)
    assert save(shard, tmp_path).segments_written == 15
    assert save(shard, tmp_path).segments_written == 0
    feed(shard, 120, 3)
    assert save(shard, tmp_path).segments_written == 2  # the last one grew, and the one before holds the linked rows
    feed(shard, 123, 128)
    info = save(shard, tmp_path)
    assert info.segments_written == info.segments == 16
    save(shard, tmp_path)
    assert len(list(tmp_path.glob("manifest-*"))) == 2
    assert len(list(tmp_path.glob("segment-*"))) == 16
    again = new_shard()
    load(again, tmp_path)
    feed(again, 251, 1)
    assert save(again, tmp_path).segments_written <= 2  # also after a load


def test_a_reused_segment_that_vanished_is_written_again(tmp_path: Path) -> None:
    shard, again = new_shard(), new_shard()
    feed(shard, 0, 50)
    save(shard, tmp_path)
    next(tmp_path.glob("segment-000002-*")).unlink()
    assert save(shard, tmp_path).segments_written == 1
    load(again, tmp_path)
    assert_alike(shard, again)


def test_no_snapshot_is_no_error(tmp_path: Path) -> None:
    assert load(new_shard(), tmp_path) is None
    assert load(new_shard(), tmp_path / "nowhere") is None


def test_appends_while_saving_do_not_change_the_snapshot(tmp_path: Path) -> None:
    shard, then, again = new_shard(), new_shard(), new_shard()
    for each in (shard, then):
        feed(each, 0, 130)
    saving = Saving(shard, tmp_path)
    with pytest.raises(RuntimeError, match="being saved already"):
        Saving(shard, tmp_path)
    while saving.step() is None:  # every segment is overwritten while they are written, and half of them before
        feed(shard, shard.store.inserted // 32, 16)
        assert len(saving._copied) <= HELD
    assert shard.store.inserted > 2 * CAPACITY
    load(again, tmp_path)
    assert_alike(again, then)
    newest = new_shard()
    save(shard, tmp_path)
    load(newest, tmp_path)
    assert_alike(newest, shard)


def two_snapshots(directory: Path) -> tuple[Shard, int]:
    """A directory with snapshots 1 and 2; a shard as snapshot 1 has it."""
    shard, older = new_shard(), new_shard()
    feed(shard, 0, 40)
    save(shard, directory)
    load(older, directory)
    feed(shard, 40, 40)
    return older, save(shard, directory).number


def break_manifest(directory: Path) -> None:
    flip(directory / "manifest-000000002.json", 200)


def truncate_manifest(directory: Path) -> None:
    path = directory / "manifest-000000002.json"
    path.write_bytes(path.read_bytes()[:-20])


def flip_segment(directory: Path) -> None:
    flip(next(directory.glob("segment-*-000000002.safetensors")), 5_000)


def truncate_segment(directory: Path) -> None:
    path = next(directory.glob("segment-*-000000002.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def lose_segment(directory: Path) -> None:
    next(directory.glob("segment-*-000000002.safetensors")).unlink()


FAULTS = [break_manifest, truncate_manifest, flip_segment, truncate_segment, lose_segment]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_newest_snapshot_is_passed_over_with_a_warning(tmp_path: Path, fault) -> None:  # type: ignore[no-untyped-def]
    older, number = two_snapshots(tmp_path)
    fault(tmp_path)
    again = new_shard()
    info = load(again, tmp_path)
    assert info is not None and info.number == number - 1
    assert len(info.warnings) == 1 and "snapshot 2: " in info.warnings[0]
    assert_alike(again, older)
    assert save(again, tmp_path).number == number + 1
    last = new_shard()
    loaded = load(last, tmp_path)
    assert loaded is not None and loaded.warnings == ()
    assert_alike(last, again)


def test_an_older_snapshot_without_its_files_is_not_one_of_those_that_are_kept(tmp_path: Path) -> None:
    shard, again = new_shard(snapshots_kept=3), new_shard(snapshots_kept=3)
    for first in range(3):
        feed(shard, first, 1)  # one segment, written anew each time
        save(shard, tmp_path)
    lose_segment(tmp_path)
    info = load(again, tmp_path)
    assert info is not None and info.number == 3 and info.warnings == ()
    save(again, tmp_path)
    assert {int(path.stem[-9:]) for path in tmp_path.iterdir()} == {1, 3, 4}


def test_when_every_snapshot_is_damaged_loading_is_refused_and_each_is_named(tmp_path: Path) -> None:
    two_snapshots(tmp_path)
    for path in tmp_path.glob("manifest-*"):
        path.write_text("{")
    shard = new_shard()
    with pytest.raises(SnapshotError, match=r"(?s)none of the 2 .*snapshot 2: .*snapshot 1: .*is refused"):
        load(shard, tmp_path)
    assert shard.store.inserted == 0


@pytest.mark.parametrize(("other", "named"), [(make_shard(2_048), "capacity is 4096, expected 2048")])
def test_a_snapshot_of_another_configuration_is_refused(tmp_path: Path, other: Shard, named: str) -> None:
    two_snapshots(tmp_path)
    with pytest.raises(SnapshotError, match=named):
        load(other, tmp_path)


def test_a_shard_with_rows_refuses_to_load(tmp_path: Path) -> None:
    shard, _ = two_snapshots(tmp_path)
    with pytest.raises(ValueError, match="expected an empty one"):
        load(shard, tmp_path)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Every write beyond ``size`` bytes of a file fails with OSError, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [1_000, 22_500])  # below a segment; below the manifest alone
def test_a_full_disk_leaves_the_old_snapshot_and_the_next_one_is_complete(tmp_path: Path, size: int) -> None:
    shard, older, again = new_shard(), new_shard(), new_shard()
    for worker in range(1, 500):  # a long dedupe table makes the manifest larger than a segment
        shard.append(make_chunk([(0, 0, 1, 0)], worker=worker))
    feed(shard, 0, 20)
    number = save(shard, tmp_path).number
    load(older, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    feed(shard, 20, 20)
    largest = max(path.stat().st_size for path in tmp_path.glob("segment-*"))
    manifest = next(tmp_path.glob("manifest-*")).stat().st_size
    assert size < largest or largest < size < manifest
    with file_size_limit(size), pytest.raises(OSError, match="File too large"):
        save(shard, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    info = load(again, tmp_path)
    assert info is not None and info.number == number and info.warnings == ()
    assert_alike(again, older)
    save(shard, tmp_path)
    last = new_shard()
    load(last, tmp_path)
    assert_alike(last, shard)


def test_a_snapshot_that_the_rows_overtake_is_given_up_and_the_next_one_is_complete(tmp_path: Path) -> None:
    shard, older, again = new_shard(), new_shard(), new_shard()
    feed(shard, 0, 130)
    number = save(shard, tmp_path).number
    load(older, tmp_path)
    feed(shard, 130, 130)
    before = sorted(path.name for path in tmp_path.iterdir())
    saving = Saving(shard, tmp_path)
    saving.step()
    feed(shard, 260, 8 * (HELD + 2))  # of 32 rows, 8 to a segment
    assert shard.store.keeper is None and not saving._copied, "what will not be written is held no more"
    feed(shard, 400, 8)
    with pytest.raises(TimeoutError, match=f"more than {HELD} segments changed within"):
        saving.step()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    info = load(again, tmp_path)
    assert info is not None and info.number == number
    assert_alike(again, older)
    assert save(shard, tmp_path).segments_written == 16
    again = new_shard()
    load(again, tmp_path)
    assert_alike(again, shard)


def test_segments_are_written_in_the_order_in_which_they_are_overwritten(tmp_path: Path) -> None:
    shard = new_shard()
    feed(shard, 0, 128 + 37)
    saving = Saving(shard, tmp_path)
    while saving.step() is None:
        pass
    order = [int(path.name.split("-")[1]) for path in saving._written]
    assert order == [*range(4, 16), *range(4)]


def test_what_a_crash_left_half_written_is_ignored_and_removed(tmp_path: Path) -> None:
    two_snapshots(tmp_path)
    leftovers = [tmp_path / "segment-000000-000000009.safetensors", tmp_path / ".manifest-000000009.json.7.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not ours")
    again = new_shard()
    info = load(again, tmp_path)
    assert info is not None and (info.number, info.warnings) == (2, ())
    assert save(again, tmp_path).number == 10
    assert not any(path.exists() for path in leftovers) and foreign.exists()


def test_the_manifest_is_plain_json_and_nothing_is_pickled(tmp_path: Path) -> None:
    shard = new_shard()
    feed(shard, 0, 4)
    info = save(shard, tmp_path)
    assert json.loads(info.path.read_text())["manifest"]["capacity"] == CAPACITY
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
