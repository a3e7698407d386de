"""Whoever names a module of environments names code: the command line may, a dataset or a run directory may not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from tiny_episodes import TINY, TINY_CLONE, pairs, swings
from tiny_runs import edit_config, folder_of_ones_own, read, train_inline, train_words

from cluster.cli import main
from cluster.commands.arguments import name_env_again
from cluster.commands.dataset_recipes import train_agent
from cluster.errors import RunError, UsageError
from cluster.own_code import resume_words, shipped, use_code
from replay.dataset import write_dataset
from rollout_workers import env_ids as envs

MODULE = "module_of_a_stranger"
ENV = f"{MODULE}:Strange-v0"
MAZE_LIKE = f"PointMaze_{MODULE}:Strange-v0"  # a name that mazes have
DATASET = "strange/swings-v0"
PENDULUM = "gymnasium.envs.classic_control.pendulum:PendulumEnv"
STEPS = 96


@pytest.fixture(autouse=True)
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there once a stranger's module was imported, which this process could do."""
    path = tmp_path / "imported"
    code = f"""
import pathlib
import gymnasium as gym
pathlib.Path({str(path)!r}).touch()
gym.register("Strange-v0", "{PENDULUM}", max_episode_steps=200)
"""
    for name in (MODULE, f"PointMaze_{MODULE}"):
        (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(envs, "_named", set())
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    yield path
    for name in (MODULE, f"PointMaze_{MODULE}"):
        sys.modules.pop(name, None)
    gym.registry.pop("Strange-v0", None)


@pytest.mark.parametrize("code", [0, 3])
def test_a_module_that_exits_when_it_is_imported_is_refused(
    code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"{MODULE}.py").write_text(f"import sys\nsys.exit({code})\n")
    assert main(train_words(tmp_path / "run", ENV, "--backend", "inline")) == 2
    result = capsys.readouterr().err
    assert f"called sys.exit({code}) in <module> ({MODULE}.py, line 2)" in result and not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run of Pendulum."""
    path = tmp_path_factory.mktemp("modules") / "run"
    assert train_inline(path, "Pendulum-v1", STEPS) == 0
    return path


@pytest.fixture
def edited(trained: Path, tmp_path: Path) -> Path:
    """That run as a stranger would hand it over: its config.json names a module."""
    path = tmp_path / "edited"
    shutil.copytree(trained, path)
    edit_config(path, env=ENV)
    return path


def made(env_id: str) -> Path:
    """A dataset whose metadata names ``env_id``; its folder."""
    bound = np.array([2.0])
    dataset = write_dataset(DATASET, swings(3), env_id=env_id, action_low_A=-bound, action_high_A=bound)
    return dataset.path.parent


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with 2 and an error of four parts that names the module and the flag."""
    capsys.readouterr()
    assert main(words) == 2, words
    result = capsys.readouterr().err
    for part in (f"names the module '{MODULE}'", "expected a module to be named on the command line", "nothing was imported",
                 f"repeat the command with --env {ENV}"):  # fmt: skip
        assert part in result, result


def test_no_command_imports_a_module_that_a_run_directory_names(
    edited: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    made("Pendulum-v1")
    for words in (
        ["resume", str(edited), "--steps", "200"],
        ["evaluate", str(edited), "--episodes", "1"],
        ["plan", str(edited), "--plot", f"{out}.png"],
        ["finetune", str(edited), "--out", out, "--steps", "200"],
        ["finetune", str(edited), "--out", out, "--steps", "200", "--dataset", DATASET],
        ["dataset", "make", "agent", "--run", str(edited), "--kind", "medium", "--episodes", "1", "--id", "a/b-v0"],
        ["dataset", "export", str(edited), "a/b-v0"],
    ):
        refused(words, capsys)
    assert main(["status", str(edited)]) == 0
    assert main(["report", str(edited), "--output", f"{out}.html"]) == 0
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_no_command_imports_a_module_that_a_dataset_names(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = made(ENV), str(tmp_path / "run")
    for algorithm in ("softgac", "gac"):
        refused(["train", algorithm, "--dataset", DATASET, "--run-dir", run], capsys)
    for env_id in (ENV, MAZE_LIKE):
        metadata = read(folder / "data" / "metadata.json")
        metadata["drawbridge"]["env_id"] = env_id
        (folder / "data" / "metadata.json").write_text(json.dumps(metadata))
        assert main(["dataset", "show", DATASET, "--plot", str(tmp_path / "shown.png")]) == 0
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "others"))
    assert main(["dataset", "import", str(folder)]) == 0
    assert main(["dataset", "list"]) == 0
    assert not marker.exists() and not Path(run).exists()


def test_a_dataset_of_a_module_is_learned_in_its_own_task_when_the_command_line_names_the_module(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Minari writes one: the id in its metadata has no module."""
    metadata_of = made("Pendulum-v1") / "data" / "metadata.json"
    spec = EnvSpec("Strange-v0", PENDULUM, max_episode_steps=9, kwargs={"g": 1.5})
    metadata = read(metadata_of) | {"env_spec": spec.to_json(), "drawbridge": {}}
    metadata_of.write_text(json.dumps(metadata))
    run = tmp_path / "run"
    words = [
        "train",
        "bc",
        "--dataset",
        DATASET,
        "--backend",
        "inline",
        "--steps",
        "4",
        "--run-dir",
        str(run),
        *pairs(TINY, TINY_CLONE),
    ]
    assert main(words) == 2
    assert "unknown environment 'Strange-v0'" in capsys.readouterr().err and not marker.exists()
    assert main([*words, "--env", ENV]) == 0
    result = capsys.readouterr().out
    assert marker.exists() and "another task" not in result, result
    task = f'{ENV}?{{"g":1.5,"max_episode_steps":9}}'
    assert read(run / "config.json")["env"] == task
    assert main(["evaluate", str(run), "--env", ENV, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["env"] == task and set(found["lengths"]) == {9}


def test_the_command_line_names_the_module_of_a_run_and_names_it_again(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = train_words(run, ENV, "--backend", "inline", "--steps", str(STEPS))
    assert main(words) == 0 and marker.exists()
    sys.modules.pop(MODULE)
    gym.registry.pop("Strange-v0")
    envs._named.clear()  # another process
    refused(["evaluate", str(run), "--episodes", "1"], capsys)
    assert main(["evaluate", str(run), "--episodes", "1", "--env", ENV]) == 0
    assert main(["resume", str(run), "--steps", "160", "--env", ENV]) == 0
    capsys.readouterr()
    assert main(["resume", str(run), "--steps", "200", "--env", "Pendulum-v1"]) == 2
    result = capsys.readouterr().err
    assert (
        f"--env Pendulum-v1 was given to a run of {ENV}, expected its own environment" in result
        and "leave --env out" in result
    )


@pytest.fixture
def own_module(marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stranger's module as one's own: in a folder where this process does not look for modules."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    return Path(shutil.move(tmp_path / f"{MODULE}.py", folder))


def forget() -> None:
    """As another process begins."""
    sys.modules.pop(MODULE, None)
    gym.registry.pop("Strange-v0", None)
    envs._named.clear()


def test_ones_own_module_is_found_in_the_current_directory_and_where_the_command_line_says(
    own_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check-env", "Pendulum-v1", "--episodes", "1"]) == 0 and str(tmp_path) not in sys.path
    check = ["check-env", "Strange-v0", "--episodes", "1"]
    assert main([*check, "--import", MODULE]) == 2
    assert (
        f"--import {MODULE} names the module" in (result := capsys.readouterr().err) and "--py-modules PATH" in result
    )
    assert main([*check, "--py-modules", str(own_module)]) == 2  # it may be found, but nobody has asked for it
    assert "give --import MODULE" in capsys.readouterr().err
    assert main([*check, "--py-modules", str(own_module), "--import", MODULE]) == 0
    for words in (["check-env", ENV, "--episodes", "1"], [*check, "--import", MODULE]):
        forget()
        sys.path.remove(str(own_module.parent))
        monkeypatch.chdir(own_module.parent)
        assert main(words) == 0
    for path in (tmp_path / "nothing", tmp_path / "datasets.txt"):
        assert main([*check, "--py-modules", str(path)]) == 2
        assert f"--py-modules {path} is no package" in capsys.readouterr().err


def test_a_module_that_is_called_like_a_package_of_this_project_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    shutil.copy(f"{MODULE}.py", "replay.py")
    Path("mine.py").write_text("from replay import Everything\n")
    for words in (
        ["replay:Strange-v0"],
        ["Strange-v0", "--import", "replay"],
        ["replay:Strange-v0", "--py-modules", "replay.py"],
    ):
        assert main(["check-env", *words]) == 2
        result = capsys.readouterr().err
        assert f"names the module 'replay', and {tmp_path}/replay.py cannot be imported under that name" in result, (
            result
        )
        assert "(algorithms, cluster, learners, replay, rollout_workers), expected another" in result, result
    assert main(["check-env", "mine:Strange-v0"]) == 2
    assert f"; if it imports {tmp_path}/replay.py, rename that" in capsys.readouterr().err
    assert "Strange-v0" not in gym.registry


@pytest.mark.parametrize("file", ["replay.py", "replay/__init__.py", "replay/shard-0/rows"])
def test_the_functions_of_drawbridge_say_what_hides_a_package_of_this_project(file: str, tmp_path: Path) -> None:
    """In a folder of one's own, or in a run's directory, which has a folder called replay."""
    folder = tmp_path / "here"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).touch()
    calls = ("load('x')", "evaluate('x')", "train('sac', 'Pendulum-v1')", "make_dataset('x', episodes=1)")
    script = "\n".join(
        ["import drawbridge"] + [f"try: drawbridge.{call}\nexcept ValueError as error: print(error)" for call in calls]
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, timeout=60)
    found = ended.stdout.splitlines()
    assert len(found) == 4 and all(
        "is found under the name 'replay', expected this project's" in line for line in found
    ), ended.stdout + ended.stderr
    assert all(line.startswith(f"{folder}/replay") for line in found), found


def test_an_agent_for_a_dataset_is_trained_whatever_the_folder_is_called_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = folder_of_ones_own(tmp_path / "own")
    monkeypatch.chdir(folder)
    with pytest.raises(RunError, match="the agent in NoSuch-v0 was not trained to its end"):
        train_agent("NoSuch-v0", 10, 1, {}, folder)
    assert "unknown environment 'NoSuch-v0'" in capfd.readouterr().err


def test_the_arguments_of_a_run_may_be_named_again_in_any_order(edited: Path) -> None:
    task = 'Pendulum-v1?{"g":1.5,"max_episode_steps":9}'
    other_order = 'Pendulum-v1?{"max_episode_steps": 9, "g": 1.5}'
    for theirs in (task, other_order):
        edit_config(edited, env=theirs)
        for again in (task, other_order, "Pendulum-v1"):
            name_env_again(edited, again)
        for other in ('Pendulum-v1?{"g":1.6,"max_episode_steps":9}', 'Pendulum-v1?{"g":', "Pendulum-v1?", "Acrobot-v1"):
            with pytest.raises(UsageError, match="expected its own environment"):
                name_env_again(edited, other)


def test_commands_of_a_run_take_the_import_again_and_messages_repeat_it(
    own_module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(own_module.parent)
    run, code = tmp_path / "run", ["--import", MODULE]
    assert main([*train_words(run, "Strange-v0", "--backend", "inline", "--steps", str(STEPS)), *code]) == 0
    forget()
    assert main(["evaluate", str(run), "--episodes", "1"]) == 2
    assert "unknown environment 'Strange-v0'" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--episodes", "1", *code]) == 0
    assert resume_words(run, read(run / "config.json")) == f"drawbridge resume {run} --import {MODULE}"
    forget()
    assert main(["resume", str(run), "--steps", "160", *code]) == 0


def test_a_cluster_is_sent_what_was_named_and_is_not_installed(own_module: Path) -> None:
    package = own_module.parent / "package"
    package.mkdir()
    use_code([], [package])
    envs.name_module("gymnasium.envs.mujoco:X-v0")
    assert shipped(None) == {"py_modules": [str(package)]}
    envs.name_module(ENV)
    sys.path.append(str(own_module.parent))
    assert shipped({}) == {"py_modules": [str(package), str(own_module)]}
    with pytest.raises(UsageError, match="a Ray job that has py_modules of its own"):
        shipped({"py_modules": ["x"]})
    use_code([], [])
    assert shipped({"py_modules": ["x"]}) == {}


def test_rllib_imports_no_module_that_a_checkpoint_names(tmp_path: Path, marker: Path) -> None:
    from cluster.rllib import SoftGAC
    from cluster.rllib.results import FORMAT, SAVED

    result = {"format": FORMAT, "algorithm": "softgac", "settings": {"env": ENV}}
    (tmp_path / SAVED).write_text(json.dumps(result))
    with pytest.raises(UsageError, match=f"names the environment '{ENV}'.*give config= with environment"):
        SoftGAC.from_checkpoint(tmp_path)
    assert not marker.exists()
    result["settings"] = {"env": "Pendulum-v1", "num_env_runners": 1, "fleet_settings": {"ray.address": "head:6379"}}
    (tmp_path / SAVED).write_text(json.dumps(result))
    with pytest.raises(
        UsageError, match=r"reach out of the run \({'ray.address': 'head:6379'}\).*give config= with training"
    ):
        SoftGAC.from_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../outside-v0", "a/../../outside-v0", "/tmp/outside-v0", "a/./b-v0"])
def test_the_id_of_a_dataset_does_not_leave_their_root(
    name: str, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made("Pendulum-v1")
    metadata = read(folder / "data" / "metadata.json")
    (folder / "data" / "metadata.json").write_text(json.dumps(metadata | {"dataset_id": name}))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "roots" / "of" / "others"))
    for words in (["dataset", "import", str(folder)], ["dataset", "export", str(trained), name],
                  ["dataset", "make", "maze", "--env", "PointMaze_UMaze-v3", "--episodes", "1", "--id", name]):  # fmt: skip
        capsys.readouterr()
        assert main(words) == 2, words
        assert f"'{name}' is no dataset id, expected" in capsys.readouterr().err
    assert not list((tmp_path / "roots").rglob("*outside*"))
