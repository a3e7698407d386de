"""Plans as pictures: starts that are told, trajectories that are walked, predictions held against what came of them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_episodes import TINY, TINY_CLONE, TINY_GAC, make_dataset, pairs, train_words

from cluster.checks import spec_of
from cluster.cli import main
from cluster.commands.evaluation import newest_weights
from cluster.errors import RunError, UsageError
from cluster.pictures.calibration import draw_calibration, rank_correlation, ranks
from cluster.pictures.maze_drawing import check_start, wall_centres
from cluster.pictures.plan_trial import PRIORS, STARTS, Trial, chosen_starts, spread_starts, try_modes
from cluster.run_dir import RunDirectory
from replay.dataset import write_dataset
from replay.stored_episode import StoredEpisode
from rollout_workers.env import EnvError
from rollout_workers.envs import GivenStarts, make_env
from rollout_workers.maze import BALL, Maze, maze_of

MAZE = "FixedGoal/PointMaze_UMaze-v3"
WALKS = "tiny/walks-v0"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two small datasets, of a maze and of Pendulum."""
    path = tmp_path_factory.mktemp("plans")
    with pytest.MonkeyPatch.context() as patch:
        make_dataset(path / "datasets", patch)
        box = {"action_low_A": -np.ones(2), "action_high_A": np.ones(2)}
        write_dataset(WALKS, walks(), env_id=MAZE, **box, random_return=0.0, expert_return=200.0)
        yield path


def walks(episodes: int = 6, steps: int = 40) -> Iterator[StoredEpisode]:
    rng = np.random.default_rng(0)
    for index in range(episodes):
        obs_TO = rng.uniform(-1, 1, (steps + 1, 4)).astype(np.float32)
        action_TA = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
        reward_T = np.full(steps, float(index % 3))
        yield StoredEpisode(index, obs_TO[:-1], action_TA, reward_T, False, True, obs_TO[-1])


def train(root: Path, algorithm: str, name: str, agent: dict[str, Any]) -> Path:
    words = [
        "train",
        algorithm,
        "--dataset",
        WALKS,
        "--backend",
        "inline",
        "--steps",
        "10",
        "--run-dir",
        str(root / name),
    ]
    assert main([*words, *pairs(TINY, agent)]) == 0
    return root / name


@pytest.fixture(scope="module")
def walker(root: Path) -> Path:
    """A run of GAC in a maze; its searches look at q's mean, so that the last one is of the plan that is walked."""
    return train(root, "gac", "walker", TINY_GAC | {"agent.infer_fresh": False})


@pytest.fixture(scope="module")
def swinger(root: Path) -> Path:
    """A run of GAC where there is no maze."""
    assert main(train_words("gac", root / "swinger", "--backend", "inline", "--steps", "10")) == 0
    return root / "swinger"


@pytest.fixture(scope="module")
def cloner(root: Path) -> Path:
    """A run that makes no plans."""
    return train(root, "bc", "cloner", TINY_CLONE)


def maze(env_id: str = MAZE) -> Maze:
    found = maze_of(env_id)
    assert found is not None
    return found


def pixels(path: Path) -> np.ndarray:
    picture: np.ndarray = matplotlib.image.imread(path)
    return picture


def test_episodes_begin_where_they_are_told_to_and_go_on_as_in_gymnasium() -> None:
    start_E2 = np.array([[1.0, -1.0], [-0.7, 0.9], [1.2, 0.3]])
    action_T2 = np.random.default_rng(3).uniform(-1, 1, (60, 2)).astype(np.float32)
    env = GivenStarts(MAZE, start_E2)
    seen = [env.reset([4, 5, 6])]
    steps = [env.step(np.repeat(action[None], 3, axis=0)) for action in action_T2]
    env.close()
    seen += [step.next_obs_EO for step in steps]
    for e, start in enumerate(start_E2):
        slow: Any = make_env(MAZE)
        slow.reset(seed=9)
        slow.unwrapped.point_maze.point_env.set_state(start, np.zeros(2))
        rows = [np.concatenate([start, np.zeros(2)])]
        rewards = []
        for action in action_T2:
            obs, reward, *_ = slow.step(action)
            rows.append(obs)
            rewards.append(reward)
        slow.close()
        np.testing.assert_allclose(np.array(seen)[:, e], np.array(rows), atol=1e-5)
        assert [float(step.reward_E[e]) for step in steps] == rewards


def test_starts_are_refused_where_positions_are_not_known() -> None:
    with pytest.raises(EnvError, match="Hopper-v5 was given starts"):
        GivenStarts("Hopper-v5", np.zeros((1, 2)))


def test_starts_are_far_from_the_goal_and_from_each_other() -> None:
    for env_id in (MAZE, "FixedGoal/PointMaze_Large-v3"):
        found = maze(env_id)
        assert found.goal_cell is not None
        goal = found.index_of(found.goal_cell)
        cells = found.cells_of(spread_starts(found, 3)).tolist()
        assert found.steps_KK[cells[0], goal] == found.steps_KK[:, goal].max()
        taken = [goal]
        for cell in cells:
            nearest = [min(found.steps_KK[k, t] for t in taken) for k in range(len(found.free_K2))]
            assert nearest[cell] == max(nearest) > 0
            taken.append(cell)


@settings(deadline=None, max_examples=200)
@given(st.floats(-6, 6), st.floats(-6, 6))
def test_a_start_is_taken_exactly_where_the_ball_has_room(x: float, y: float) -> None:
    found = maze("FixedGoal/PointMaze_Medium-v3")
    free = any(abs(x - cx) <= 0.5 and abs(y - cy) <= 0.5 for cx, cy in found.centre_K2)
    gaps = [math.hypot(max(abs(x - wx) - 0.5, 0), max(abs(y - wy) - 0.5, 0)) for wx, wy in wall_centres(found)]
    if free and min(gaps) >= BALL:
        check_start(found, (x, y))
        return
    with pytest.raises(UsageError, match="expected a place in a free cell") as caught:
        check_start(found, (x, y))
    named = str(caught.value).rsplit("around ", 1)[1].split(",")
    check_start(found, (float(named[0]), float(named[1])))


def test_a_start_that_is_no_place_is_refused() -> None:
    with pytest.raises(UsageError, match="the nearest free cell is around"):
        check_start(maze(), (math.nan, 0.0))


def trials(run_dir: Path, start: tuple[float, float] | None, found: Maze | None) -> dict[str, Trial]:
    run = RunDirectory.open(run_dir)
    plan = spec_of(run.config(), run)
    return try_modes(plan, newest_weights(plan), found, chosen_starts(plan, found, start, 5), 5)


def test_ways_begin_at_the_start_and_the_ascent_ends_with_the_plan_that_is_walked(walker: Path) -> None:
    found = trials(walker, (1.0, -1.0), maze())
    assert list(found) == ["prior", "st", "kl", "max"]
    assert [len(trial.trajectories) for trial in found.values()] == [PRIORS, 1, 1, 1]
    for trial in found.values():
        for path in trial.trajectories:
            np.testing.assert_allclose(path[0], [1.0, -1.0], atol=1e-6)
            assert path.shape == (301, 2)
        assert len(trial.achieved_E) == len(trial.predicted_E) == len(trial.reached_E) == len(trial.trajectories)
    for mode in ("st", "kl", "max"):
        trial = found[mode]
        assert trial.ascent_SE.shape == trial.kl_SE.shape == (3, 1), "two steps, and what was before them"
        np.testing.assert_allclose(trial.ascent_SE[-1], trial.predicted_E, rtol=1e-4)
        np.testing.assert_allclose(trial.kl_SE[-1], trial.kl_E, rtol=1e-4)
    assert len({float(path[-1, 0]) for path in found["prior"].trajectories}) == PRIORS, "each draws a plan of its own"
    assert found["st"].target is not None and found["kl"].target is None


def test_plan_draws_a_picture_in_place_of_the_old_one_and_says_what_is_in_it(
    walker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "plans.png"
    path.parent.mkdir()
    assert main(["plan", str(walker), "--plot", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[1:6]] == ["mode", "prior", "st", "kl", "max"]
    assert f"of {STARTS * PRIORS}" in said[2] and f"of {STARTS}" in said[4] and said[6] == f"drawn in {path}"
    first = pixels(path)
    assert first.shape[1] > 1.5 * first.shape[0] > 1000
    assert main(["plan", str(walker), "--plot", str(path), "--start=-1,-1"]) == 0
    assert not np.array_equal(first, pixels(path))
    assert [p.name for p in path.parent.iterdir()] == ["plans.png"]


def test_without_a_maze_the_ascent_and_the_returns_are_drawn(
    swinger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plans.png"
    assert main(["plan", str(swinger), "--plot", str(path)]) == 0
    assert "kl" in capsys.readouterr().out
    assert pixels(path).shape[1] < 1.3 * pixels(path).shape[0]
    assert main(["plan", str(swinger), "--plot", str(path), "--start", "0,0"]) == 2
    assert "expected a maze with one goal" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_refused_and_leaves_no_file(
    walker: Path, cloner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plans.png"
    for words, result in (
        (["plan", str(cloner), "--plot", str(path)], "a run of bc, which infers no plans"),
        (["evaluate", str(cloner), "--plot", str(path)], "a run of bc, which infers no plans"),
        (["plan", str(walker), "--plot", str(path), "--start", "0,0"], "lies in a wall or outside of the maze"),
        (["plan", str(walker), "--plot", str(path), "--start=1.45,-1"], "nearer to a wall than the ball's radius"),
        (["plan", str(walker), "--plot", str(tmp_path / "plans.jpg")], "expected '.png'"),
        (["evaluate", str(walker), "--plot", str(tmp_path / "plans.pdf")], "expected '.png'"),
    ):
        assert main(words) == 2
        assert result in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_tells_and_draws_how_its_predictions_kept(
    walker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "calibration.png"
    words = ["evaluate", str(walker), "--episodes", "12", "--mode", "prior"]
    assert main([*words, "--json", "--plot", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rank_correlation"] == rank_correlation(found["predicted"], found["returns"])
    assert pixels(path).shape[0] > 900
    assert main(words) == 0
    result = capsys.readouterr().out
    correlation = found["rank_correlation"]
    assert ("rank correlation" in result) == (correlation is not None)


def test_a_calibration_without_predictions_is_refused(tmp_path: Path) -> None:
    found = {"algorithm": "bc", "env": MAZE, "returns": [1.0], "updates": 3}
    with pytest.raises(RunError, match="has no predicted returns"):
        draw_calibration(found, tmp_path / "a.png")


def test_one_episode_is_drawn_and_has_no_correlation(tmp_path: Path) -> None:
    found = {"algorithm": "gac", "env": MAZE, "returns": [1.0], "predicted": [1.0], "variance": [0.0], "updates": 3}
    assert draw_calibration(found, tmp_path / "a.png").exists()
    assert rank_correlation([1.0], [1.0]) is None
    assert rank_correlation([], []) is None
    assert rank_correlation([1.0, 2.0], [3.0, 3.0]) is None
    with pytest.raises(ValueError, match="2 values beside 1"):
        rank_correlation([1.0, 2.0], [3.0])


def slow_ranks(values: list[float]) -> list[float]:
    """One more than the values below, and half of those that are equal."""
    return [1 + sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=2, max_size=25))
def test_the_rank_correlation_is_pearsons_of_the_ranks(pairs_N: list[tuple[int, int]]) -> None:
    one, other = ([float(pair[side]) for pair in pairs_N] for side in (0, 1))
    assert ranks(np.array(one)).tolist() == slow_ranks(one)
    found = rank_correlation(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert found is None
        return
    expected = np.corrcoef(slow_ranks(one), slow_ranks(other))[0, 1]
    assert found == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(np.exp(one), other) == pytest.approx(found, abs=1e-12)
