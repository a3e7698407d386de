"""Bad input to what learns from episodes: datasets, targets, runs to go on from, missing packages, each told in words."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
from minari.serialization import serialize_space
from tiny_episodes import TINY, TINY_CLONE, TINY_GAC, finetune_words, pairs
from tiny_runs import ROOT, read, start, train_inline, wait_for

from cluster.cli import main
from cluster.config import flatten, from_json, make_preset, override, to_json
from cluster.run_dir import RunDirectory
from learners import checkpoint
from replay.dataset import write_dataset
from replay.stored_episode import StoredEpisode

ENV, ID = "Pendulum-v1", "tiny/swings-v0"
RETURNS = (0.0, 7.0)  # of the tiny dataset's worst and best episode


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for the module's datasets and runs."""
    return tmp_path_factory.mktemp("bad-input")


@pytest.fixture(autouse=True)
def datasets(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound dataset, alone."""
    place = tmp_path / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(place))
    write()
    return place


def episode(index: int, steps: int = 12) -> StoredEpisode:
    """Of Pendulum's shapes; its return is its index."""
    rng = np.random.default_rng(index)
    obs_NO = rng.uniform(-1, 1, (steps + 1, 3)).astype(np.float32)
    action_TA = rng.uniform(-1, 1, (steps, 1)).astype(np.float32)
    return StoredEpisode(index, obs_NO[:-1], action_TA, np.full(steps, index / steps), False, True, obs_NO[-1])


def write(dataset_id: str = ID, env_id: str = ENV, episodes: int = 8) -> None:
    bound = np.array([2.0])
    references = {"random_return": -1_200.0, "expert_return": -150.0, "expert": "planner"}
    write_dataset(dataset_id, map(episode, range(episodes)), env_id=env_id, action_low_A=-bound, action_high_A=bound,
                  reference_episodes=1, algorithm_name="random", description={}, **references)  # fmt: skip


def data(place: Path) -> Path:
    return place / ID / "data"


def edit_metadata(place: Path, **changes: Any) -> None:
    path = data(place) / "metadata.json"
    path.write_text(json.dumps(read(path) | changes))


def shorten(place: Path, indices: range, steps: int) -> None:
    """Cuts episodes to ``steps``, as whoever recorded them could have written them."""
    with h5py.File(data(place) / "main_data.hdf5", "r+") as file:
        for index in indices:
            group = file[f"episode_{index}"]
            for name in ("observations", "actions", "rewards", "terminations", "truncations"):
                kept = group[name][: steps + (name == "observations")]
                del group[name]
                group[name] = kept
            group.attrs["total_steps"] = steps


def cut_off(place: Path) -> None:
    (data(place) / "main_data.hdf5").write_bytes(b"\x89HDF")


def spoil_rewards(place: Path, indices: range) -> None:
    with h5py.File(data(place) / "main_data.hdf5", "r+") as file:
        for index in indices:
            file[f"episode_{index}"]["rewards"][3] = np.nan


def train_words(run_dir: Path, *flags: str, algorithm: str = "gac", dataset: str = ID, steps: int = 4, **more: Any) -> list[str]:  # fmt: skip
    agent = TINY_GAC if algorithm == "gac" else TINY_CLONE
    words = ["train", algorithm, "--dataset", dataset, "--backend", "inline", "--steps", str(steps), "--run-dir", str(run_dir)]  # fmt: skip
    return [*words, *flags, *pairs(TINY, agent, **more)]


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says on its way out with 2: one message, no traceback."""
    capsys.readouterr()
    assert main(words) == 2
    result = capsys.readouterr().err
    assert "drawbridge: error: " in result and "Traceback" not in result
    return result


def holds(result: str, *parts: str) -> None:
    missing = [part for part in parts if part not in result]
    assert not missing, f"{missing} not in: {result}"


@pytest.fixture(scope="module")
def gac(root: Path) -> Path:
    """A GAC run of a few updates that ended."""
    return trained(root, "gac")


@pytest.fixture(scope="module")
def bc(root: Path) -> Path:
    return trained(root, "bc")


@pytest.fixture(scope="module")
def dt(root: Path) -> Path:
    return trained(root, "dt")


@pytest.fixture(scope="module")
def iql(root: Path) -> Path:
    return trained(root, "iql")


@pytest.fixture(scope="module")
def rvs(root: Path) -> Path:
    return trained(root, "rvs")


def trained(root: Path, algorithm: str) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root / f"{algorithm}-datasets"))
        write()
        assert main(train_words(root / algorithm, algorithm=algorithm)) == 0
    return root / algorithm


# what is done to the dataset, flags of train -> parts of the message: seen, expected, consequence, what to do
Harm = Callable[[Path], None]
DATASETS: dict[str, tuple[Harm, tuple[str, ...], tuple[str, ...]]] = {
    "of another environment": (
        lambda place: None, ("--env", "InvertedPendulum-v5"),
        (f"{ID} is of {ENV} (observations of 3, actions of 1 numbers)", "expected InvertedPendulum-v5 (observations of 4",
         "cannot act in the other", "choose the dataset or --env"),
    ),
    "of an environment that does not exist": (
        lambda place: write("tiny/other-v0", "Pendulm-v1"), ("--dataset", "tiny/other-v0"),
        ("unknown environment 'Pendulm-v1'", "nearest: Pendulum-v1", "nothing can be trained"),
    ),
    "of no environment": (
        lambda place: edit_metadata(place, drawbridge={}, env_spec=None), (),
        (f"{ID} does not name its environment", "nothing was started", "give --env"),
    ),
    "discrete actions": (
        lambda place: edit_metadata(place, action_space=serialize_space(gym.spaces.Discrete(2))), (),
        (f"{ID} has actions in Discrete(2)", "expected a Box of floats", "nothing can be trained on it", "with continuous actions"),
    ),
    "an environment with discrete actions": (
        lambda place: None, ("--env", "CartPole-v1"),
        ("CartPole-v1 has the action space Discrete(2)", "expected a Box of floats", "cannot be trained on", "choose an environment"),
    ),
    "empty": (
        lambda place: edit_metadata(place, total_episodes=0, total_steps=0), (),
        (f"{ID} has no episodes", "expected some", "nothing can be learned", "choose another"),
    ),
    "episodes of length 0": (
        lambda place: shorten(place, range(8), 0), (),
        (f"every episode of {ID} was refused (8 too short)", "nothing can be learned", "import or make the dataset again"),
    ),
    "episodes of length 1": (
        lambda place: shorten(place, range(8), 1), (),
        (f"every episode of {ID} was refused (8 too short)", "expected some that can be read", "nothing was started"),
    ),
    "NaN rewards everywhere": (
        lambda place: spoil_rewards(place, range(8)), (),
        (f"every episode of {ID} was refused (8 reward not finite)", "nothing was started"),
    ),
    "an id that is not there": (
        lambda place: None, ("--dataset", "tiny/swinks-v0"),
        ("no dataset 'tiny/swinks-v0'", f"nearest: {ID}", "nothing to read", "`drawbridge dataset list`"),
    ),
    "a path that is none": (
        lambda place: None, ("--dataset", str(ROOT / "docs")),
        (f"no dataset '{ROOT / 'docs'}'", "no Minari folder of that path", "`drawbridge dataset import`"),
    ),
    "cut off": (
        lambda place: cut_off(place), (),
        ("main_data.hdf5 cannot be opened", "expected an HDF5 file", "import or make the dataset again"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DATASETS)
def test_a_dataset_that_cannot_be_learned_from_is_refused_and_leaves_nothing_behind(
    case: str, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, flags, parts = DATASETS[case]
    harm(datasets)
    result = refused(train_words(tmp_path / "run", *flags), capsys)
    holds(result, *parts)
    assert not (tmp_path / "run").exists()


def test_a_dataset_that_names_no_environment_is_taken_with_the_one_that_is_given(
    datasets: Path, tmp_path: Path
) -> None:
    edit_metadata(datasets, drawbridge={}, env_spec=None)
    assert main(train_words(tmp_path / "run", "--env", ENV, algorithm="bc")) == 0
    assert read(tmp_path / "run" / "summary.json")["env"] == ENV


def test_refused_episodes_are_counted_by_reason_and_told_when_training_begins(
    datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil_rewards(datasets, range(2))
    shorten(datasets, range(2, 3), 1)
    assert main(train_words(tmp_path / "run")) == 0
    result = capsys.readouterr().out
    event = f"dataset {ID}: 3 of 8 episodes are refused: 2 reward not finite, 1 too short"
    assert event in result and result.index(event) < result.index("0 %")
    assert read(tmp_path / "run" / "live.json")["size_rows"] == 5 * 12


@pytest.mark.parametrize(("algorithm", "warned"), [("gac", True), ("rvs", True), ("bc", False), ("iql", False)])
def test_episodes_that_all_return_the_same_are_warned_of(
    algorithm: str, warned: bool, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(data(datasets) / "main_data.hdf5", "r+") as file:
        for index in range(8):
            file[f"episode_{index}"]["rewards"][:] = 0.25
    assert main(train_words(tmp_path / "run", algorithm=algorithm)) == 0
    result = capsys.readouterr().out
    assert (
        f"WARNING: dataset {ID} has 8 episodes, which all return 3, expected returns that differ" in result
    ) == warned


@pytest.mark.parametrize("algorithm", ["bc", "percent-bc", "dt"])
def test_episodes_of_one_step_are_learned_from_by_all_but_gac(
    algorithm: str, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shorten(datasets, range(7), 1)
    assert main(train_words(tmp_path / "run", algorithm=algorithm)) == 0
    assert "refused" not in capsys.readouterr().out
    assert read(tmp_path / "run" / "live.json")["size_rows"] == 7 + 12


def test_what_learns_from_episodes_asks_for_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for algorithm in ("gac", "bc", "percent-bc", "rvs", "dt", "odt", "iql", "td3-bc", "cql", "cal-ql", "rlpd"):
        result = refused(["train", algorithm, "--env", ENV, "--run-dir", str(tmp_path / "run")], capsys)
        holds(
            result, f"train {algorithm} without --dataset", "recorded episodes", "nothing was started", "dataset make"
        )


AIMS = {
    "a mode for bc": (
        "bc", ("--mode", "kl"), ("behaviour cloning was asked for mode kl", "expected neither", "drop them")),
    "a target for bc": (
        "bc", ("--target-return", "5"), ("asked for the return 5", "can aim at nothing", "dt or gac")),
    "a mode for dt": (
        "dt", ("--mode", "kl"), ("decision transformer was asked for mode kl", "expected none", "drop the mode")),
    "a target for dt that is no number": (
        "dt", ("--target-return", "nan"), ("target return is nan", "expected a number from -1e+09 to 1e+09")),
    "a target for rvs beyond float32": (
        "rvs", ("--target-return", "-1e308"), ("target return is -1e+308", "expected a number from -1e+09 to 1e+09")),
    "a mode for rvs": (
        "rvs", ("--mode", "kl"), ("return-conditioned regression was asked for mode kl", "expected none", "drop the mode")),
    "a mode for iql": (
        "iql", ("--mode", "kl"), ("follows values was asked for mode kl", "expected none", "drop the mode")),
    "a target for iql": (
        "iql", ("--target-return", "5"), ("follows values was asked for the return 5", "expected none", "drop the target")),
    "a target below nothing": (
        "gac", ("--mode", "st", "--target-return", "-inf"), ("target return is -inf", "expected a number from")),
    "a target that is no number": (
        "gac", ("--mode", "st", "--target-return", "inf"),
        ("target return is inf", "expected a number from -1e+09 to 1e+09", "leave it out or give a number")),
    "a target for a mode that asks for none": (
        "gac", ("--mode", "max", "--target-return", "5"),
        ("mode max was given the target return 5", "expected none", "take mode st")),
    "a target for a default mode that asks for none": (
        "gac", ("--set", "agent.infer_mode=kl", "--target-return", "5"), ("mode kl was given the target return 5", "take mode st")),
    "a setting of the model": (
        "gac", ("--set", "agent.width=32"),
        ("--set agent.width: expected fields that begin with agent.infer_", "what was trained", "leave them out")),
    "a setting that cannot work": (
        "gac", ("--set", "agent.infer_steps=0"), ("infer_steps is 0", "expected at least 1")),
}  # fmt: skip


@pytest.mark.parametrize("case", AIMS)
def test_what_cannot_be_asked_of_a_policy_is_refused_before_any_episode(
    case: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm, flags, parts = AIMS[case]
    result = refused(["evaluate", str(request.getfixturevalue(algorithm)), "--episodes", "2", *flags], capsys)
    holds(result, *parts, "nothing was evaluated")


def test_evaluate_explores_as_the_policies_do_that_gather_episodes(
    iql: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(iql, capsys, "--mode", "explore")["returns"] != evaluated(iql, capsys)["returns"]


def evaluated(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", str(run), "--episodes", "2", "--json", *flags]) == 0
    return dict(json.loads(capsys.readouterr().out))


FAR = ("--mode", "st", "--target-return", "1000")


def test_a_target_outside_the_returns_seen_is_warned_of_and_taken(
    gac: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    warned = evaluated(gac, capsys, *FAR)
    assert warned["target"] == 1000 and [one[:13] for one in warned["warnings"][1:]] == ["plans promise"]
    holds(
        warned["warnings"][0],
        "target return 1000 is outside the returns 0 to 7",
        "is a guess",
        "to stay inside",
    )
    inside = evaluated(gac, capsys, "--mode", "st", "--target-return", "5")
    assert inside["target"] == 5 and "target return" not in " ".join(inside["warnings"])


def test_the_warning_of_a_target_is_told_in_words_too(gac: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(gac), "--episodes", "2", *FAR]) == 0
    holds(capsys.readouterr().out, "warning    target return 1000 is outside the returns 0 to 7")


GO_ON_ONLINE = "expected one of gac, odt, iql, td3-bc, cql, cal-ql, rlpd, softgac, sac, "
FINETUNES: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "in an environment of other dimensions": (
        "gac", ("--env", "InvertedPendulum-v5"),
        (f"{ID} is of {ENV}", "expected InvertedPendulum-v5 (observations of 4", "nothing was started"),
    ),
    "of behaviour cloning": ("bc", (), ("is a run of bc", "no plan to explore by", GO_ON_ONLINE, "train gac on the same dataset")),
    "of a decision transformer": ("dt", (), ("is a run of dt", "no plan to explore by", "nothing was started")),
    "with --steps beside stages": ("gac", ("--steps", "100"), ("--steps 100 was given", "length is that of its stages", "give --stages")),
    "with a target that it does not ask for": (
        "iql", ("--target", "fixed"), ("--target fixed was given to a run of iql", "asks for no return", "nothing was started", "leave it out"),
    ),
    "with another network": (
        "gac", ("--set", "agent.width=32"),
        ("the networks of", "are not those asked for", "cannot be gone on from", "nothing was started", "leave out the --set agent.*"),
    ),
    "with a dataset of another environment": (
        "gac", ("--dataset", "tiny/other-v0"),
        (f"tiny/other-v0 is of another task than {ENV}", "its environment is Elsewhere-v0", "expected the same", "nothing was started",
         f"--env {ENV}"),
    ),
    "with a dataset that is not there": ("gac", ("--dataset", "tiny/swing-v0"), ("no dataset 'tiny/swing-v0'", f"nearest: {ID}")),
}  # fmt: skip


@pytest.mark.parametrize("case", FINETUNES)
def test_a_run_that_cannot_be_fine_tuned_as_asked_is_refused_and_leaves_nothing_behind(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm, flags, parts = FINETUNES[case]
    base = request.getfixturevalue(algorithm)
    write("tiny/other-v0", "Elsewhere-v0")
    result = refused(finetune_words(base, tmp_path / "run", *flags), capsys)
    holds(result, *parts)
    assert not (tmp_path / "run").exists()


def test_no_stages_to_fine_tune_in_is_a_usage_error(
    gac: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["finetune", str(gac), "--stages", "0", "--out", str(tmp_path / "run")])
    holds(capsys.readouterr().err, "--stages: '0' is not a whole number of at least 1")
    result = refused(["finetune", str(gac), "--set", "online.stages=0", "--out", str(tmp_path / "run")], capsys)
    holds(result, "online.stages is 0", "nothing would be gathered", "--stages 1 or more")


def test_a_base_run_without_a_checkpoint_or_a_dataset_is_refused(
    gac: Path, datasets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    shutil.copytree(gac, base)
    shutil.rmtree(base / "checkpoints")
    (base / "live.json").write_text("{}")  # of a run that has not learned yet
    result = refused(finetune_words(base, tmp_path / "run"), capsys)
    holds(
        result,
        f"{base} has no checkpoint",
        "nothing to go on from",
        f"go on with it by `drawbridge resume {base}`",
        "nothing was started",
    )
    result = refused(finetune_words(tmp_path / "nowhere", tmp_path / "run"), capsys)
    holds(result, "is not a run directory", "config.json")
    shutil.rmtree(datasets)
    result = refused(finetune_words(gac, tmp_path / "run"), capsys)
    holds(result, f"no dataset '{ID}'", "nothing was started", "dataset make")
    assert not (tmp_path / "run").exists()


def test_without_its_dataset_a_run_is_still_evaluated_and_says_that_scores_are_missing(
    gac: Path, datasets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(datasets)
    found = evaluated(gac, capsys)
    assert found["normalised"] is None and f"no dataset '{ID}'" in found["note"] and len(found["returns"]) == 2


CHANGING = """
    import gymnasium as gym
    from gymnasium.envs.classic_control import PendulumEnv

    class Wider(gym.ObservationWrapper):
        def __init__(self):
            super().__init__(PendulumEnv())
            self.observation_space = gym.spaces.Box(-9, 9, ({dims},))

        def observation(self, obs):
            return __import__("numpy").resize(obs, {dims})

    gym.register("Changing-v0", lambda: Wider(), max_episode_steps=200)
"""


def test_a_run_whose_environment_has_changed_since_is_neither_evaluated_nor_gone_on_from(
    gac: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The module that registers the environment gives other observations than when the run was trained."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module, env = "changing_env_of_a_test", "changing_env_of_a_test:Changing-v0"
    (tmp_path / f"{module}.py").write_text(textwrap.dedent(CHANGING.format(dims=3)))
    write("tiny/changing-v0", env)
    run = tmp_path / "run"
    try:
        assert main([*train_words(run, dataset="tiny/changing-v0"), "--env", env]) == 0
        del sys.modules[module], gym.registry["Changing-v0"]
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(CHANGING.format(dims=17)))  # longer: no stale bytecode
        result = refused([*finetune_words(run, tmp_path / "other"), "--env", env], capsys)
        holds(result, f"expected {env} (observations of 17", "nothing was started")
        assert not (tmp_path / "other").exists()
        capsys.readouterr()
        assert main(["evaluate", str(run), "--env", env]) == 1
        holds(capsys.readouterr().err, "made with another configuration", "obs_dim")
    finally:
        sys.modules.pop(module, None)
        gym.registry.pop("Changing-v0", None)


def test_an_actor_critic_is_not_fine_tuned_in_another_environment(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    assert train_inline(base, ENV, 96) == 0
    result = refused(["finetune", str(base), "--env", "InvertedPendulum-v5", "--out", str(tmp_path / "run")], capsys)
    holds(result, f"{base} cannot be gone on from", "another configuration", "Nothing was started")
    result = refused(["finetune", str(base), "--stages", "2", "--out", str(tmp_path / "run")], capsys)
    holds(result, "online.stages was given to a run of softgac", "no stages", "give --steps")
    assert not (tmp_path / "run").exists()


WITHOUT = """
    import json, sys
    for name in json.loads(sys.argv[1]):
        sys.modules[name] = None  # as if it were not installed: importing it is an ImportError
    from cluster.cli import main
    for words in json.loads(sys.argv[2]):
        print("code", main(words))
        print("told", file=sys.stderr, flush=True)
"""


def test_missing_packages_are_named_with_what_to_install_and_stop_nothing_else(datasets: Path, tmp_path: Path) -> None:
    """One process without h5py and gymnasium-robotics, which both stand for a bare installation."""
    maze = ["dataset", "make", "maze", "--env", "PointMaze_UMaze-v3", "--episodes", "2"]
    train = train_words(tmp_path / "run")
    words = [
        ["dataset", "list"],
        ["dataset", "show", ID],
        train,
        maze,
        ["train", "softgac", "--env", "FixedGoal/PointMaze_UMaze-v3", "--run-dir", str(tmp_path / "run")],
    ]
    argv = [json.dumps(["h5py", "gymnasium_robotics"]), json.dumps(words)]
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(WITHOUT), *argv], capture_output=True, text=True, timeout=120, cwd=ROOT)  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 0", *["code 2"] * 4], (
        done.stderr
    )
    _, show, trained, made, robotics, _ = done.stderr.split("told\n")
    assert ID in done.stdout and "Traceback" not in done.stderr
    for result in (show, trained):
        holds(result, f"{ID} is stored as hdf5, which needs h5py", "nothing was read", "pip install h5py")
    for result in (made, robotics):
        holds(result, "gymnasium-robotics", "is not installed", "pip install -c constraints.txt gymnasium-robotics")
    assert not (tmp_path / "run").exists()


def test_an_offline_run_that_was_killed_is_lost_and_goes_on_from_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = train_words(run, algorithm="bc", steps=1_000_000, learner__checkpoint_s=0.3, metrics__line_s=0.1)
    process = start(*words, log=tmp_path / "log")
    try:
        wait_for(lambda: checkpoint.exists(run / "checkpoints"), "a checkpoint", log=tmp_path / "log")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert main(["status", str(run)]) == 0
    holds(capsys.readouterr().out, "lost", f"go on with `drawbridge resume {run}`")
    found = checkpoint.load_newest(run / "checkpoints", {})
    assert found is not None
    steps = found.meta["updates"] + 50
    assert main(["resume", str(run), "--steps", str(steps)]) == 0
    assert steps <= read(run / "summary.json")["updates"] < steps + 10


def test_a_run_that_was_killed_before_its_first_checkpoint_was_whole_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a checkpoint is none: the model is fitted to the dataset, and the base run's weights are taken, once more."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(train_words(whole)) == 0
    shutil.copytree(whole, run)
    (kept,) = (run / "checkpoints").iterdir()
    shutil.rmtree(run / "replay")
    (run / "summary.json").unlink()
    (run / "replay").mkdir()
    kept.rename(kept.with_name(".tmp-checkpoint-half"))
    killed = read(run / "live.json") | {"written_checkpoints": 0, "written_snapshots": 0}
    (run / "live.json").write_text(json.dumps(killed))
    assert main(["resume", str(run)]) == 0
    assert read(run / "summary.json")["eval_return_mean"] == read(whole / "summary.json")["eval_return_mean"]


def test_a_target_of_exploration_may_be_set_taken_back_and_written_down() -> None:
    preset = make_preset("gac", "cpu")
    assert preset.agent.explore_return is None
    wanted = override(preset, {"agent.explore_return": "-150.5"})
    assert wanted.agent.explore_return == -150.5
    assert override(wanted, {"agent.explore_return": "none"}) == preset
    for config in (preset, wanted):
        assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    "algorithm", ["gac", "bc", "percent-bc", "rvs", "dt", "odt", "iql", "td3-bc", "cql", "cal-ql", "rlpd"]
)
@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_every_field_of_every_preset_takes_its_own_value_as_text(algorithm: str, preset: str) -> None:
    config = make_preset(algorithm, preset)
    given = {key: str(value) for key, (value, _) in flatten(config).items() if key not in ("algorithm", "preset")}
    assert override(config, given) == config


def test_a_run_directory_remembers_the_target_of_exploration(tmp_path: Path) -> None:
    config = override(make_preset("gac", "cpu"), {"env": ENV, "agent.explore_return": "12"})
    run = RunDirectory.create(tmp_path / "run", config)
    run.release()
    assert RunDirectory.open(tmp_path / "run").config() == config


@pytest.mark.parametrize("algorithm", ["bc", "rvs", "iql", "softgac"])
def test_a_mode_of_planning_is_refused_before_a_run_that_makes_no_plans_starts(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--env", "Pendulum-v1"] if algorithm == "softgac" else ["--dataset", ID]
    words = ["train", algorithm, *task, "--run-dir", str(tmp_path / "run"), "--set", "evaluation.mode=kl"]
    said = refused(words, capsys)
    holds(said, f"evaluation.mode is kl for {algorithm}, expected none", "makes no plans", "nothing was started")
    assert not (tmp_path / "run").exists()
