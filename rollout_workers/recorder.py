"""Environment steps in, chunks of packed rows out; nothing non-finite gets through.

Letters: E environments, T steps of a chunk, O observation dim, A action dim, D packed row width, N rows of a chunk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from replay.messages import CUT, TERMINATED, TRUNCATED, Chunk
from replay.schema import Columns, EpisodeMetadata, RowLayout

if TYPE_CHECKING:
    from rollout_workers.env import StepResult

NONFINITE_OBSERVATION, NONFINITE_REWARD = "nonfinite_observation", "nonfinite_reward"  # why a row is refused
REST_OF_EPISODE = "rest_of_episode"  # after such a row, where the environment only resets itself
REASONS = (NONFINITE_OBSERVATION, NONFINITE_REWARD, REST_OF_EPISODE)
MAX_WORKER, MAX_INCARNATION, MAX_EPISODE = 1 << 15, 1 << 16, 1 << 32  # what an episode's int64 id has room for
_STATE = ("obs_EO", "episode_E", "step_E", "return_E")


class Recorder:
    """Collects T steps of E environments and turns them into one chunk.

    A chunk's ``stats`` count since the last one. ``recorded_rows``: env steps made, each of which became a row of this
    chunk or was counted in ``dropped_REASON`` for one of REASONS. ``episodes``,
    ``return_sum``, ``length_sum``: over the episodes that ended here by themselves, with ``return_min``, ``return_max``
    when there were any. ``cut_episodes``: those that ended at a refused row.

    A refused row ends its episode: the row before it gets the CUT flag when it is still in this chunk, and the next row
    of that environment starts a new episode. Differs from a vector environment's own bookkeeping: none of
    the per-episode figures is touched in the hot loop, they are read off the chunk's columns when it is full.
    """

    def __init__(self, *, envs: int, steps: int, layout: RowLayout, worker: int, incarnation: int) -> None:
        if not (0 <= worker < MAX_WORKER and 0 <= incarnation < MAX_INCARNATION):
            raise ValueError(
                f"worker {worker}, incarnation {incarnation}: expected 0 <= worker < {MAX_WORKER} and "
                f"0 <= incarnation < {MAX_INCARNATION}; beyond that two episodes would share an id. "
                "Start the run anew with fewer of them"
            )
        self.envs, self.steps, self.layout = envs, steps, layout
        self._first_id = np.int64(worker) << 48 | np.int64(incarnation) << 32
        self._worker, self._incarnation = worker, incarnation
        self._next_episode = 0
        self._t = 0  # steps in the chunk so far
        self._sequence = 0
        self._last_obs_EO = np.zeros((envs, layout.obs_dim), np.float32)  # what follows the last step of a full chunk
        self._episode_E = self._new_episodes(envs)
        self._step_E = np.zeros(envs, np.int32)
        self._return_E = np.zeros(envs, np.float64)
        self._clear()

    def start(self, obs_EO: np.ndarray) -> None:
        """Takes the observations (E, O) of the first reset. Raises FloatingPointError when one is not finite."""
        self.restart(np.arange(self.envs), obs_EO)

    @property
    def full(self) -> bool:
        return self._t == self.steps

    @property
    def unfinished_rows(self) -> int:
        """Env steps in the chunk so far, refused ones included."""
        t = self._t
        return int(self._valid[:, :t].sum()) + sum(self._dropped.values())

    def record(self, action_EA: np.ndarray, step: StepResult) -> np.ndarray | None:
        """Takes one step of every environment, made from the observations of the step before.

        Returns the indices of the environments whose row was refused, or None: the caller resets those and hands
        their first observations to ``restart``.
        """
        t = self._t
        if t == self.steps:
            raise RuntimeError(f"the chunk is full with {t} steps: take it before recording more, this step is lost")
        columns = self._columns
        columns.action[:, t] = action_EA
        with np.errstate(over="ignore"):  # beyond float32's largest number it is an infinity, and refused
            columns.reward[:, t] = reward_E = step.reward_E.astype(np.float32)
        columns.next_obs[:, t] = step.next_obs_EO
        self._terminated[:, t] = step.terminated_E
        self._truncated[:, t] = step.truncated_E
        self._valid[:, t] = step.valid_E
        if step.left_E is not None:
            self._dropped[REST_OF_EPISODE] += int(np.count_nonzero(step.left_E))
        self._t = t + 1
        self._observe(step.obs_EO)
        if _finite(step.next_obs_EO) and _finite(step.obs_EO) and _finite(reward_E):
            return None
        return self._refuse(t, step, reward_E)

    def restart(self, indices: np.ndarray, obs_EO: np.ndarray) -> None:
        """Takes all environments' observations after those of ``indices`` were reset.

        Raises FloatingPointError when one is still not finite.
        """
        bad = [int(e) for e in indices if not np.isfinite(obs_EO[e]).all()]
        if bad:
            raise FloatingPointError(
                f"environments {bad} gave non-finite observations on reset, expected finite ones: there is no "
                "state to act from, so the worker stops; check the environment's reset"
            )
        self._observe(obs_EO)

    def restart_episodes(self, indices: np.ndarray, obs_EO: np.ndarray) -> int:
        """Takes all environments' observations after the running episodes of ``indices`` were ended between two chunks.

        Their next rows are new episodes'. Those before are with the shard, which counts them as ``end_lost``; returns how
        many they are. Raises FloatingPointError as ``restart`` does.
        """
        if self._t:
            raise RuntimeError(f"the recorder is {self._t} steps into a chunk: end episodes between chunks")
        self.restart(indices, obs_EO)
        left = int(self._step_E[indices].sum())
        self._episode_E[indices] = self._new_episodes(len(indices))
        self._step_E[indices] = 0
        self._return_E[indices] = 0.0
        return left

    def add_metadata(self, env_K: np.ndarray, metadata: list[EpisodeMetadata]) -> None:
        """Takes the metadata of the episodes in the environments ``env_K`` whose first row is recorded next.

        They get their episode's id and travel with that row's chunk; those of a refused row are dropped with it.
        """
        if self.full:
            raise RuntimeError("the chunk is full: take it before beginning episodes, or their metadata would be lost")
        self._metadata += [(int(e), self._t, one) for e, one in zip(env_K, metadata, strict=True)]

    def take(self, *, generation: int, version: int) -> Chunk:
        """The full chunk, of the policy (generation, version). It has no rows when all were refused."""
        if not self.full:
            raise RuntimeError(f"the chunk has {self._t} of {self.steps} steps: fill it before taking it")
        flag_ET = self._flags()
        self._columns.discount[:] = ~self._terminated
        episode_ET, step_ET, stats = self._episodes(flag_ET)
        metadata = tuple(
            one._replace(episode=int(episode_ET[e, t])) for e, t, one in self._metadata if self._valid[e, t]
        )
        keep = None if self._valid.all() else self._valid.reshape(-1)
        rows, episode, step, flag = (
            array.reshape(self.envs * self.steps, *array.shape[2:])
            for array in (self._rows, episode_ET, step_ET, flag_ET)
        )
        if keep is not None:
            rows, episode, step, flag = rows[keep], episode[keep], step[keep], flag[keep]
        stats["recorded_rows"] = float(len(rows) + sum(self._dropped.values()))
        stats |= {f"dropped_{reason}": float(count) for reason, count in self._dropped.items()}
        chunk = Chunk(
            worker=self._worker,
            incarnation=self._incarnation,
            sequence=self._sequence,
            generation=generation,
            version=version,
            rows_ND=rows,
            episode_N=episode,
            step_N=step,
            flag_N=flag,
            stats=stats,
            metadata=metadata,
        )
        self._sequence += 1
        self._clear()
        return chunk

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next chunks depend on. Only between two chunks."""
        if self._t:
            raise RuntimeError(f"the recorder is {self._t} steps into a chunk: take its state between chunks")
        return {
            "obs_EO": self._columns.obs[:, 0].copy(),
            "episode_E": self._episode_E.copy(),
            "step_E": self._step_E.copy(),
            "return_E": self._return_E.copy(),
            "counters": np.array([self._next_episode, self._sequence], np.int64),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, of a recorder of the same sizes."""
        for name in _STATE:
            old = self.state()[name]
            if name not in state or state[name].shape != old.shape:
                seen = state[name].shape if name in state else "absent"
                raise ValueError(
                    f"recorder state {name!r} has shape {seen}, expected {old.shape}: it is of another number of "
                    "environments or another task and cannot be resumed; use the settings it was made with"
                )
        obs_EO, self._episode_E, self._step_E, self._return_E = (state[name].copy() for name in _STATE)
        self._observe(obs_EO)
        self._next_episode, self._sequence = (int(count) for count in state["counters"])

    def _observe(self, obs_EO: np.ndarray) -> None:
        """Keeps a copy of what the next actions are computed from, where the next rows need it."""
        if self._t < self.steps:
            self._columns.obs[:, self._t] = obs_EO
        else:
            self._last_obs_EO[:] = obs_EO

    def _clear(self) -> None:
        """A new buffer for each chunk: the old one belongs to the chunk that was taken."""
        shape = self.envs, self.steps
        self._t = 0
        self._rows: np.ndarray = np.empty((*shape, self.layout.width), np.float32)
        self._columns: Columns = self.layout.views(self._rows)
        self._columns.obs[:, 0] = self._last_obs_EO
        self._terminated: np.ndarray = np.empty(shape, bool)
        self._truncated: np.ndarray = np.empty(shape, bool)
        self._valid: np.ndarray = np.empty(shape, bool)
        self._cuts: list[tuple[int, int]] = []  # (environment, step) of the refused rows
        self._metadata: list[tuple[int, int, EpisodeMetadata]] = []  # (environment, step) of the rows they begin with
        self._dropped = dict.fromkeys(REASONS, 0)

    def _new_episodes(self, count: int) -> np.ndarray:
        first = self._next_episode
        self._next_episode += count
        if self._next_episode > MAX_EPISODE:
            raise OverflowError(
                f"{MAX_EPISODE} episodes in one incarnation: the next would share an id; restart this worker"
            )
        return self._first_id + np.arange(first, first + count, dtype=np.int64)

    def _refuse(self, t: int, step: StepResult, reward_E: np.ndarray) -> np.ndarray | None:
        """Marks the rows of step ``t`` that are not finite; None when none is (the quick check can overflow)."""
        bad_next_E = ~np.isfinite(step.next_obs_EO).all(axis=1)
        bad_obs_E = bad_next_E | ~np.isfinite(step.obs_EO).all(axis=1)
        bad_reward_E = ~np.isfinite(reward_E)
        bad_row_E = (bad_next_E | bad_reward_E) & self._valid[:, t]
        for e in np.flatnonzero(bad_row_E):
            self._dropped[NONFINITE_OBSERVATION if bad_next_E[e] else NONFINITE_REWARD] += 1
            self._valid[e, t] = False
            self._cuts.append((int(e), t))
        indices = np.flatnonzero(bad_row_E | bad_obs_E)
        return indices if len(indices) else None

    def _flags(self) -> np.ndarray:
        flag_ET = self._terminated * np.uint8(TERMINATED) + self._truncated * np.uint8(TRUNCATED)
        for e, t in self._cuts:
            before = np.flatnonzero(self._valid[e, :t])
            if len(before) and not flag_ET[e, before[-1]]:
                flag_ET[e, before[-1]] = CUT
        return flag_ET

    def _episodes(self, flag_ET: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
        """Each row's episode and step in it, and what is known of the episodes that ended."""
        returns, lengths = [], []
        cuts = set(self._cuts)
        end_ET = (flag_ET & (TERMINATED | TRUNCATED)).astype(bool) & self._valid
        step_ET = np.cumsum(self._valid, axis=1, dtype=np.int32) - 1 + self._step_E[:, None]
        episode_ET = np.repeat(self._episode_E[:, None], self.steps, axis=1)
        ends = sorted({(int(e), int(t)) for e, t in np.argwhere(end_ET)} | cuts)
        first_E = np.zeros(self.envs, np.int64)  # where the running episode starts in this chunk
        reward_ET = np.where(self._valid, self._columns.reward, 0.0)  # float64: returns do not lose digits
        for e, t in ends:
            if (e, t) not in cuts:
                returns.append(float(self._return_E[e] + reward_ET[e, first_E[e] : t + 1].sum()))
                lengths.append(int(step_ET[e, t]) + 1)
            first_E[e] = t + 1
            self._return_E[e] = 0.0
            step_ET[e, t + 1 :] -= step_ET[e, t] + 1
            episode_ET[e, t + 1 :] = self._episode_E[e] = self._new_episodes(1)[0]
        for e in range(self.envs):
            self._return_E[e] += reward_ET[e, first_E[e] :].sum()
        self._step_E = np.where(first_E == self.steps, 0, step_ET[:, -1] + 1).astype(np.int32)
        stats = {
            "episodes": float(len(returns)),
            "return_sum": float(sum(returns)),
            "length_sum": float(sum(lengths)),
            "reward_sum": float(reward_ET.sum()),
            "reward_steps": float(np.count_nonzero(self._valid)),
            "cut_episodes": float(len(cuts)),
        }
        if returns:
            stats |= {"return_min": min(returns), "return_max": max(returns)}
        return episode_ET, step_ET, stats


def merge_stats(total: dict[str, float], stats: dict[str, float]) -> None:
    """Adds one chunk's ``stats`` to ``total`` in place: ``*_min`` and ``*_max`` are extremes, all others sums."""
    for name, value in stats.items():
        if name not in total:
            total[name] = value
        elif name.endswith("_min"):
            total[name] = min(total[name], value)
        elif name.endswith("_max"):
            total[name] = max(total[name], value)
        else:
            total[name] += value


def _finite(values: np.ndarray) -> bool:
    """False for every NaN or infinity, and for finite float32 values whose squares overflow: look closer then."""
    flat = values.reshape(-1)
    return math.isfinite(flat.dot(flat))
