"""Settings of the replay service."""

from __future__ import annotations

import dataclasses
import math

from replay.limiter import Limiter, feasible_tolerance
from replay.option import COUNT_LIMIT, SHARE, option, range_problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """One table of transitions, spread over ``shards`` processes. Counts are totals over all shards."""

    shards: int = option(
        1,
        "processes",
        "replay shards; worker w writes to shard w modulo their number",
        at_least=1,
        at_most=4_096,
        why="there would be nowhere to store experience",
    )
    capacity_rows: int = option(
        1_000_000,
        "rows",
        "transitions kept over all shards; the oldest are overwritten (paper: 1e6)",
        at_least=1,
        why="there would be no room for experience",
    )
    min_size_rows: int = option(
        5_000,
        "rows",
        "rows stored before the first update (paper: 5,000 random steps)",
        at_least=1,
        why="the first batch would be drawn from nothing",
    )
    replay_ratio: float = option(
        2.0,
        "updates/env step",
        "updates a learner makes for each stored env step (paper: UTD 2)",
        above=0,
        why="the learner would never, or never stop to, train; set updates per env step, such as 2",
    )
    tolerance_rows: int = option(
        0,
        "rows",
        "how far, in env steps, either side may run ahead; 0: the least that is feasible",
        at_least=0,
        why="neither side could ever go on",
    )
    recent_fraction: float = option(
        0.2, "1", "share of each batch drawn uniformly from the newest rows (paper: 0.2)", **SHARE
    )
    recent_rows: int = option(
        4_096,
        "rows",
        "how many of the newest rows that share is drawn from (paper: 4,096)",
        at_least=1,
        why="the recent share of a batch would be drawn from nothing",
    )
    n_step: int = option(
        1,
        "steps",
        "rewards summed before bootstrapping; shorter at episode ends (paper: 1)",
        at_least=1,
        at_most=100_000,
        why="no reward would be learned from",
    )
    snapshot_s: float = option(
        300.0,
        "s",
        "time between two snapshots of a shard; what a killed shard can lose",
        at_least=0,
        why="there is no time before now",
    )
    snapshots_kept: int = option(
        2, "snapshots", "newest valid snapshots kept on disk", at_least=1, why="a resumed run would find no replay"
    )

    def validate(self, *, batch_size: int, updates_per_call: int, envs_per_worker: int, chunk_steps: int) -> list[str]:
        """Everything wrong with these settings beside those of learners and workers, in words; empty if nothing is.

        Args:
            batch_size: rows of one update over all learners.
            updates_per_call: updates of one block.
            envs_per_worker, chunk_steps: a chunk has their product of rows.
        """
        found = [f"replay.{text}" for text in range_problems(self)]
        if found or not all(
            1 <= size <= COUNT_LIMIT for size in (batch_size, updates_per_call, envs_per_worker, chunk_steps)
        ):
            return found  # who has the sizes says what is wrong with them
        return self._too_small(batch_size, envs_per_worker * chunk_steps, updates_per_call * batch_size)

    def limiter(self, *, batch_size: int, chunk_rows: int, block_rows: int, pretrain_updates: int = 0) -> Limiter:
        """The limiter of one of ``shards`` shards of transitions; a tolerance of 0 becomes the least that is feasible."""
        ratio = self.replay_ratio * batch_size
        least = feasible_tolerance(chunk_rows=chunk_rows, block_rows=block_rows, samples_per_insert=ratio)
        tolerance = self.tolerance_rows / self.shards if self.tolerance_rows else least
        pretrain = math.ceil(pretrain_updates * batch_size / self.shards)
        return Limiter(max(1, math.ceil(self.min_size_rows / self.shards)), ratio, tolerance, pretrain)

    def _too_small(self, batch_size: int, chunk_rows: int, block_rows: int) -> list[str]:
        each = self.capacity_rows // self.shards
        found = [
            f"{name} is {rows}, expected at most {each}, the rows of one shard (replay.capacity_rows "
            f"{self.capacity_rows} / replay.shards {self.shards}): {consequence}; raise the capacity or lower {name}"
            for name, rows, consequence in (
                ("learner.batch_size", batch_size, "a batch is larger than the buffer it is drawn from"),
                (
                    "replay.min_size_rows / replay.shards",
                    -(-self.min_size_rows // self.shards),
                    "training would never start",
                ),
                ("worker.envs_per_worker x chunk_steps", chunk_rows, "no chunk could be stored"),
            )
            if rows > each
        ]
        ratio = self.replay_ratio * batch_size
        least = self.shards * feasible_tolerance(chunk_rows=chunk_rows, block_rows=block_rows, samples_per_insert=ratio)
        if 0 < self.tolerance_rows < least:
            found.append(
                f"replay.tolerance_rows is {self.tolerance_rows}, expected 0 or at least {least} (chunks of "
                f"{chunk_rows} rows, blocks of {block_rows}, {ratio:g} samples an insert, {self.shards} shards): "
                "workers and learner would come to wait for each other for ever; set 0 for the least that is feasible, "
                "or use smaller chunks or blocks"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How a run uses its dataset and, once it gathers episodes, mixes the two."""

    offline_fraction: float = option(
        0.5, "1", "share of each batch that comes from the dataset once there is online experience; -1: by their sizes"
    )
    sampling: str = option(
        "length", "name", "how episodes are drawn: in proportion to length, uniform, or favouring high return",
        ("length", "uniform", "return"),
    )  # fmt: skip
    return_temperature: float = option(
        1.0,
        "1",
        "of sampling=return: weights exp(z-scored return / temperature)",
        at_least=1e-6,
        why="returns are divided by it; higher draws more evenly",
    )
    target_quantile: float = option(
        0.9,
        "1",
        "quantile of the returns held that exploration targets start from",
        at_least=0,
        at_most=1,
        why="no return would be asked for",
    )
    offline_capacity_rows: int = option(
        2_000_000,
        "rows",
        "dataset rows held in memory over all shards; of more, episodes stream and transitions are a uniform subset",
        at_least=1,
        why="no episode of the dataset could be held",
    )
    refresh_episodes: int = option(
        8,
        "episodes",
        "dataset episodes streamed in for each update when not all are held",
        at_least=1,
        why="what does not fit into memory would never be drawn",
    )
    pretrain_updates: int = option(
        0,
        "updates",
        "of those that learn from transitions: updates on the dataset alone before the first env step; free of the replay ratio",
        at_least=0,
        why="a count cannot be negative; 0 begins with online experience",
    )

    def validate(self) -> list[str]:
        """Every value with which no batch could be drawn, with its fix; empty when there is none."""
        found = range_problems(self)
        if math.isfinite(self.offline_fraction) and not (
            0 <= self.offline_fraction <= 1 or self.offline_fraction == -1
        ):
            found.append(
                f"offline_fraction is {self.offline_fraction}, expected 0 to 1, or -1: it is a share of each batch; set 0.5, or -1 "
                "to draw from dataset and online episodes as from one"
            )
        return found
