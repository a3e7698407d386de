"""The dataset commands as a user types them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from tiny_episodes import TINY, TINY_CLONE, pairs
from tiny_runs import ROOT, read, train_words
from tiny_runs import TINY as TINY_RUN

from cluster.cli import main
from cluster.commands import collecting, dataset_recipes
from cluster.commands.dataset_recipes import env_name
from cluster.commands.table import aligned
from replay.dataset import StoredEpisode, open_dataset, write_dataset
from rollout_workers.maze import maze_of

ENV = "FixedGoal/PointMaze_UMaze-v3"
ID = "drawbridge/pointmaze-umaze-d0-v0"
MAKE = ["dataset", "make", "maze", "--env", "PointMaze_UMaze-v3", "--episodes", "3"]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def write(dataset_id: str, episodes: int = 3, env_id: str = ENV, ends: tuple[float, float] = (0.0, 20.0)) -> None:
    rng = np.random.default_rng(0)

    def stream() -> list[StoredEpisode]:
        return [
            StoredEpisode(
                index=index,
                obs_TO=rng.uniform(-1, 1, (5, 4)).astype(np.float32),
                action_TA=np.zeros((5, 2), np.float32),
                reward_T=np.full(5, float(index)),
                terminated=False,
                truncated=True,
                next_obs_O=np.zeros(4, np.float32),
            )
            for index in range(episodes)
        ]

    box = {"action_low_A": -np.ones(2), "action_high_A": np.ones(2)}
    about = {"random_return": ends[0], "expert_return": ends[1], "expert": "planner", "description": {"noise": 0.5}}
    write_dataset(dataset_id, stream(), env_id=env_id, **box, **about)


def test_the_list_is_a_table_and_says_so_when_it_is_empty(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "list"]) == 0
    assert "dataset make" in capsys.readouterr().out
    write("a/one-v0")
    write("two-v1", 2)
    (root / "torn-v0" / "data").mkdir(parents=True)
    assert main(["dataset", "list"]) == 0
    head, one, torn, problem, two = capsys.readouterr().out.splitlines()
    assert head.split() == ["ID", "ENVIRONMENT", "EPISODES", "STEPS", "MB"]
    assert one.split()[:4] == ["a/one-v0", ENV, "3", "15"] and two.split()[:4] == ["two-v1", ENV, "2", "10"]
    assert torn.startswith("torn-v0") and "cannot be read" in problem


def test_the_list_is_aligned_by_what_a_terminal_shows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("größe/日本-v0")
    write("a-v0")
    assert main(["dataset", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [cell_len(line[: line.index(word)]) for line, word in zip(lines, ("ENVIR", ENV, ENV))] == [15, 15, 15]
    assert main(["dataset", "make", "maze", "--env", ENV, "--episodes", "1", "--id", "a b-v0"]) == 2
    assert "of letters of any script, digits, - and _" in capsys.readouterr().err
    assert aligned([("日本", "1"), ("o\u0308", "22")], left=1) == ["日本   1", "o\u0308     22"]


def test_show_reads_everything_once_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ID)
    plot = tmp_path / "new" / "picture.png"
    plot.parent.mkdir()
    assert main(["dataset", "show", ID, "--plot", str(plot)]) == 0
    said = capsys.readouterr().out
    for words in (
        f"{ENV}; observations of 4, actions of 2 numbers",
        "3 (15 steps); 5 to 5 steps, median 5",
        "mean 5.00, std 4.08; 0 %: 0.00",
        "100 %: 10.0",
        "mean 25.0, best 50.0",
        "random 0.00 (0), planner 20.0 (100)",
        "0 of 3 episodes",
        "made by       noise 0.5",
    ):
        assert words in said, words
    assert plot.read_bytes()[:4] == b"\x89PNG"


def test_show_without_a_maze_draws_the_returns(tmp_path: Path) -> None:
    write("x-v0", env_id="Elsewhere-v0")
    assert main(["dataset", "show", "x-v0", "--plot", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "none-v0"], "no dataset 'none-v0'"),
        (["show", "none-v0", "--plot", "x.jpg"], "ends in .png"),
        (["import", "no such"], "is no dataset id"),
        (["export", "/nowhere", "x-v0"], "not a run directory"),
        (["make", "agent", "--run", "/nowhere", "--kind", "medium", "--episodes", "2"], "not a run directory"),
        (["make", "maze", "--env", "PointMaze_UMase-v3", "--episodes", "2"], "PointMaze_UMaze-v3"),
        (["make", "maze", "--env", "PointMaze_UMaze-v3", "--episodes", "2", "--id", "bad"], "is no dataset id"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    words: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", *words]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("drawbridge: error: ") and message in last
    assert not root.exists()


@pytest.mark.parametrize(
    "words", [["--episodes", "0"], ["--episodes", "1.5"], ["--noise", "-1"], ["--noise", "101"], ["--dwell", "nan"]]
)
def test_numbers_out_of_range_are_refused_by_the_parser(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*MAKE, *words])


def test_import_copies_a_folder(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(ID)
    (root / ID).rename(tmp_path / "away")
    assert main(["dataset", "import", str(tmp_path / "away")]) == 0
    assert capsys.readouterr().out == f"{ID}: 3 episodes, 15 steps of {ENV}\n"
    assert main(["dataset", "import", str(tmp_path / "away")]) == 2
    assert main(["dataset", "import", str(tmp_path / "away"), "--force"]) == 0


def test_make_maze_writes_what_its_command_says_and_the_same_again(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import minari

    assert main([*MAKE, "--dwell", "5"]) == 0
    dataset_id = "drawbridge/pointmaze-umaze-d5-v0"
    said = capsys.readouterr()
    assert said.out == f"{dataset_id}: 3 episodes, 900 steps of {ENV}\n" and "3/3 episodes" in said.err
    dataset = open_dataset(dataset_id)
    assert dataset.expert == "planner" and dataset.random_return is not None and dataset.expert_return is not None
    assert dataset.expert_return > dataset.random_return + 50
    before = [episode.obs_TO for episode in dataset.episodes()]
    again = dataset.description["command"].replace(dataset_id, "again-v0").split()
    assert main(again[1:]) == 0
    for one, other in zip(before, open_dataset("again-v0").episodes(), strict=True):
        np.testing.assert_array_equal(one, other.obs_TO)
    env = minari.load_dataset(dataset_id).recover_environment()
    assert env.unwrapped.spec.id == ENV and env.observation_space.shape == (4,)
    env.close()
    assert main([*MAKE, "--dwell", "5"]) == 2


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SoftGAC run of a few hundred steps."""
    path = tmp_path_factory.mktemp("runs") / "run"
    words = train_words(path, "InvertedPendulum-v5", "--backend", "inline", "--steps", "400")
    assert main(words) == 0
    return path


def test_of_ones_own_environment_that_is_registered_as_a_class(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It fails halfway, once, which is a failure and leaves nothing; then its dataset is made and learned from."""
    env, run, switch = "broken_envs:OneRaises-v0", tmp_path / "run", tmp_path / "switch"
    monkeypatch.setenv("FAULT_SWITCH", str(switch))
    monkeypatch.setattr(dataset_recipes, "REFERENCE_EPISODES", 2)
    limit = ["--env-kwargs", '{"max_episode_steps": 100}']
    assert main([*train_words(run, env, "--backend", "inline", "--steps", "96"), *limit]) == 0
    switch.touch()
    make = ["dataset", "make", "agent", "--run", str(run), "--kind", "expert", "--episodes", "4", "--env", env]
    assert main(make) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the simulator lost its licence" in last and "no dataset was written" in last
    assert not list(root.rglob("*.hdf5"))
    assert main([*make, "--id", "own/walk-v0"]) == 0
    assert open_dataset("own/walk-v0").env.entry_point == "broken_envs:OneRaises"
    learn = ["train", "bc", "--dataset", "own/walk-v0", "--env", env, "--backend", "inline", "--steps", "4"]
    capsys.readouterr()
    assert main([*learn, "--run-dir", str(tmp_path / "bc"), *pairs(TINY, TINY_CLONE)]) == 0
    result = capsys.readouterr().out
    task = read(tmp_path / "bc" / "config.json")["env"]
    assert "another task" not in result and task == env + '?{"max_episode_steps":100}'


def test_export_gives_the_episodes_that_the_replay_holds(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The twin: rows of the shard's table, gathered by episode id one by one."""
    from cluster.checks import spec_of
    from cluster.graph import make_shard
    from cluster.run_dir import RunDirectory
    from replay.snapshot import load

    assert main(["dataset", "export", str(run_dir), "pendulum-v0"]) == 0
    run = RunDirectory.open(run_dir)
    plan = spec_of(run.config(), run)
    shard = make_shard(plan, 0)
    load(shard, plan.shard_dir(0))
    table, expected = shard.store, []
    for number in np.unique(table.episode[: table.size]):
        rows = sorted(np.flatnonzero(table.episode[: table.size] == number), key=lambda row: table.step[row])
        if table.step[rows[0]] == 0 and table.flag[rows[-1]] & 3 and len(rows) >= 2:
            expected.append(table.rows[rows])
    found = list(open_dataset("pendulum-v0").episodes())
    assert len(found) == len(expected) > 5
    others = table.size - sum(map(len, expected))
    assert others and f"left out {others:,} of {table.size:,} rows that the replay holds" in capsys.readouterr().err
    columns = sorted((plan.layout.views(rows) for rows in expected), key=lambda c: c.obs[0].tolist())
    for theirs, ours in zip(columns, sorted(found, key=lambda episode: episode.obs_TO[0].tolist()), strict=True):
        np.testing.assert_array_equal(theirs.obs, ours.obs_TO)
        np.testing.assert_allclose(theirs.action, ours.action_TA, atol=1e-6)
        np.testing.assert_array_equal(theirs.reward, ours.reward_T.astype(np.float32))
        np.testing.assert_array_equal(theirs.next_obs[-1], ours.next_obs_O)
        assert ours.terminated == (theirs.discount[-1] == 0)


@pytest.mark.parametrize("kind", ["medium", "replay", "expert", "mixed"])
def test_make_agent_has_every_kind(kind: str, run_dir: Path) -> None:
    assert main(["dataset", "make", "agent", "--run", str(run_dir), "--kind", kind, "--episodes", "4"]) == 0
    dataset = open_dataset(f"drawbridge/invertedpendulum-{kind}-v0")
    assert dataset.total_episodes == 4 and dataset.env_id == "InvertedPendulum-v5"
    score = dataset.normalised(dataset.expert_return or 0)
    assert dataset.expert == "softgac run run" and (score is None or score == pytest.approx(100.0))


@pytest.mark.parametrize("expert", [-1_223.0, -1_178.0])
def test_an_agent_that_is_not_above_random_is_no_reference(
    expert: float, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collecting, "measure_agent_references", lambda *a: collecting.References(-1_178.0, expert))
    words = ["dataset", "make", "agent", "--run", str(run_dir), "--kind", "medium", "--episodes", "2", "--id", "low-v0"]
    assert main(words) == 0
    told = capsys.readouterr().err
    for part in ("warning: the expert of low-v0 (softgac run run)", "more than the -1,178", "not normalised"):
        assert part in told, told
    made = open_dataset("low-v0")
    assert (made.random_return, made.expert_return, made.normalised(0.0)) == (None, None, None)
    assert main(["dataset", "show", "low-v0"]) == 0
    assert "scores are not normalised" in capsys.readouterr().out


def test_references_upside_down_in_an_older_dataset_count_as_none() -> None:
    write("older-v0", ends=(-1_178.0, -1_223.0))
    assert open_dataset("older-v0").normalised(-900.0) is None
    write("hopper-v0", env_id="Hopper-v5", ends=(50.0, 20.0))
    assert (open_dataset("hopper-v0").expert or "").startswith("D4RL's expert")


def test_every_kind_is_looked_at_before_one_is_replaced(
    root: Path, run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    shutil.rmtree(run / "replay")
    medium = "drawbridge/invertedpendulum-medium-v0"
    write(medium, env_id="InvertedPendulum-v5")
    before = {path: path.read_bytes() for path in (root / medium).rglob("*") if path.is_file()}
    words = ["dataset", "make", "agent", "--run", str(run), "--episodes", "2"]
    assert main([*words, "--kind", "medium", "replay", "--force"]) == 2
    assert "no replay snapshot with a whole episode" in capsys.readouterr().err
    assert main([*words, "--kind", "replay", "medium"]) == 2
    assert f"the dataset {medium} exists" in capsys.readouterr().err
    for again in (words, ["dataset", "make", "agent", "--train", "InvertedPendulum-v5", "--episodes", "2"]):
        assert main([*again, "--kind", "medium", "medium", "--force"]) == 2
        assert f"{medium} would be made 2 times, expected once" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (root / medium).rglob("*") if path.is_file()} == before


def test_one_command_trains_agents_and_makes_datasets_of_each_kind_under_d4rls_names(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(dataset_recipes, "REFERENCE_EPISODES", 2)
    words = ["dataset", "make", "agent", "--train", "InvertedPendulum-v5", "--steps", "300", "--episodes", "3"]
    words += ["--kind", "medium", "replay", *pairs(TINY_RUN, backend="inline")]
    assert main([*words, "--id", "one-v0"]) == 2
    assert "more than one dataset" in capfd.readouterr().err and not (tmp_path / "runs").exists()
    assert main(words) == 0
    told = capfd.readouterr()
    ids = ["drawbridge/invertedpendulum-medium-v0", "drawbridge/invertedpendulum-medium-replay-v0"]
    assert [line.split(":")[0] for line in told.out.splitlines()] == ids
    for dataset_id in ids:
        made = open_dataset(dataset_id)
        assert 1 <= made.total_episodes <= 3 and made.expert == "softgac run invertedpendulum-300-1"
    summary = read(tmp_path / "runs" / "agents" / "invertedpendulum-300-1" / "summary.json")
    assert main(words) == 2 and "training an agent" not in capfd.readouterr().err  # the datasets are there
    assert main([*words, "--force"]) == 0
    assert "training an agent" not in capfd.readouterr().err  # the run that is there is used
    assert summary == read(tmp_path / "runs" / "agents" / "invertedpendulum-300-1" / "summary.json")


def test_a_run_that_only_learned_from_its_dataset_has_nothing_to_export(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "run"
    shutil.copytree(run_dir, other)
    from cluster.config import make_preset
    from cluster.run_dir import RunDirectory

    run = RunDirectory(other)
    run.write_config(dataclasses.replace(make_preset("gac", "cpu"), env="InvertedPendulum-v5"))
    assert main(["dataset", "export", str(other), "x-v0"]) == 2
    assert "without stages, expected one that gathered episodes" in capsys.readouterr().err


def test_environment_ids_become_parts_of_dataset_ids() -> None:
    assert env_name(ENV) == "pointmaze-umaze" and env_name("HalfCheetah-v5") == "halfcheetah"
    assert env_name("dm_control/cheetah-run-v0") == "dm-control-cheetah-run" and env_name("mod:My_Env-v12") == "my-env"


def changing_goals(root: Path) -> list[np.ndarray]:
    """Two walks of a ball, of 700 and 200 steps, in episodes that end anywhere and continue each other; their observations."""
    import gymnasium as gym
    import gymnasium_robotics
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    gym.register_envs(gymnasium_robotics)
    env = gym.make("PointMaze_UMaze-v3", continuing_task=True, reset_target=True, max_episode_steps=10_000)
    data, rng, walks, buffers = root / "d4rl" / "umaze-v2" / "data", np.random.default_rng(0), [], []
    data.mkdir(parents=True)
    for seed, ends in ((0, (250, 620, 700)), (1, (200,))):
        seen, actions, begin = [env.reset(seed=seed)[0]], [], 0
        for step in range(ends[-1]):
            push = np.array([np.sin(step / 40), np.cos(step / 60)]) + 0.3 * rng.normal(size=2)
            actions.append(push.clip(-1, 1).astype(np.float32))
            seen.append(env.step(actions[-1])[0])
        for end in ends:
            part = range(begin, end + 1)
            obs = {key: np.stack([seen[t][key] for t in part]) for key in seen[0]}
            last = np.arange(end - begin) == end - begin - 1
            fields = {
                "rewards": np.zeros(end - begin),
                "terminations": np.zeros(end - begin, bool),
                "truncations": last,
            }
            buffers.append(EpisodeBuffer(observations=obs, actions=np.stack(actions[begin:end]), **fields))
            begin = end
        walks.append(np.stack([each["observation"] for each in seen]).astype(np.float32))
    storage = MinariStorage.new(data, env.observation_space, env.action_space, env.spec)
    storage.update_episodes(buffers)
    storage.update_metadata({"dataset_id": "d4rl/umaze-v2", "minari_version": "0.5.4"})
    env.close()
    return walks


def test_changing_goals_are_refused_by_name_and_relabelled_for_one(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset_recipes, "REFERENCE_EPISODES", 1)
    walks = changing_goals(root)
    words = ["train", "bc", "--backend", "inline", "--steps", "2", *pairs(TINY, TINY_CLONE)]
    again = ["--env", "PointMaze_UMaze-v3", "--dataset", "d4rl/umaze-v2", "--run-dir", str(tmp_path / "refused")]
    assert main([*words, *again]) == 2
    told = capsys.readouterr().err
    assert "d4rl/umaze-v2 has goals that change" in told and "drawbridge dataset relabel d4rl/umaze-v2" in told
    assert (
        main(["dataset", "relabel", "d4rl/umaze-v2", "--goal-cell", "1", "1", "--env-kwargs", '{"goal_cell": [1, 3]}'])
        == 2
    )
    assert "expected one of the two" in capsys.readouterr().err
    assert main(["dataset", "relabel", "d4rl/umaze-v2", "--goal-cell", "1", "3"]) == 0
    made = open_dataset("d4rl/umaze-onegoal-v0")
    assert "left out 300 of 900 steps: 300 in pieces of less than 300 steps\n" in capsys.readouterr().err
    assert made.env_id == ENV and made.env.kwargs["goal_cell"] == [1, 3] and made.expert == "planner"
    pieces = list(made.episodes())
    assert len(pieces) == 2  # what is left of each walk is shorter than the time limit
    paid = 0.0
    for number, piece in enumerate(pieces):
        walk = walks[0][300 * number : 300 * number + 301]
        np.testing.assert_array_equal(piece.obs_TO, walk[:-1])
        np.testing.assert_array_equal(piece.next_obs_O, walk[-1])
        for step in range(300):
            x, y = walk[step + 1, :2]
            expected = float((x - 1.0) ** 2 + (y - 1.0) ** 2 <= 0.45**2)  # the cell at the upper right
            assert piece.reward_T[step] == expected
            paid += expected
    assert paid > 0
    given = ["--dataset", made.id, "--run-dir", str(tmp_path / "run")]
    assert main([*words, *given]) == 0
    assert main(["dataset", "relabel", made.id, "--id", "again-v0"]) == 2
    assert "without the part `observation`" in capsys.readouterr().err


def test_a_relabelled_dataset_begins_in_its_start_cells_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dataset_recipes, "REFERENCE_EPISODES", 1)
    walks, maze = changing_goals(root), maze_of(ENV)
    assert maze is not None
    first, second = (tuple(map(int, maze.free_K2[maze.cells_of(walks[0][at : at + 1, :2])[0]])) for at in (0, 300))
    assert first != second
    words = ["dataset", "relabel", "d4rl/umaze-v2", "--goal-cell", "1", "3", "--start-cells"]
    assert main([*words, f"{second[0]},{second[1]}"]) == 0
    told = "left out 600 of 900 steps: 300 in 1 piece that did not begin in the start cells, 300 in pieces of less than 300"
    assert told in capsys.readouterr().err
    (piece,) = open_dataset("d4rl/umaze-onegoal-v0").episodes()
    np.testing.assert_array_equal(piece.obs_TO, walks[0][300:600])
    other = next(cell for cell in map(tuple, maze.free_K2.tolist()) if cell not in (first, second, (1, 3)))
    assert main([*words, f"{other[0]},{other[1]}", "--id", "none-v0"]) == 2
    refused = capsys.readouterr().err
    assert f"none of the 2 pieces of 300 steps begins in the start cells [[{other[0]}, {other[1]}]]" in refused
    assert not (root / "none-v0").exists()
