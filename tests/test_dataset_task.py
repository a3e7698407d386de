"""A dataset's task is its whole EnvSpec: it is trained and evaluated in that task, refused or warned of by name."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tiny_episodes import TINY, TINY_CLONE, pairs
from tiny_runs import read, train_inline

from cluster.cli import main
from replay.dataset import open_dataset
from replay.task import join_task
from rollout_workers.envs import make_batch_env, make_env

LIMIT = 7
KWARGS = {"ctrl_cost_weight": 0.0, "forward_reward_weight": 0.0}  # a step pays 1 for staying healthy, and nothing else
TASK = f'Hopper-v5?{{"ctrl_cost_weight":0.0,"forward_reward_weight":0.0,"max_episode_steps":{LIMIT}}}'
PLAIN, WRAPPED = "tiny/hopper-v0", "tiny/wrapped-v0"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hopper with two arguments and a time limit of its own, as Minari itself writes it; once more with a wrapper."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        env = gym.make("Hopper-v5", max_episode_steps=LIMIT, **KWARGS)
        record(PLAIN, env)
        record(WRAPPED, gym.wrappers.ClipReward(env, -1.0, 0.5))
    return root


@pytest.fixture(autouse=True)
def there(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets))


def record(dataset_id: str, env: gym.Env, episodes: int = 4) -> None:
    import minari
    from minari.data_collector import EpisodeBuffer

    buffers = []
    for seed in range(episodes):
        env.action_space.seed(seed)
        obs, steps = [env.reset(seed=seed)[0]], []
        for _ in range(LIMIT):
            action = env.action_space.sample()
            seen, *rest = env.step(action)
            obs.append(seen)
            steps.append((action, *rest[:3]))
        names = ("actions", "rewards", "terminations", "truncations")
        columns = {name: np.array(column) for name, column in zip(names, zip(*steps))}
        buffers.append(EpisodeBuffer(id=seed, observations=np.array(obs), **columns))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no author, no description
        minari.create_dataset_from_buffers(dataset_id=dataset_id, buffer=buffers, env=env)


def words(run: Path, *flags: str, dataset: str = PLAIN) -> list[str]:
    command = ["train", "bc", "--dataset", dataset, "--backend", "inline", "--steps", "4", "--run-dir", str(run)]
    return [*command, *flags, *pairs(TINY, TINY_CLONE)]


def evaluated(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "2", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def refused(command: list[str], capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    capsys.readouterr()
    assert main(command) == 2
    result = capsys.readouterr().err
    assert "drawbridge: error: " in result and "Traceback" not in result
    missing = [part for part in (*parts, "expected", "nothing was started") if part not in result]
    assert not missing, f"{missing} not in: {result}"


def test_a_dataset_is_learned_and_evaluated_in_the_task_that_it_was_recorded_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(words(run)) == 0
    assert "another task" not in capsys.readouterr().out
    assert read(run / "config.json")["env"] == TASK
    found = evaluated(run, capsys)
    assert found["env"] == TASK and found["lengths"] == [LIMIT] * 2 and found["warnings"] == []
    assert found["returns"] == [LIMIT] * 2, "of default Hopper they have the forward reward and no end after 7 steps"
    assert main(["status", str(run)]) == 0 and f"bc on {TASK}" in capsys.readouterr().out
    assert main(["resume", str(run), "--steps", "8"]) == 0
    assert evaluated(run, capsys)["returns"] == [LIMIT] * 2
    assert main(["dataset", "show", PLAIN]) == 0
    result = capsys.readouterr().out
    assert '"forward_reward_weight": 0.0' in result and f"time limit {LIMIT} steps" in result


def test_an_environment_that_the_command_line_names_wins_and_every_difference_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same, run = tmp_path / "same", tmp_path / "run"
    assert main(words(same, "--env", "Hopper-v5")) == 0
    assert read(same / "config.json")["env"] == TASK, "the id alone says nothing of its arguments"
    assert main(words(run, "--env-kwargs", '{"forward_reward_weight": 2, "max_episode_steps": 9}')) == 0
    result = capsys.readouterr().out
    for part in (
        f"dataset {PLAIN} is of another task than Hopper-v5?",
        "its ctrl_cost_weight is 0.0, not given",
        "its forward_reward_weight is 0.0, not 2",
        f"its max_episode_steps is {LIMIT}, not 9",
    ):
        assert part in result, result
    found = evaluated(run, capsys)
    assert max(found["lengths"]) == 9 and "its forward_reward_weight is 0.0, not 2" in found["warnings"][0]


def test_wrappers_are_not_rebuilt_and_therefore_refused_by_name_unless_the_environment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, difference = tmp_path / "run", "its wrappers are ClipReward, not none"
    refused(words(run, dataset=WRAPPED), capsys, f"{WRAPPED} is of another task", difference, "--env Hopper-v5")
    assert not run.exists()
    assert main(words(run, "--env", "Hopper-v5", dataset=WRAPPED)) == 0
    assert difference in capsys.readouterr().out


def test_another_environment_is_warned_of_and_one_with_another_action_box_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym.register("Boxed-v0", boxed, max_episode_steps=9)
    try:
        boxes = "expected [-2.0, -2.0, -2.0] to [2.0, 2.0, 2.0] as in Boxed-v0"
        refused(
            words(tmp_path / "run", "--env", "Boxed-v0"), capsys, f"{PLAIN} has actions from [-1.0, -1.0, -1.0]", boxes
        )
        assert not (tmp_path / "run").exists()
        assert main(words(tmp_path / "run", "--env", "Boxed-v0", "--env-kwargs", '{"scale": 1}')) == 0
        assert "its environment is Hopper-v5, not Boxed-v0" in capsys.readouterr().out
    finally:
        gym.registry.pop("Boxed-v0")


def boxed(scale: float = 2.0, **kwargs: Any) -> gym.Env:
    """Hopper whose actions reach to ``scale``."""
    return gym.wrappers.RescaleAction(gym.make("Hopper-v5", **kwargs), np.float32(-scale), np.float32(scale))


def test_metadata_that_leaves_the_task_open_is_warned_of_by_name(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(datasets, tmp_path, monkeypatch, max_episode_steps=None, entry_point="elsewhere:Hopper")
    assert main(words(tmp_path / "run")) == 0
    result = capsys.readouterr().out
    for part in ("may be of another task", "was elsewhere:Hopper, here it is gymnasium.envs.mujoco.hopper_v5:HopperEnv",
                 "recorded without a time limit, here it is 1000 steps"):  # fmt: skip
        assert part in result, result


def test_an_argument_of_a_dataset_that_may_name_code_is_refused(
    datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(datasets, tmp_path, monkeypatch, kwargs={"xml_file": "stranger:Model"})
    parts = (
        "an argument of Hopper-v5 has the text 'stranger:Model'",
        "may name code or a file",
        "repeat the command with --env",
    )
    capsys.readouterr()
    assert main(words(tmp_path / "run")) == 2
    result = capsys.readouterr().err
    assert all(part in result for part in parts), result


def edit(datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A copy of the dataset with another EnvSpec in its metadata, alone."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "edited"))
    shutil.copytree(datasets, tmp_path / "edited")
    path = tmp_path / "edited" / PLAIN / "data" / "metadata.json"
    metadata = read(path)
    metadata["env_spec"] = json.dumps(json.loads(metadata["env_spec"]) | changes)
    path.write_text(json.dumps(metadata))


BAD = {
    "no JSON": ("{weight: 2}", ("'{weight: 2}', which is no JSON", "write for example")),
    "no object": ("[2]", ("which is JSON for a list", "write for example")),
    "no number": ('{"forward_reward_weight": NaN}', ("which holds what JSON cannot", "write for example")),
    "no limit": ('{"max_episode_steps": 0}', ("max_episode_steps is 0", "an episode would not end", "correct it")),
    "drawing": ('{"render_mode": "human"}', ("render_mode 'human'", "every worker would draw", "leave it out")),
    "unknown to the environment": ('{"weight": 2}', ("unexpected keyword argument 'weight'", "correct its arguments")),
}


@pytest.mark.parametrize("case", BAD)
def test_arguments_that_no_environment_takes_are_refused_and_leave_nothing_behind(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, parts = BAD[case]
    run = tmp_path / "run"
    command = ["train", "softgac", "--env", "Hopper-v5", "--run-dir", str(run), "--env-kwargs", text]
    refused(command, capsys, *parts)
    refused(words(run, "--env-kwargs", text), capsys, *parts)
    assert not run.exists()


def test_workers_and_the_replay_of_a_run_have_the_arguments_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train_inline(run, "Pendulum-v1", 96, "--env-kwargs", '{"max_episode_steps": 5, "g": 0.0}') == 0
    assert read(run / "config.json")["env"] == 'Pendulum-v1?{"g":0.0,"max_episode_steps":5}'
    assert main(["dataset", "export", str(run), "tiny/exported-v0"]) == 0
    dataset = open_dataset("tiny/exported-v0")
    assert {len(episode.reward_T) for episode in dataset.episodes()} == {5}
    assert dataset.env.kwargs["g"] == 0.0 and dataset.env.max_episode_steps == 5 and dataset.env_id == "Pendulum-v1"


def test_a_maze_is_made_with_the_arguments_and_its_dataset_says_so(tmp_path: Path) -> None:
    env = ("--env", "PointMaze_UMaze-v3", "--env-kwargs", '{"max_episode_steps": 12, "goal_cell": [3, 1]}')
    assert main(["dataset", "make", "maze", *env, "--episodes", "2", "--id", "tiny/maze-v0"]) == 0
    dataset = open_dataset("tiny/maze-v0")
    assert [len(episode.reward_T) for episode in dataset.episodes()] == [12, 12]
    run = tmp_path / "run"
    assert main(words(run, dataset="tiny/maze-v0")) == 0
    assert read(run / "config.json")["env"] == 'FixedGoal/PointMaze_UMaze-v3?{"goal_cell":[3,1],"max_episode_steps":12}'


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [("Hopper-v5", KWARGS), ("PointMaze_UMaze-v3", {"reward_type": "dense"}),
     ("PointMaze_UMaze-v3", {"continuing_task": False})],
)  # fmt: skip
def test_a_batch_steps_as_gymnasium_does_with_the_same_arguments(env_id: str, kwargs: dict[str, Any]) -> None:
    task = join_task(env_id, {**kwargs, "max_episode_steps": 5})
    batch, env = make_batch_env(task, 1, 0), make_env(task)
    batch.reset([3])
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    for _ in range(5):
        action = rng.uniform(-1, 1, (1, batch.action_dim)).astype(np.float32)
        ours = batch.step(action)
        _, reward, terminated, truncated, _ = env.step(action[0].astype(env.action_space.dtype))
        assert ours.reward_E[0] == pytest.approx(reward) and ours.terminated_E[0] == terminated
        assert ours.truncated_E[0] == truncated
    assert truncated and batch.max_episode_steps == 5
    batch.close()
    env.close()
