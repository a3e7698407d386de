"""Mazes whose goal and starts somebody names: the environment, and that all which is done with a dataset of it follows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.seeding import np_random
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tiny_episodes import TINY, TINY_GAC, finetune_words, pairs
from tiny_runs import read

import drawbridge
from cluster.cli import main
from cluster.commands import collecting, dataset_recipes
from cluster.dataset_task import differences, doubts
from cluster.pictures.plan_trial import spread_starts
from replay.dataset import Dataset, open_dataset
from replay.task import join_task
from rollout_workers.batched_mujoco import BatchedMujocoEnv
from rollout_workers.envs import env_spec, make_env
from rollout_workers.maze import REACHED, Maze, maze_of

UMAZE, LARGE = "FixedGoal/PointMaze_UMaze-v3", "FixedGoal/PointMaze_Large-v3"
STARTS, LIMIT = [[1, 3], [3, 3]], 200  # steps
TASK = f'{UMAZE}?{{"goal_cell":[3,1],"max_episode_steps":{LIMIT},"start_cells":[[1,3],[3,3]]}}'
FLAGS = ["--goal-cell", "3", "1", "--start-cells", "1,3", "3,3", "--env-kwargs", f'{{"max_episode_steps": {LIMIT}}}']
MAKE = ["dataset", "make", "maze", "--env", "PointMaze_UMaze-v3"]
ID = "tiny/starts-v0"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """One made with both flags, and the references of a few episodes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        patch.setattr(dataset_recipes, "REFERENCE_EPISODES", 3)
        assert main([*MAKE, *FLAGS, "--episodes", "24", "--id", ID]) == 0
        yield open_dataset(ID)


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of gac on it, of which no environment was named."""
    path = tmp_path_factory.mktemp("starts") / "run"
    words = ["train", "gac", "--dataset", dataset.id, "--backend", "inline", "--steps", "5", "--run-dir", str(path)]
    assert main([*words, *pairs(TINY, TINY_GAC)]) == 0
    return path


def maze(task: str = TASK) -> Maze:
    found = maze_of(task)
    assert found is not None
    return found


def begun_in(first_N: Any) -> set[tuple[int, int]]:
    """The cells (row, column) in which episodes with these first observations begin."""
    positions = np.array(first_N)[:, :2]
    cell = maze().cells_of(positions)
    assert np.abs(positions - maze().centre_K2[cell]).max() <= 0.25
    return {(int(row), int(column)) for row, column in maze().free_K2[cell]}


def test_episodes_of_the_dataset_begin_there_alone_and_are_paid_at_the_moved_goal(dataset: Dataset) -> None:
    episodes = list(dataset.episodes())
    assert begun_in([episode.obs_TO[0] for episode in episodes]) == {(1, 3), (3, 3)}
    paid = 0.0
    for episode in episodes:
        after_T2 = np.concatenate([episode.obs_TO[1:, :2], episode.next_obs_O[None, :2]])
        near_T = np.linalg.norm(after_T2 - [-1.0, -1.0], axis=1) <= REACHED  # the cell at the lower left
        np.testing.assert_array_equal(episode.reward_T, near_T)
        paid += episode.reward_T.sum()
    assert paid > 0
    kwargs = dataset.env.kwargs
    assert (kwargs["goal_cell"], kwargs["start_cells"]) == ([3, 1], STARTS)


def test_the_command_in_the_metadata_makes_it_again(dataset: Dataset) -> None:
    words = shlex.split(dataset.description["command"].replace(ID, "tiny/again-v0"))
    assert main(words[1:]) == 0
    again = open_dataset("tiny/again-v0")
    assert again.env.kwargs == dataset.env.kwargs
    for one, other in zip(dataset.episodes(), again.episodes(), strict=True):
        np.testing.assert_array_equal(one.obs_TO, other.obs_TO)


def test_both_references_are_of_episodes_that_begin_there(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[type, list[np.ndarray]] = {collecting.WaypointPlanner: [], collecting._Uniform: []}
    for kind, begun in seen.items():
        monkeypatch.setattr(kind, "begin", spying(kind.begin, begun))
    found = collecting.measure_references(TASK, seed=0, episodes=9)
    for begun in seen.values():
        assert begun_in(np.concatenate(begun)) == {(1, 3), (3, 3)}
    assert found.expert_return > found.random_return


def spying(begin: Any, begun: list[np.ndarray]) -> Any:
    def spy(self: Any, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> Any:
        begun.append(obs_KO.copy())
        return begin(self, env_K, obs_KO, rng)

    return spy


def test_a_run_is_of_the_datasets_task_and_evaluated_from_its_starts(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read(run / "config.json")["env"] == TASK
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "8", "--seed", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["env"] == TASK and found["warnings"] == [] and found["lengths"] == [LIMIT] * 8
    env = make_env(TASK)
    first = np.array([env.reset(seed=5 + i)[0] for i in range(8)])
    env.close()
    assert begun_in(first) == {(1, 3), (3, 3)}
    np.testing.assert_allclose(found["shortest_path"], maze().shortest_path(first[:, :2]) - REACHED, atol=1e-6)


def test_stages_gather_from_the_same_starts(run: Path, tmp_path: Path) -> None:
    online = tmp_path / "online"
    assert main(finetune_words(run, online, stages=1, episodes=8, updates=2, metrics__line_s=1_000)) == 0
    assert read(online / "config.json")["env"] == TASK
    assert main(["dataset", "export", str(online), "tiny/gathered-v0"]) == 0
    gathered = open_dataset("tiny/gathered-v0")
    assert begun_in([episode.obs_TO[0] for episode in gathered.episodes()]) == {(1, 3), (3, 3)}
    assert gathered.env.kwargs["start_cells"] == STARTS


def test_python_names_both_in_the_task(dataset: Dataset) -> None:
    task = 'PointMaze_UMaze-v3?{"goal_cell": [3, 1], "max_episode_steps": 5, "start_cells": [[1, 3]]}'
    made = open_dataset(drawbridge.make_dataset(task, episodes=3, name="tiny/python-v0"))
    assert made.env.kwargs["goal_cell"] == [3, 1]
    assert begun_in([episode.obs_TO[0] for episode in made.episodes()]) == {(1, 3)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--goal-cell", "0", "0"], "goal cell (0, 0) is a wall, expected one of the free cells [[1, 1],"),
        (["--goal-cell", "1", "5"], "goal cell (1, 5) is outside of the maze, expected one of the free cells"),
        (["--start-cells", "1,2", "2,2"], "start cell (2, 2) is a wall, expected one of the free cells"),
        (["--start-cells", "9,9"], "start cell (9, 9) is outside of the maze, expected one of the free cells"),
        (["--start-cells", "1,2", "1,2"], "the start cells are [[1, 2], [1, 2]], expected at least one and none twice"),
        (["--start-cells", "1,1"], "the only start cell (1, 1) is the goal's, expected another one"),
        (["--goal-cell", "3", "1", "--start-cells", "3,1"], "the only start cell (3, 1) is the goal's"),
        (["--env-kwargs", '{"start_cells": []}'], "the start cells are [], expected at least one"),
        (["--env-kwargs", '{"start_cells": [3, 1]}'], "describe no maze"),
        (["--env-kwargs", '{"goal_cell": [1.5, 1]}'], "describe no maze"),
        (
            ["--goal-cell", "3", "1", "--env-kwargs", '{"goal_cell": [1, 3]}'],
            "goal_cell is [1, 3] in the environment's arguments and --goal-cell is [3, 1], expected one of the two",
        ),
        (
            ["--start-cells", "3,1", "--env-kwargs", '{"start_cells": [[1, 3]]}'],
            "start_cells is [[1, 3]] in the environment's arguments and --start-cells is [[3, 1]], expected one",
        ),
    ],
)
def test_cells_that_cannot_be_meant_are_refused_and_nothing_is_written(
    flags: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    assert main([*MAKE, "--episodes", "2", *flags]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("drawbridge: error: ") and message in last, last
    assert not (tmp_path / "datasets").exists()


@pytest.mark.parametrize("flags", [["--start-cells", "31"], ["--start-cells", "-1,3"], ["--goal-cell", "3"]])
def test_what_is_no_cell_is_refused_by_the_parser(flags: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*MAKE, "--episodes", "2", *flags])


def test_a_run_in_a_maze_that_cannot_be_made_does_not_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "softgac", "--env", UMAZE, "--run-dir", str(tmp_path / "run")]
    assert main([*words, "--env-kwargs", '{"start_cells": [[1, 1]]}']) == 2
    assert "the only start cell (1, 1) is the goal's" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("env_id", [UMAZE, LARGE])
def test_without_start_cells_every_seed_gives_the_start_that_it_always_gave(env_id: str) -> None:
    """Drawn here as mazes drew it before any could be named; all free cells, named in any order, are the same."""
    found, named = maze(env_id), join_task(env_id, {"start_cells": maze(env_id).free_K2[::-1].tolist()})
    plain, every = make_env(env_id), make_env(named)
    for seed in range(20):
        rng, _ = np_random(seed)
        centre = found.centre_K2[rng.integers(len(found.free_K2))]
        expected = [*(centre + rng.uniform(-0.25, 0.25, 2)), 0.0, 0.0]
        assert plain.reset(seed=seed)[0].tolist() == every.reset(seed=seed)[0].tolist() == expected
    assert "start_cells" not in plain.spec.kwargs  # type: ignore[union-attr]
    plain.close()
    every.close()


def test_a_dataset_without_start_cells_is_still_of_its_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setattr(dataset_recipes, "REFERENCE_EPISODES", 1)
    assert main([*MAKE, "--episodes", "2"]) == 0
    made = open_dataset("drawbridge/pointmaze-umaze-d0-v0")
    assert made.env.kwargs == {"maze_id": "PointMaze_UMaze-v3", "goal_cell": [1, 1]}
    assert differences(made, UMAZE) == doubts(made, UMAZE) == []
    assert doubts(made, join_task(UMAZE, {"start_cells": STARTS})) == [
        "it does not say its start_cells, here it is [[1, 3], [3, 3]]"
    ]


def test_starts_are_spread_evenly_over_the_named_cells_in_both_paths() -> None:
    assert env_spec(TASK).fast
    batch = 2_000
    ours, own = BatchedMujocoEnv(TASK, batch), SyncVectorEnv([lambda: make_env(TASK)] * 3)
    obs = ours.reset(seed=0)[0]
    np.testing.assert_array_equal(obs[:3], own.reset(seed=[0, 1, 2])[0])
    assert begun_in(obs) == {(1, 3), (3, 3)} and (obs[:, 2:] == 0).all()
    upper = int((obs[:, 1] > 0).sum())
    assert abs(upper - batch / 2) < 4.5 * np.sqrt(batch / 4)
    ours.close()
    own.close()


def test_both_paths_step_and_reset_alike() -> None:
    ours = BatchedMujocoEnv(TASK, 3, AutoresetMode.SAME_STEP)
    own = SyncVectorEnv([lambda: make_env(TASK)] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    np.testing.assert_array_equal(ours.reset(seed=7)[0], own.reset(seed=7)[0])
    rng = np.random.default_rng(0)
    for _ in range(2 * LIMIT):
        actions = rng.uniform(-1, 1, (3, 2)).astype(np.float32)
        for one, other in zip(ours.step(actions)[:4], own.step(actions)[:4]):
            np.testing.assert_array_equal(one, other)
    ours.close()
    own.close()


def test_plans_are_drawn_from_starts_of_the_task() -> None:
    found = maze()
    cells = [tuple(cell) for cell in found.free_K2[found.cells_of(spread_starts(found, 3))].tolist()]
    assert cells[:2] == [(1, 3), (3, 3)]  # 6 and 2 steps from the goal
    assert set(cells) == {(1, 3), (3, 3)}


def test_a_cell_may_be_a_tuple_a_list_or_an_array() -> None:
    walls = maze(UMAZE).wall_RC
    one, other = Maze(walls, np.array([3, 1]), [(1, 3)]), Maze(walls, [3, 1], np.array([[1, 3]]))  # type: ignore[arg-type]
    assert one.goal_cell == other.goal_cell == (3, 1) and one.start_S.tolist() == other.start_S.tolist()
