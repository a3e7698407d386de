"""What became of every row that a run's workers recorded: conserved whatever dies, because all counts are cumulative.

A writer is one incarnation of one worker; its shard is the worker's index modulo their number. Two parties know something of
it, and either may be lost:

    worker   RowTotals: rows recorded, acknowledged by the shard, dropped by reason. They travel with every chunk, and the
             worker itself gives the last ones when it ends.
    shard    how many rows of the writer it holds, which goes back when the shard is restarted from a snapshot.

From the newest of both follows, for each writer:

    recorded = stored + dropped by the worker + shard_restart + in flight

    shard_restart   rows that were acknowledged and are not stored any more
    in flight       the rest. Once the writer has ended, and its shard has reported its count after that, the rest is dropped for
                    the reason the writer ended.

The rows of a worker that is killed are known up to its newest totals: at most the chunk in hand and ``max_unacked`` chunks on
the way are not, and, if its shard dies in the same moment, what it recorded since the driver last looked at the shard.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from replay.admission import WRITERS
from replay.messages import RowTotals
from replay.shard import ShardStats

Writer = tuple[int, int]  # worker, incarnation
SHARD_RESTART, RESTART = "shard_restart", "restart"


@dataclasses.dataclass
class _Account:
    """One writer, since this start of the run."""

    base: int = 0  # rows that its shard held before
    stored: int = 0  # rows more than that; negative when the shard lost some of them
    peak: int = 0  # most that were ever stored
    lost: int = 0  # acknowledged, and gone with the shard
    totals: RowTotals = RowTotals()
    ended: str = ""  # why, once it has
    over: bool = False  # its shard was looked at after that

    def take(self, totals: RowTotals) -> None:
        """Keeps the newer of these and those at hand."""
        if _settled(totals) >= _settled(self.totals) and totals.recorded >= self.totals.recorded:
            self.totals = totals

    def look(self, held: int) -> None:
        """Takes what its shard holds of it now; ``totals`` are at least as old."""
        self.stored = held - self.base
        self.peak = max(self.peak, self.stored)
        known = max(self.totals.acknowledged, self.peak if self.ended else 0)  # what ended sends nothing again
        self.lost = max(self.lost, known - self.stored)
        if (
            self.totals.recorded
        ):  # a late copy of a chunk may bring back what was lost with the shard, also after the writer's end
            dropped = _settled(self.totals) - self.totals.acknowledged
            self.lost = min(self.lost, max(0, self.totals.recorded - dropped - self.stored))
        self.over = bool(self.ended)

    @property
    def in_flight(self) -> int:
        dropped = _settled(self.totals) - self.totals.acknowledged
        return max(0, self.totals.recorded - dropped - self.stored - self.lost)


class Ledger:
    """One account for each writer, and one for each shard's rows of writers that it does not remember."""

    def __init__(self) -> None:
        self._before: Counter[str] = Counter()  # dropped in earlier parts of the run
        self._accounts: dict[Writer, _Account] = {}
        self._others: dict[int, _Account] = {}
        self._of: dict[int, set[Writer]] = {}  # writers seen in each shard

    def resume_from(self, dropped: dict[str, int]) -> None:
        """Takes the counts of the earlier parts of the run."""
        self._before.update(dropped)

    def begin(self, missing: int) -> None:
        """Takes what the shards hold now as what this start of the run begins with; ``missing`` rows did not outlive the last one."""
        self._before[RESTART] += missing
        for account in (*self._accounts.values(), *self._others.values()):
            account.base, account.stored, account.peak, account.lost = account.base + account.stored, 0, 0, 0

    def add_shard(self, stats: ShardStats) -> None:
        """Takes a shard's counters. They must have been asked for after the newest ``end``; every shard's once before the first."""
        known = self._of.setdefault(stats.shard, set())
        held = {(each.worker, each.incarnation): each for each in stats.written}
        for writer, each in held.items():
            account = self._account(writer)
            account.take(each.totals)
            account.look(each.rows)
        if len(held) < WRITERS:  # none is forgotten: those that are missing are not stored any more
            for writer in known - held.keys():
                self._accounts[writer].look(0)
        known.update(held)
        for (worker, _), account in self._accounts.items():
            if account.ended and not account.over and worker % len(self._of) == stats.shard:
                account.look(0)  # nothing of it was ever stored
        others = self._others.setdefault(stats.shard, _Account())
        rest = stats.stored_rows - sum(self._accounts[w].base + self._accounts[w].stored for w in known)
        others.look(rest)

    def end(self, writer: Writer, totals: RowTotals | None, reason: str) -> None:
        """The writer sends nothing more. ``totals`` are its own last ones, None where it died with them."""
        account = self._account(writer)
        account.ended = reason
        if totals is not None:
            account.take(totals)

    @property
    def in_flight(self) -> int:
        """Rows that workers recorded and that are not known to be stored or dropped yet, as far as the workers have said."""
        return sum(account.in_flight for account in self._accounts.values() if not account.over)

    def dropped(self) -> dict[str, int]:
        """Rows recorded and not stored, by reason, earlier parts of the run included."""
        dropped = Counter(self._before)
        for account in (*self._accounts.values(), *self._others.values()):
            dropped[SHARD_RESTART] += account.lost
            for reason, rows in account.totals.dropped:
                dropped[reason] += rows
            if account.over:
                dropped[account.ended] += account.in_flight
        return {reason: rows for reason, rows in dropped.items() if rows}

    def _account(self, writer: Writer) -> _Account:
        return self._accounts.setdefault(writer, _Account())


def _settled(totals: RowTotals) -> int:
    return totals.acknowledged + sum(rows for _, rows in totals.dropped)
