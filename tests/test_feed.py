"""The feed: blocks ready ahead, in order, bounded; every wait ends, every error reaches the learner."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from learners.feed import DirectFeed, Feed, FeedTimeout
from replay.messages import Block, Wait


def block(value: float, updates: int = 2, batch: int = 4, width: int = 5) -> Block:
    rows_UBD = np.full((updates, batch, width), value, np.float32)
    rows_UBD.flags.writeable = False  # as Ray hands it out
    ids = np.zeros((updates, batch), np.int64)
    return Block(rows_UBD=rows_UBD, slot_UB=ids, writes_UB=ids, version_UB=ids, shard=0, inserted=int(value), size=1)


def replies(*answers: Block | Wait | BaseException | None) -> Callable[[], Block | Wait | None]:
    rest: Iterator[Block | Wait | BaseException | None] = iter(answers)

    def fetch() -> Block | Wait | None:
        answer = next(rest)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    return fetch


def feed(fetch: Callable[[], Block | Wait | None], depth: int = 2) -> Feed:
    return Feed(fetch, depth=depth, device="cpu", deadline_s=10.0)


def test_blocks_come_in_order_then_none_for_ever() -> None:
    supply = feed(replies(block(1), Wait(reason="min_size", retry_after_s=0.001), block(2), block(3), None))
    seen = [supply.get() for _ in range(5)]
    assert [None if ready is None else float(ready.batches[0, 0, 0]) for ready in seen] == [1, 2, 3, None, None]
    supply.stop()


def test_rows_share_the_memory_of_a_read_only_block_without_a_warning() -> None:
    source = block(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        supply = feed(replies(source, None))
        ready = supply.get()
    assert ready is not None and ready.batches.data_ptr() == source.rows_UBD.ctypes.data
    assert ready.batches.dtype == torch.float32 and ready.batches.shape == (2, 4, 5)
    address, rows = source.rows_UBD.ctypes.data, ready.batches
    del source, ready, supply
    assert rows.data_ptr() == address and bool((rows == 1).all())  # the rows keep their memory alive


def test_no_more_than_depth_blocks_are_fetched_ahead_and_taking_one_makes_room() -> None:
    fetched = threading.Semaphore(0)
    counter = iter(range(100))

    def fetch() -> Block:
        fetched.release()
        return block(next(counter))

    supply = feed(fetch, depth=2)
    assert fetched.acquire(timeout=10) and fetched.acquire(timeout=10)
    assert not fetched.acquire(timeout=0.05)
    assert supply.get() is not None
    assert fetched.acquire(timeout=10)
    assert not fetched.acquire(timeout=0.05)
    supply.stop()


def test_a_timeout_says_whom_it_waited_for_and_in_what_state() -> None:
    waiting = Wait(reason="samples_ahead", retry_after_s=0.001)
    supply = Feed(lambda: waiting, depth=1, device="cpu", deadline_s=0.05, source="shard 3")
    with pytest.raises(FeedTimeout, match=r"waiting, as asked by shard 3 \(samples_ahead\)|answer of shard 3"):
        supply.get()
    assert supply.waited_s >= 0.05
    supply.stop()

    release = threading.Event()
    silent = Feed(lambda: release.wait(10) and None, depth=1, device="cpu", deadline_s=0.05, source="shard 4")
    with pytest.raises(FeedTimeout, match="waiting for an answer of shard 4 for 0"):
        silent.get()
    with pytest.raises(FeedTimeout, match="did not stop within"):
        silent.stop(0.02)
    release.set()
    silent.stop()


def test_an_error_of_the_source_is_raised_by_get_after_the_blocks_before_it() -> None:
    supply = feed(replies(block(1), ConnectionError("shard 0 is gone")))
    assert supply.get() is not None
    for _ in range(2):
        with pytest.raises(ConnectionError, match="shard 0 is gone"):
            supply.get()
    supply.stop()


def test_stop_ends_a_feed_that_is_full_waiting_or_has_a_learner_in_get() -> None:
    full = feed(lambda: block(1), depth=1)
    full.stop()
    assert full.get() is None
    waiting = feed(lambda: Wait(reason="min_size", retry_after_s=1000.0))
    results: list[object] = []
    learner = threading.Thread(target=lambda: results.append(waiting.get()))
    learner.start()
    waiting.stop()
    learner.join(10)
    assert results == [None]


def test_the_direct_feed_gives_what_the_threaded_one_gives() -> None:
    answers = [block(value) for value in range(5)]
    threaded, direct = feed(replies(*answers, None)), DirectFeed(replies(*answers, None), device="cpu")
    for _ in range(6):
        one, other = threaded.get(), direct.get()
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.block is other.block and torch.equal(one.batches, other.batches)
    assert direct.ended


def test_the_direct_feed_never_waits() -> None:
    direct = DirectFeed(lambda: Wait(reason="min_size", retry_after_s=1000.0), device="cpu")
    assert direct.poll() is None and not direct.ended
    with pytest.raises(FeedTimeout, match="min_size"):
        direct.get()
    direct.stop()
    assert direct.get() is None


def test_a_feed_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        feed(lambda: None, depth=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_blocks_arrive_whole_while_the_device_is_busy() -> None:
    answers = [block(value, 16, 256, 42) for value in range(20)]
    supply = Feed(replies(*answers, None), depth=3, device="cuda", deadline_s=30.0)
    sums = []
    while (ready := supply.get()) is not None:
        busy = torch.randn(2048, 2048, device="cuda")
        for _ in range(10):
            busy = busy @ busy * 1e-3
        sums.append(ready.batches.mean())
    assert [round(float(s)) for s in sums] == list(range(20))
    supply.stop()
