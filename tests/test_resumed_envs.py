"""Inline resumes of environments that do not follow from their seed, and of those that change their actions: no torn row."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit
from remembering_policy import RememberingPolicy
from test_inline import assert_same, rows
from tiny_runs import lines, read, train_inline

from cluster.cli import main
from replay.schema import RowLayout
from rollout_workers.config import WorkerConfig
from rollout_workers.worker import RolloutWorker

LAYOUT = RowLayout(obs_dim=4, action_dim=1)
_OWN = np.random.default_rng()  # of this module: no seed of the run reaches it


class Hidden(gym.Env):
    """Observes (episode's tag, steps, place, place before). ``draw`` makes the tag at reset and moves the place each step."""

    observation_space = Box(-np.inf, np.inf, (4,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.tag, self.steps, self.place, self.before = self.first(), 0, 0.0, 0.0
        return self.seen(), {}

    def step(self, action: np.ndarray) -> Any:
        self.before, self.steps = self.place, self.steps + 1
        self.place = float(np.float32(self.place + 0.1 * float(action[0]) + self.draw()))
        return self.seen(), -abs(self.place), self.ends(), False, {}

    def seen(self) -> np.ndarray:
        return np.array([self.tag, self.steps, self.place, self.before], np.float32)

    def first(self) -> float:
        return float(self.np_random.normal())

    def draw(self) -> float:
        return 0.0

    def ends(self) -> bool:
        return False


class Kernel(Hidden):
    """Noise from the operating system."""

    def draw(self) -> float:
        return int.from_bytes(os.urandom(3)) / 2**24


class OwnGenerator(Hidden):
    """Starts drawn from a generator of the module's own."""

    def first(self) -> float:
        return float(_OWN.normal())


class EndsEarlier(Hidden):
    """Ends at a step that no seed knows."""

    limit = 1_000

    def ends(self) -> bool:
        return self.steps >= EndsEarlier.limit


class RaisesWhenReplayed(Hidden):
    """A connection that one process has once."""

    steps_made = 0

    def draw(self) -> float:
        RaisesWhenReplayed.steps_made += 1
        if RaisesWhenReplayed.steps_made == 100:  # the first step after the resume's check of the environment
            raise ConnectionError("already in use")
        return 0.0


class InPlace(Hidden):
    """Halves and clips the action that it was given."""

    def step(self, action: np.ndarray) -> Any:
        action *= 0.5
        np.clip(action, -0.2, 0.2, out=action)
        return super().step(action)


class IntSeeded(VectorEnv):
    """A simulator of many that takes one int as its seed and leaves resets to its caller."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012 - as Gymnasium has it

    def __init__(self, num_envs: int, max_episode_steps: int) -> None:
        self.num_envs, self.limit = num_envs, max_episode_steps
        self.single_observation_space, self.single_action_space = Hidden.observation_space, Hidden.action_space
        self.parts = [Hidden() for _ in range(num_envs)]
        self.obs = np.zeros((num_envs, 4), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if not isinstance(seed, int):
            raise TypeError(f"seed is {seed!r}, expected an int")
        draws = np.random.default_rng(seed).integers(2**31, size=self.num_envs).tolist()
        for i in np.flatnonzero((options or {}).get("reset_mask", np.ones(self.num_envs, bool))):
            self.obs[i] = self.parts[i].reset(seed=draws[i])[0]
        return self.obs.copy(), {}

    def step(self, actions: Any) -> Any:
        results = [part.step(action) for part, action in zip(self.parts, actions)]
        self.obs = np.stack([result[0] for result in results])
        ended = np.array([part.steps >= self.limit for part in self.parts])
        return self.obs.copy(), np.array([result[1] for result in results]), np.zeros(self.num_envs, bool), ended, {}


def several(mode: AutoresetMode, env: type[Hidden] = Hidden) -> Any:
    """A vector entry point of Gymnasium's kind in this mode."""

    def make(num_envs: int, max_episode_steps: int) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: TimeLimit(env(), max_episode_steps)] * num_envs, autoreset_mode=mode)

    return make


class Spoilt(Hidden):
    """Every 40th step of it pays NaN, every 60th shows it; 17 steps after the latter everything is NaN until it ends."""

    made = 0

    def step(self, action: np.ndarray) -> Any:
        obs, reward, *ends = super().step(action)
        self.made += 1
        hidden = self.made % 60 < 17 and self.made > 60
        return np.where(hidden, np.nan, obs), np.nan if self.made % 40 == 0 else reward, *ends


VECTORS = {
    "IntSeeded": IntSeeded,
    "SameStep": several(AutoresetMode.SAME_STEP),
    "NextStep": several(AutoresetMode.NEXT_STEP),
}


@pytest.fixture(autouse=True)
def registered() -> Any:
    names = [env.__name__ for env in (Kernel, OwnGenerator, EndsEarlier, RaisesWhenReplayed, InPlace)]
    ids = {f"{name}-v0": {"entry_point": globals()[name]} for name in names}
    ids |= {f"{name}-v0": {"entry_point": Hidden, "vector_entry_point": entry} for name, entry in VECTORS.items()}
    for env_id, about in ids.items():
        gym.registry[env_id] = Registration(env_id, max_episode_steps=50, **about)
    yield
    for env_id in ids:
        gym.registry.pop(env_id)


def torn(found: np.ndarray) -> int:
    """Rows whose two observations are not one step of one episode."""
    columns = LAYOUT.views(found)
    obs, after = columns.obs, columns.next_obs
    whole = (obs[:, 0] == after[:, 0]) & (obs[:, 1] + 1 == after[:, 1]) & (obs[:, 2] == after[:, 3])
    return int((~whole).sum())


@pytest.mark.parametrize("env", ["Kernel-v0", "OwnGenerator-v0", "EndsEarlier-v0", *(f"{name}-v0" for name in VECTORS)])
def test_a_resume_of_an_environment_with_hidden_randomness_or_a_vector_entry_point_cuts_says_and_counts_and_tears_no_row(
    tmp_path: Path, env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    EndsEarlier.limit = 1_000
    run, flags = tmp_path / "run", ("--workers", "2", "--envs-per-worker", "3")
    steps = 6 * 28  # 28 steps of each environment, whose episodes have 50
    assert train_inline(run, env, steps, *flags, replay__min_size_rows=600, worker__random_steps=600) == 0
    EndsEarlier.limit = 3
    assert main(["resume", str(run), "--steps", str(2 * steps)]) == 0
    output = capsys.readouterr().out
    (found,) = rows(run, env)
    assert len(found) == 2 * steps and torn(found) == 0
    assert read(run / "live.json")["episodes_cut_not_replayed"] == 6
    assert (
        "worker 1: 3 of 3 running episodes were cut, because replaying their actions did not lead to the saved"
        in output
    )
    assert "exact are resumes of environments that follow from their seed and actions alone" in output
    EndsEarlier.limit = 1
    assert main(["resume", str(run), "--steps", str(3 * steps)]) == 0
    assert lines(run / "metrics.jsonl")[-1]["episodes_cut_not_replayed"] == 12  # over the whole run
    assert torn(rows(run, env)[0]) == 0


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_row_that_is_refused_ends_no_run_whoever_resets_the_environment(tmp_path: Path, mode: AutoresetMode) -> None:
    entry = "Spoilt-v0"
    gym.register(entry, Spoilt, max_episode_steps=50, vector_entry_point=several(mode, Spoilt))
    try:
        run, flags = tmp_path / "run", ("--workers", "2", "--envs-per-worker", "3")
        assert train_inline(run, entry, 900, *flags, replay__min_size_rows=2_000, worker__random_steps=2_000) == 0
        (found,) = rows(run, entry)
    finally:
        gym.registry.pop(entry)
    summary = read(run / "summary.json")["rows"]
    dropped = summary["dropped"]
    assert len(found) == summary["stored"] >= 900 and torn(found) == 0
    assert summary["recorded"] == summary["stored"] + sum(dropped.values())
    assert dropped["nonfinite_observation"] > 0 < dropped["nonfinite_reward"]
    assert (dropped.get("rest_of_episode", 0) > 0) == (mode is not AutoresetMode.DISABLED)


def test_an_environment_that_raises_while_it_is_replayed_is_reset_and_the_reason_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RaisesWhenReplayed.steps_made = 1_000  # the first run never raises
    run, env = tmp_path / "run", "RaisesWhenReplayed-v0"
    settings = {"evaluation__episodes": 1, "evaluation__final_episodes": 1}
    assert train_inline(run, env, 24, "--workers", "1", "--envs-per-worker", "3", **settings) == 0
    RaisesWhenReplayed.steps_made = 48  # 51 steps are the check's
    assert main(["resume", str(run), "--steps", "48"]) == 0
    assert "step 1 of 8 raised ConnectionError: already in use" in capsys.readouterr().out
    assert read(run / "live.json")["episodes_cut_not_replayed"] == 1
    assert torn(rows(run, env)[0]) == 0


def test_an_environment_that_changes_its_action_in_place_resumes_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--workers", "2", "--envs-per-worker", "2")
    one, parts, env = tmp_path / "one", tmp_path / "parts", "InPlace-v0"
    assert train_inline(one, env, 320, *flags) == 0
    assert train_inline(parts, env, 160, *flags) == 0
    assert main(["resume", str(parts), "--steps", "320"]) == 0
    assert_same(one, parts, env)
    assert torn(rows(parts, env)[0]) == 0
    assert "were cut" not in capsys.readouterr().out and "episodes_cut_not_replayed" not in read(parts / "live.json")


def planner(env_id: str) -> RolloutWorker:
    policy = RememberingPolicy(4, 1)
    made = RolloutWorker(
        config=WorkerConfig(envs_per_worker=2, chunk_steps=4),
        env_id=env_id,
        policy=policy,
        worker=0,
        incarnation=0,
        seed=3,
        random_steps=0,
    )
    made.load_weights(policy.weights(1))
    return made


@pytest.mark.parametrize("env", ["SameStep-v0", "NextStep-v0"])
def test_plans_that_are_given_up_are_followed_by_new_ones_once_the_environment_has_reset_itself(env: str) -> None:
    worker = planner(env)
    before = worker.collect()
    assert worker.restart_episodes() == 2
    after = worker.collect()
    assert after.stats["dropped_rest_of_episode"] == 2 * (50 - 4)  # steps of the episodes that were given up after 4
    assert torn(after.rows_ND) == 0 and not set(before.episode_N) & set(after.episode_N)
    assert {stamp.episode for stamp in after.metadata} == set(after.episode_N.tolist())


def test_a_plan_begins_anew_with_the_episode_that_could_not_be_replayed() -> None:
    before, after = planner("Kernel-v0"), planner("Kernel-v0")
    chunk = before.collect()
    assert sorted(after.load_state(before.state())) == [0, 1]
    following = after.collect()
    assert torn(following.rows_ND) == 0
    assert not set(chunk.episode_N) & set(following.episode_N)
    assert sorted(following.step_N.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {stamp.episode for stamp in following.metadata} == set(following.episode_N.tolist())
    assert following.stats["unfinished_rows"] == 8 and following.stats["unfinished_episodes"] == 2
