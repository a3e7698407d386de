"""The recorder against a slow twin that keeps one Python list an environment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.admission import fault_of
from replay.messages import CUT, TERMINATED, TRUNCATED, Chunk
from replay.schema import RowLayout
from rollout_workers.env import StepResult
from rollout_workers.recorder import Recorder, merge_stats

LAYOUT = RowLayout(obs_dim=2, action_dim=1)
EVENTS = ["go", "go", "go", "terminated", "truncated", "both", "nan_obs", "inf_reward", "nan_last_obs", "invalid"]


class Script:
    """Environments that do what a list of events says; every number they give is different."""

    def __init__(self, envs: int) -> None:
        self.envs, self.count = envs, 0.0

    def fresh(self, *shape: int) -> np.ndarray:
        self.count += 1.0
        return self.count * 100 + np.arange(np.prod(shape), dtype=np.float64).reshape(shape)

    def obs(self) -> np.ndarray:
        return self.fresh(self.envs, 2).astype(np.float32)

    def step(self, events: list[str]) -> StepResult:
        kinds = np.array(events)
        next_obs_EO, reward_E = self.obs(), self.fresh(self.envs)
        next_obs_EO[(kinds == "nan_obs") | (kinds == "nan_last_obs"), 1] = np.nan
        reward_E[kinds == "inf_reward"] = np.inf
        terminated_E = np.isin(kinds, ["terminated", "both", "nan_last_obs"])
        truncated_E = np.isin(kinds, ["truncated", "both"])
        reset_E = terminated_E | truncated_E | (kinds == "invalid")
        obs_EO = np.where(reset_E[:, None], self.obs(), next_obs_EO)
        return StepResult(obs_EO, next_obs_EO, reward_E, terminated_E, truncated_E, kinds != "invalid")


@dataclasses.dataclass
class SlowRecorder:
    """The same bookkeeping, one environment and one step at a time."""

    envs: int
    worker: int
    incarnation: int

    def __post_init__(self) -> None:
        self.next_episode = 0
        self.episode = [self.new_episode() for _ in range(self.envs)]
        self.step_index = [0] * self.envs
        self.total = [0.0] * self.envs
        self.clear()

    def new_episode(self) -> int:
        self.next_episode += 1
        return (self.worker << 48) + (self.incarnation << 32) + self.next_episode - 1

    def clear(self) -> None:
        self.rows: list[list[dict]] = [[] for _ in range(self.envs)]
        self.ended: list[tuple[float, int]] = []
        self.dropped = {"nonfinite_observation": 0, "nonfinite_reward": 0}

    def record(self, obs_EO: np.ndarray, action_EA: np.ndarray, step: StepResult) -> list[int]:
        refused = []
        for e in range(self.envs):
            if not step.valid_E[e]:
                continue
            if not np.isfinite(step.next_obs_EO[e]).all() or not np.isfinite(step.reward_E[e]):
                finite_obs = np.isfinite(step.next_obs_EO[e]).all()
                self.dropped["nonfinite_reward" if finite_obs else "nonfinite_observation"] += 1
                if self.rows[e] and self.rows[e][-1]["flag"] == 0:
                    self.rows[e][-1]["flag"] = CUT
                refused.append(e)
                self.begin(e)
                continue
            flag = TERMINATED * int(step.terminated_E[e]) + TRUNCATED * int(step.truncated_E[e])
            parts = [obs_EO[e], action_EA[e], [step.reward_E[e]], [1.0 - step.terminated_E[e]], step.next_obs_EO[e]]
            row = np.concatenate(parts).astype(np.float32)
            self.rows[e].append({"row": row, "episode": self.episode[e], "step": self.step_index[e], "flag": flag})
            self.step_index[e] += 1
            self.total[e] += float(np.float32(step.reward_E[e]))
            if flag:
                self.ended.append((self.total[e], self.step_index[e]))
                self.begin(e)
        return refused

    def begin(self, e: int) -> None:
        self.episode[e], self.step_index[e], self.total[e] = self.new_episode(), 0, 0.0


def contents(chunk: Chunk) -> list[tuple]:
    columns = chunk.episode_N.tolist(), chunk.step_N.tolist(), chunk.flag_N.tolist()
    return [(*row.tolist(), *rest) for row, *rest in zip(chunk.rows_ND, *columns)]


def renamed(rows: list[tuple]) -> list[tuple]:
    """Episode ids in order of appearance: which free id an episode takes is nobody's business."""
    names: dict[int, int] = {}
    return [(*row[:-3], names.setdefault(row[-3], len(names)), *row[-2:]) for row in rows]


scripts = st.integers(1, 3).flatmap(
    lambda envs: st.lists(st.lists(st.sampled_from(EVENTS), min_size=envs, max_size=envs), min_size=6, max_size=18).map(
        lambda steps: steps[: len(steps) // 3 * 3]
    )
)


@settings(deadline=None, max_examples=300)
@given(scripts)
def test_the_recorder_equals_its_slow_twin_over_several_chunks(events: list[list[str]]) -> None:
    envs = len(events[0])
    script, slow = Script(envs), SlowRecorder(envs, worker=3, incarnation=2)
    fast = Recorder(envs=envs, steps=3, layout=LAYOUT, worker=3, incarnation=2)
    obs_EO = script.obs()
    fast.start(obs_EO)
    fast_rows: list[tuple] = []
    slow_rows: list[tuple] = []
    for t, kinds in enumerate(events):
        action_EA, step = (script.fresh(envs, 1) * 1e-6).astype(np.float32), script.step(kinds)
        refused = slow.record(obs_EO, action_EA, step)
        seen = fast.record(action_EA, step)
        assert ([] if seen is None else seen.tolist()) == refused
        obs_EO = step.obs_EO
        if refused:
            obs_EO = np.where(np.isin(np.arange(envs), refused)[:, None], script.obs(), obs_EO)
            fast.restart(np.array(refused), obs_EO)
        if t % 3 == 2:
            chunk = fast.take(generation=1, version=4)
            assert (chunk.worker, chunk.incarnation, chunk.sequence) == (3, 2, t // 3)
            assert (chunk.generation, chunk.version) == (1, 4)
            dtypes = [array.dtype for array in (chunk.rows_ND, chunk.episode_N, chunk.step_N, chunk.flag_N)]
            assert dtypes == [np.float32, np.int64, np.int32, np.uint8]
            fast_rows += contents(chunk)
            slow_rows += [(*r["row"].tolist(), r["episode"], r["step"], r["flag"]) for rows in slow.rows for r in rows]
            check_stats(chunk, slow)
            assert len(chunk.rows_ND) == 0 or fault_of(chunk, LAYOUT, 1_000) is None  # a shard takes it
            slow.clear()
    assert renamed(fast_rows) == renamed(slow_rows)
    ids = {row[-3] for row in fast_rows}
    assert all(i >> 48 == 3 and i >> 32 & 0xFFFF == 2 for i in ids)
    assert np.isfinite([row[:-3] for row in fast_rows]).all()


def check_stats(chunk: Chunk, slow: SlowRecorder) -> None:
    stats = chunk.stats
    dropped = sum(slow.dropped.values())
    assert stats["recorded_rows"] == len(chunk.rows_ND) + dropped
    assert {reason: stats[f"dropped_{reason}"] for reason in slow.dropped} == slow.dropped
    assert stats["cut_episodes"] == dropped
    assert stats["episodes"] == len(slow.ended)
    assert stats["return_sum"] == pytest.approx(sum(r for r, _ in slow.ended))
    assert stats["length_sum"] == sum(length for _, length in slow.ended)
    if slow.ended:
        assert stats["return_min"] == pytest.approx(min(r for r, _ in slow.ended))
        assert stats["return_max"] == pytest.approx(max(r for r, _ in slow.ended))
    else:
        assert "return_min" not in stats


def fill(recorder: Recorder, script: Script, events: list[list[str]]) -> Chunk:
    for kinds in events:
        refused = recorder.record(script.fresh(script.envs, 1).astype(np.float32), script.step(kinds))
        if refused is not None:
            recorder.restart(refused, script.obs())
    return recorder.take(generation=0, version=0)


def test_an_episode_goes_on_across_a_chunk_border() -> None:
    recorder, script = Recorder(envs=1, steps=2, layout=LAYOUT, worker=0, incarnation=0), Script(1)
    recorder.start(script.obs())
    first = fill(recorder, script, [["go"], ["go"]])
    second = fill(recorder, script, [["terminated"], ["go"]])
    assert (first.step_N.tolist(), second.step_N.tolist()) == ([0, 1], [2, 0])
    assert second.flag_N.tolist() == [TERMINATED, 0]
    assert first.episode_N[0] == second.episode_N[0] != second.episode_N[1]
    np.testing.assert_array_equal(LAYOUT.views(first.rows_ND).next_obs[1], LAYOUT.views(second.rows_ND).obs[0])
    assert second.stats["length_sum"] == 3


def test_truncation_is_not_termination_and_keeps_the_true_last_observation() -> None:
    recorder, script = Recorder(envs=1, steps=2, layout=LAYOUT, worker=0, incarnation=0), Script(1)
    recorder.start(script.obs())
    step = script.step(["truncated"])
    recorder.record(np.zeros((1, 1), np.float32), step)
    recorder.record(np.zeros((1, 1), np.float32), script.step(["both"]))
    columns = LAYOUT.views(recorder.take(generation=0, version=0).rows_ND)
    assert columns.discount.tolist() == [1.0, 0.0]
    np.testing.assert_array_equal(columns.next_obs[0], step.next_obs_EO[0])
    np.testing.assert_array_equal(columns.obs[1], step.obs_EO[0])


def test_an_environment_may_overwrite_its_buffers_after_each_step() -> None:
    recorder, script = Recorder(envs=2, steps=2, layout=LAYOUT, worker=0, incarnation=0), Script(2)
    obs_EO = script.obs()
    recorder.start(obs_EO)
    kept = obs_EO.copy()
    obs_EO[:] = -1
    for _ in range(2):
        step = script.step(["go", "go"])
        recorder.record(np.zeros((2, 1), np.float32), step)
        for array in step[:6]:
            array[...] = -1
    chunk = recorder.take(generation=0, version=0)
    assert (chunk.rows_ND[:, :2] > 0).all()
    np.testing.assert_array_equal(chunk.rows_ND[::2, :2], kept)


def test_large_finite_values_are_recorded_though_their_squares_overflow() -> None:
    recorder = Recorder(envs=1, steps=1, layout=LAYOUT, worker=0, incarnation=0)
    recorder.start(np.full((1, 2), 1e30, np.float32))
    huge, no = np.full((1, 2), 1e30, np.float32), np.zeros(1, bool)
    with np.errstate(over="ignore"):
        assert recorder.record(np.zeros((1, 1), np.float32), StepResult(huge, huge, np.ones(1), no, no, ~no)) is None
    assert len(recorder.take(generation=0, version=0).rows_ND) == 1


def test_a_reward_too_large_for_float32_is_refused() -> None:
    recorder, script = Recorder(envs=1, steps=1, layout=LAYOUT, worker=0, incarnation=0), Script(1)
    recorder.start(script.obs())
    step = script.step(["go"])._replace(reward_E=np.array([1e300]))
    with np.errstate(over="ignore"):
        assert recorder.record(np.zeros((1, 1), np.float32), step).tolist() == [0]
    recorder.restart(np.array([0]), script.obs())
    assert recorder.take(generation=0, version=0).stats["dropped_nonfinite_reward"] == 1


def test_a_reset_that_gives_nan_stops_the_worker_with_a_reason() -> None:
    recorder = Recorder(envs=2, steps=2, layout=LAYOUT, worker=0, incarnation=0)
    with pytest.raises(FloatingPointError, match=r"environments \[1\].*check the environment's reset"):
        recorder.start(np.array([[0, 0], [0, np.nan]], np.float32))


def test_the_state_round_trips_and_can_only_be_had_between_chunks() -> None:
    events = [["go", "terminated"], ["go", "go"], ["nan_obs", "go"], ["go", "truncated"]]
    recorder, script = Recorder(envs=2, steps=2, layout=LAYOUT, worker=1, incarnation=0), Script(2)
    recorder.start(script.obs())
    fill(recorder, script, events[:2])
    other, other_script = Recorder(envs=2, steps=2, layout=LAYOUT, worker=1, incarnation=0), Script(2)
    other.load_state(recorder.state())
    other_script.count = script.count
    ours, theirs = fill(recorder, script, events[2:]), fill(other, other_script, events[2:])
    assert contents(ours) == contents(theirs)
    assert (ours.stats, ours.sequence) == (theirs.stats, theirs.sequence)
    recorder.record(np.zeros((2, 1), np.float32), script.step(["go", "go"]))
    with pytest.raises(RuntimeError, match="between chunks"):
        recorder.state()


def test_a_state_of_another_number_of_environments_is_refused_by_name() -> None:
    state = Recorder(envs=3, steps=2, layout=LAYOUT, worker=0, incarnation=0).state()
    with pytest.raises(ValueError, match=r"'obs_EO' has shape \(3, 2\), expected \(2, 2\)"):
        Recorder(envs=2, steps=2, layout=LAYOUT, worker=0, incarnation=0).load_state(state)


@pytest.mark.parametrize(("worker", "incarnation"), [(1 << 15, 0), (-1, 0), (0, 1 << 16)])
def test_an_identity_that_does_not_fit_an_episode_id_is_refused(worker: int, incarnation: int) -> None:
    with pytest.raises(ValueError, match="share an id"):
        Recorder(envs=1, steps=1, layout=LAYOUT, worker=worker, incarnation=incarnation)


def test_stats_of_chunks_merge_into_sums_and_extremes() -> None:
    total: dict[str, float] = {}
    merge_stats(total, {"episodes": 1.0, "return_min": 5.0, "return_max": 5.0})
    merge_stats(total, {"episodes": 2.0, "return_min": -1.0, "return_max": 7.0, "env_s": 0.5})
    assert total == {"episodes": 3.0, "return_min": -1.0, "return_max": 7.0, "env_s": 0.5}
