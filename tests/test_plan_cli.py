"""`drawbridge plan` as a user types it: what it draws and says, and what it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_episodes import TINY, TINY_CLONE, TINY_GAC, pairs
from tiny_runs import train_inline

from cluster.cli import main
from cluster.run_dir import RunDirectory
from replay.dataset import write_dataset
from replay.stored_episode import StoredEpisode

MAZE, SWING = "FixedGoal/PointMaze_UMaze-v3", "Pendulum-v1"
DIMS = {MAZE: (4, 2), SWING: (3, 1)}
TORQUE = {MAZE: 1.0, SWING: 2.0}  # bound of the actions
MODES_TOLD = ["prior: 6 episodes", "st: 1 episode", "kl: 1 episode", "max: 1 episode"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """Runs by what they are: a GAC in a maze and one elsewhere, behaviour cloning in the maze, an actor-critic."""
    root = tmp_path_factory.mktemp("plans")
    found = {name: root / name for name in ("maze", "swing", "bc", "softgac")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root / "datasets"))
        for name, env, algorithm in (("maze", MAZE, "gac"), ("swing", SWING, "gac"), ("bc", MAZE, "bc")):
            write(f"tiny/{name}-v0", env)
            words = ["train", algorithm, "--dataset", f"tiny/{name}-v0", "--backend", "inline", "--steps", "5"]
            agent = TINY_GAC if algorithm == "gac" else TINY_CLONE
            assert main([*words, "--run-dir", str(found[name]), *pairs(TINY, agent, evaluation__final_episodes=1)]) == 0
        assert train_inline(found["softgac"], SWING, 96) == 0
        yield found


def write(dataset_id: str, env_id: str, steps: int = 20) -> None:
    obs_dim, action_dim = DIMS[env_id]
    rng = np.random.default_rng(0)

    def walk(index: int) -> StoredEpisode:
        obs_NO = rng.uniform(-1, 1, (steps + 1, obs_dim)).astype(np.float32)
        action_TA = rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32)
        return StoredEpisode(index, obs_NO[:-1], action_TA, np.full(steps, index / steps), False, True, obs_NO[-1])

    bound = np.full(action_dim, TORQUE[env_id])
    write_dataset(dataset_id, map(walk, range(6)), env_id=env_id, action_low_A=-bound, action_high_A=bound,
                  random_return=0.0, expert_return=9.0, reference_episodes=1, expert="planner", description={})  # fmt: skip


def test_plans_of_a_maze_are_drawn_and_told_and_come_out_the_same_again(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = []
    for name in ("new/one.png", "two.png"):
        picture = tmp_path / name
        picture.parent.mkdir(exist_ok=True)
        capsys.readouterr()
        assert main(["plan", str(runs["maze"]), "--plot", str(picture), "--start=-1,1", "--seed", "3"]) == 0
        told = capsys.readouterr()
        result.append(told.out.replace(str(picture), "PICTURE"))
        parts = [line for line in told.err.splitlines() if line.startswith("acting by plans of mode ")]
        assert [line.removeprefix("acting by plans of mode ") for line in parts] == MODES_TOLD
        assert picture.read_bytes().startswith(PNG) and picture.stat().st_size > 10_000
        assert [path.name for path in picture.parent.glob("*.png")] == [picture.name]
    assert result[0] == result[1]
    for part in (
        MAZE,
        "5 updates",
        "goal reached",
        "path / shortest",
        "predicted",
        "achieved",
        "prior",
        "st",
        "kl",
        "max",
        "PICTURE",
    ):
        assert part in result[0]


def test_plans_of_another_environment_are_drawn_without_ways(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(runs["swing"]), "--plot", str(tmp_path / "x.png")]) == 0
    told = capsys.readouterr().out
    assert SWING in told and "KL, nats\n" in told and (tmp_path / "x.png").read_bytes().startswith(PNG)
    assert "goal reached" not in told and "path / shortest" not in told


REFUSED = {
    "behaviour cloning": ("bc", "x.png", (), ("run of bc", "infers no plans", "give a run of gac")),
    "an actor-critic": ("softgac", "x.png", (), ("run of softgac", "infers no plans", "give a run of gac")),
    "a start in a wall": ("maze", "x.png", ("--start=0,0",), ("--start", "wall", "nothing was drawn")),
    "a start where there is no maze": ("swing", "x.png", ("--start=1,1",), ("--start was given", SWING, "leave --start out")),
    "a picture that is none": ("maze", "x.jpg", (), ("x.jpg ends in '.jpg'", "expected '.png'", "name a .png file")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_drawn_is_refused_with_what_to_do_and_leaves_no_picture(
    case: str, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, name, flags, parts = REFUSED[case]
    capsys.readouterr()
    assert main(["plan", str(runs[run]), "--plot", str(tmp_path / name), *flags]) == 2
    result = capsys.readouterr().err
    assert "drawbridge: error: " in result and "Traceback" not in result
    missing = [part for part in parts if part not in result]
    assert not missing, result
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["1", "1,2,3", "a,b", ""])
def test_a_start_is_two_numbers(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", str(tmp_path), "--plot", str(tmp_path / "x.png"), f"--start={text}"])
    assert "is not two numbers with a comma between" in capsys.readouterr().err


def test_a_run_that_has_learned_nothing_yet_has_no_plans(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs["maze"], run)
    shutil.rmtree(run / "checkpoints")
    (run / "live.json").write_text("{}")
    capsys.readouterr()
    holder = RunDirectory(run)
    holder.hold()
    try:
        assert main(["plan", str(run), "--plot", str(tmp_path / "x.png")]) == 1
    finally:
        holder.release()
    result = capsys.readouterr().err
    assert "has no checkpoint yet" in result and not (tmp_path / "x.png").exists()
    assert "writes one every 60 s (learner.checkpoint_s) and one at its end; wait for it" in result
    assert main(["plan", str(tmp_path), "--plot", str(tmp_path / "x.png")]) == 2
    assert "is not a run directory" in capsys.readouterr().err
