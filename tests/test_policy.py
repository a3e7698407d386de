"""``drawbridge.load``: a run's policy acts in a user's own loop as it does in evaluations."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gymnasium.spaces import Box, Dict
from tiny_episodes import ENV, TINY, TINY_CLONE, TINY_GAC, make_dataset
from tiny_runs import ROOT
from tiny_runs import TINY as TINY_ONLINE

import drawbridge
from algorithms import fourier
from cluster.cli import main
from cluster.export import export_policy, leaves
from rollout_workers.env import ActionBox
from rollout_workers.envs import make_env

SMALL = {"steps": 100, "backend": "inline", "metrics.port": -1, "evaluation.final_episodes": 1}
ONLINE = {key: value for key, value in TINY_ONLINE.items() if "bridge" not in key} | SMALL


MAZE = "PointMaze_UMaze-v3"  # its observations are Dicts
AGENT = {
    "gac": TINY_GAC,
    "bc": TINY_CLONE,
    "percent-bc": TINY_CLONE,
    "iql": TINY_CLONE,
    "rvs": TINY_CLONE,
    "dt": TINY_CLONE | {"agent.heads": 1, "agent.context": 4},
}


def online(run: Path, algorithm: str, env: str) -> Path:
    bridge = {key: value for key, value in TINY_ONLINE.items() if "bridge" in key and algorithm == "softgac"}
    return drawbridge.train(algorithm, env, run=run, settings=ONLINE | bridge)


class Runs(dict[str, Path]):
    """A run of each algorithm on Pendulum by name, trained when it is first asked for."""

    def __init__(self, root: Path, dataset: str) -> None:
        self._root, self._dataset = root, dataset

    def __missing__(self, name: str) -> Path:
        path = self._root / name
        if name == "maze":
            self[name] = online(path, "softgac", MAZE)
        elif name in AGENT:
            settings = TINY | AGENT[name] | SMALL | {"steps": 10, "metrics.line_s": 1_000}
            self[name] = drawbridge.train(name, dataset=self._dataset, run=path, settings=settings)
        else:
            self[name] = online(path, name, ENV)
        return self[name]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    root = tmp_path_factory.mktemp("policies")
    with pytest.MonkeyPatch.context() as patch:
        yield Runs(root, make_dataset(root / "datasets", patch))


def returns(policy: Any, env_id: str, episodes: int, seed: int = 10_000) -> list[float]:
    """Undiscounted returns of episodes side by side, as a user writes the loop."""
    envs = [make_env(env_id) for _ in range(episodes)]
    obs = [env.reset(seed=seed + i)[0] for i, env in enumerate(envs)]
    policy.reset(seed)
    total, reward, running = np.zeros(episodes), np.zeros(episodes), True
    while running:
        steps = [env.step(action) for env, action in zip(envs, policy(np.array(obs), reward))]
        obs, reward = [step[0] for step in steps], np.array([float(step[1]) for step in steps])
        total += reward
        running = not (steps[0][2] or steps[0][3])
    return total.tolist()


def test_importing_names_the_api_and_imports_nothing_else() -> None:
    script = (
        "import sys, drawbridge\n"
        "print(sorted({'numpy', 'torch', 'ray', 'gymnasium', 'cluster', 'algorithms'} & set(sys.modules)))\n"
        "print(all(getattr(drawbridge, name).__doc__ for name in drawbridge.__all__), *drawbridge.__all__)"
    )
    # -S: site-packages and the editable install's finder stay out, so what is seen was imported by the module.
    ended = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stdout.splitlines() == ["[]", "True evaluate load make_dataset train"], ended.stderr


@pytest.mark.parametrize("name", ["softgac", "sac", "bc", "rvs", "dt", "gac"])
def test_episodes_in_a_loop_of_ones_own_equal_those_of_an_evaluation(runs: Runs, name: str) -> None:
    for mode in ("prior", "st", "kl", "max") if name == "gac" else (None,):
        policy = drawbridge.load(runs[name], mode=mode)
        assert returns(policy, ENV, 2) == drawbridge.evaluate(runs[name], episodes=2, mode=mode)["returns"]
    assert policy.algorithm == name and policy.env == ENV and policy.updates > 0
    assert policy.remembers == (name in ("rvs", "dt", "gac")) and policy.needs_reward == (name == "dt")


@pytest.mark.parametrize("name", ["softgac", "sac", "qvpo"])
def test_one_observation_and_many_have_the_same_actions_and_a_seed_repeats_what_is_sampled(
    runs: Runs, name: str
) -> None:
    policy = drawbridge.load(runs[name], seed=3)
    obs_EO = np.random.default_rng(0).normal(size=(4, 3))  # float64, as many environments have it
    action_EA = policy(obs_EO)
    assert action_EA.shape == (4, 1) and action_EA.dtype == policy.action_space.dtype and (np.abs(action_EA) <= 2).all()
    np.testing.assert_array_equal(np.stack([policy(obs_O) for obs_O in obs_EO]), action_EA)
    sampled_EA = policy(obs_EO, sample=True)
    # Not "in every row": a denoiser clips, so two of its draws can lie at one edge of the box.
    assert (sampled_EA != action_EA).any() and (policy(obs_EO, sample=True) != sampled_EA).any()
    policy.reset(3)
    np.testing.assert_array_equal(policy(obs_EO, sample=True), sampled_EA)
    np.testing.assert_array_equal(policy(obs_EO), action_EA)
    assert policy(obs_EO[0], sample=True).shape == (1,)


def test_dict_observations_are_taken_as_the_environment_gives_them_one_or_many(runs: Runs) -> None:
    policy, env = drawbridge.load(runs["maze"]), make_env(MAZE)
    seen = [env.reset(seed=i)[0] for i in range(3)]
    action_EA = policy({key: np.stack([obs[key] for obs in seen]) for key in reversed(seen[0])})
    np.testing.assert_array_equal(np.stack([policy(obs) for obs in seen]), action_EA)
    assert env.action_space.contains(action_EA[0])
    with pytest.raises(
        ValueError, match=r"expected a mapping with the keys \['achieved_goal', 'desired_goal', 'observation'\]"
    ):
        policy({"observation": seen[0]["observation"]})
    with pytest.raises(ValueError, match=r"has parts of .* expected one observation, or the same number"):
        policy(seen[0] | {"desired_goal": np.zeros((2, 2))})


def test_an_episode_that_begins_later_is_planned_anew_and_leaves_the_others_alone(runs: Runs) -> None:
    one, other = drawbridge.load(runs["gac"], mode="prior"), drawbridge.load(runs["gac"], mode="prior")
    obs_EO = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_array_equal(one(obs_EO), other(obs_EO))
    begun_EA, went_on_EA = one(obs_EO, begins=[True, False]), other(obs_EO)
    assert begun_EA[0] != went_on_EA[0]
    np.testing.assert_array_equal(begun_EA[1], went_on_EA[1])


def test_what_cannot_be_answered_says_what_was_seen_expected_its_consequence_and_the_fix(
    runs: Runs, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"is not a run directory .*; nothing was done; give the directory"):
        drawbridge.load(tmp_path)
    with pytest.raises(ValueError, match=r"mode st .* policy that makes no plans, expected neither: .* leave"):
        drawbridge.load(runs["softgac"], mode="st")
    with pytest.raises(ValueError, match="behaviour cloning was asked for the return 3, expected neither"):
        drawbridge.load(runs["bc"], target_return=3.0)
    with pytest.raises(ValueError, match="mode kl was given the target return"):
        drawbridge.load(runs["gac"], mode="kl", target_return=3.0)
    policy, obs_O = drawbridge.load(runs["softgac"]), np.zeros(3)
    with pytest.raises(
        ValueError, match=r"has shape \(2,\), expected \(3,\) or \(batch, 3\): no action was taken; give"
    ):
        policy(obs_O[:2])
    with pytest.raises(ValueError, match=r"has NaN or infinity in rows \[1\], expected finite numbers"):
        policy(np.array([obs_O, obs_O * np.nan]))
    with pytest.raises(ValueError, match="has parts of 0 observations"):
        policy(np.zeros((0, 3)))
    for name in ("bc", "gac"):
        with pytest.raises(ValueError, match=r"sample=True was asked of a policy of .*, expected softgac, sac"):
            drawbridge.load(runs[name])(obs_O, sample=True)
    remembering = drawbridge.load(runs["dt"])
    remembering(obs_O)
    with pytest.raises(ValueError, match=r"no reward was given, .* call policy\(obs, reward\)"):
        remembering(obs_O)
    with pytest.raises(ValueError, match=r"2 observations, expected 1 as in the call before"):
        remembering(np.zeros((2, 3)), np.zeros(2))
    with pytest.raises(ValueError, match=r"reward has shape \(2,\), expected \(1,\)"):
        remembering(obs_O, np.zeros(2))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda run: drawbridge.load(3), "run is '3' (int), expected a path"),
        (lambda run: drawbridge.load(None), "run is 'None' (NoneType), expected a path"),
        (lambda run: drawbridge.load(""), "run is '' (str), expected a path"),
        (lambda run: drawbridge.load(run, env=3), "env is '3' (int), expected a text, or None"),
        (lambda run: drawbridge.load(run, mode=3), "mode is '3' (int), expected a text, or None"),
        (lambda run: drawbridge.load(run, target_return="x"), "target_return is 'x' (str), expected a finite number"),
        (lambda run: drawbridge.load(run, target_return=np.nan), "target_return is 'nan' (float), expected a finite"),
        (lambda run: drawbridge.load(run, seed=-1), "seed is '-1' (int), expected a whole number from 0 to"),
        (lambda run: drawbridge.load(run).reset(seed="x"), "seed is 'x' (str), expected a whole number from 0 to"),
        (lambda run: drawbridge.load(run).reset(seed=-1), "seed is '-1' (int), expected a whole number from 0 to"),
        (lambda run: drawbridge.load(run)(np.full(3, 1e200)), "(as float32, which ends at 3.4e38)"),
        (lambda run: drawbridge.evaluate(3), "run is '3' (int), expected a path"),
        (lambda run: drawbridge.evaluate(run, episodes="a"), "episodes is 'a' (str), expected a whole number from 1"),
        (lambda run: drawbridge.evaluate(run, episodes=0), "episodes is '0' (int), expected a whole number from 1"),
        (lambda run: drawbridge.evaluate(run, episodes=True), "episodes is 'True' (bool), expected a whole number"),
        (lambda run: drawbridge.evaluate(run, seed=-1), "seed is '-1' (int), expected a whole number from 0 to"),
        (lambda run: drawbridge.evaluate(run, seed=1.5), "seed is '1.5' (float), expected a whole number from 0 to"),
        (lambda run: drawbridge.train(3, "Pendulum-v1"), "algorithm is '3' (int), expected a text"),
        (lambda run: drawbridge.train("no", "Pendulum-v1"), "'no'"),
        (lambda run: drawbridge.train("sac", 3), "env is '3' (int), expected a text, or None"),
        (lambda run: drawbridge.train("sac", "Pendulum-v1", preset=3), "preset is '3' (int), expected a text"),
        (lambda run: drawbridge.train("sac", "Pendulum-v1", run=3), "run is '3' (int), expected a path"),
        (lambda run: drawbridge.train("sac", "Pendulum-v1", settings=3), "settings is '3' (int), expected a mapping"),
        (lambda run: drawbridge.train("sac", "Pendulum-v1", env_kwargs=[1]), "env_kwargs is '[1]' (list), expected a"),
        (lambda run: drawbridge.make_dataset(3, episodes=1), "source is '3' (int), expected a path"),
        (lambda run: drawbridge.make_dataset(run, kind="best", episodes=1), "'best'"),
        (lambda run: drawbridge.make_dataset(run, kind="expert", episodes=None), "episodes is 'None' (NoneType), exp"),
        (lambda run: drawbridge.make_dataset("PointMaze_UMaze-v3", episodes=1, noise=-1), "noise is '-1' (int), exp"),
    ],
)
def test_a_value_that_cannot_be_meant_is_a_value_error_that_names_it(call: Any, expected: str, runs: Runs) -> None:
    with warnings.catch_warnings(), pytest.raises(ValueError, match=re.escape(expected)):
        warnings.simplefilter("error")  # numpy's own words about a number too large for float32
        call(runs["softgac"])


def test_numpys_numbers_are_numbers(runs: Runs) -> None:
    policy = drawbridge.load(runs["softgac"], seed=np.int64(3))
    policy.reset(np.uint8(3))
    assert len(drawbridge.evaluate(runs["softgac"], episodes=np.int32(1), seed=np.int64(1))["returns"]) == 1


def test_a_dataset_is_made_of_a_runs_policy(runs: Runs) -> None:
    assert drawbridge.make_dataset(runs["sac"], kind="expert", episodes=1) == "drawbridge/pendulum-expert-v0"


ELSEWHERE = """
import json, sys
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
inputs = {name: np.array(part, np.float32) for name, part in json.load(sys.stdin).items()}
(action,) = session.run(None, inputs)
assert not {"torch", "onnx", "gymnasium", "cluster", "algorithms"} & set(sys.modules), sys.modules
print(json.dumps(action.tolist()))
"""


def elsewhere(file: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What an ONNX file answers in a process that has numpy and onnxruntime alone, at a place without this project."""
    words = [sys.executable, "-I", "-c", ELSEWHERE, str(file)]
    given = json.dumps({name: part.tolist() for name, part in inputs.items()})
    ended = subprocess.run(words, input=given, capture_output=True, text=True, cwd=file.parent, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return np.array(json.loads(ended.stdout))


@pytest.mark.parametrize("name", ["maze", "sac", "bc", "iql"])
def test_an_exported_graph_acts_elsewhere_as_the_policy_does_here(runs: Runs, name: str, tmp_path: Path) -> None:
    policy, file = drawbridge.load(runs[name]), tmp_path / "policy.onnx"
    assert main(["export", str(runs[name]), "--onnx", str(file)]) == 0
    (opset,) = onnx.load(file).opset_import
    assert opset.version == 18
    draw, parts = np.random.default_rng(1), leaves(policy.observation_space)
    obs = {part: 3 * draw.standard_normal((5, *shape), np.float32) for part, shape in parts}
    expected = policy(obs if name == "maze" else obs["obs"])
    np.testing.assert_allclose(elsewhere(file, obs), expected, atol=2e-6)
    assert np.ptp(expected) > 0.01


@pytest.mark.parametrize("name", ["softgac", "sac", "bc", "percent-bc", "iql"])
def test_an_exported_torch_program_acts_as_the_policy_does_for_any_number_of_rows(
    runs: Runs, name: str, tmp_path: Path
) -> None:
    run, file = runs[name], tmp_path / "policy.pt2"
    fourier._spread.cache_clear()  # as in a process of its own
    assert main(["export", str(run), "--torch", str(file)]) == 0
    policy = drawbridge.load(run)
    program = torch.export.load(file).module()
    for rows in (1, 2, 7):
        obs_BO = np.random.default_rng(rows).standard_normal((rows, 3), np.float32)
        np.testing.assert_allclose(program(torch.from_numpy(obs_BO)).detach().numpy(), policy(obs_BO), atol=2e-6)


def test_a_graph_reaches_the_ends_of_an_action_box_of_another_type(runs: Runs, tmp_path: Path) -> None:
    policy = drawbridge.load(runs["sac"])
    policy.box = ActionBox(Box(-0.7, 3.1, (1,), np.float64), "box")
    export_policy(policy, tmp_path / "policy.onnx", None)
    obs_BO = np.array([[50.0, 0, 0], [-50, 0, 0], [0, 50, 0], [0, -50, 0]], np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
    (action,) = session.run(None, {"obs": obs_BO})
    assert action.dtype == np.float64 and action.min() >= -0.7 and action.max() <= 3.1
    np.testing.assert_allclose(action, policy(obs_BO), atol=1e-5)


@pytest.mark.parametrize("name", ["sac", "softgac"])
def test_parts_whose_names_are_taken_get_others_in_a_file_and_the_command_says_which(
    runs: Runs, name: str, tmp_path: Path
) -> None:
    policy, one = drawbridge.load(runs[name]), Box(-1, 1, (1,), np.float32)
    obs_BO = 3 * np.random.default_rng(0).standard_normal((5, 3), np.float32)
    expected = policy(obs_BO)
    for keys, names in (
        ({"action": one, "action_2": one, "noise": one}, ["action_2", "action_2_2", "noise"]),
        ({"a.b": one, "a": Dict({"b": one}), "obs": one}, ["a.b", "a.b_2", "obs"]),
        ({"policy/obs": one, "policy/noise": one, "/policy/": one}, ["/policy/", "policy/noise", "policy/obs"]),
    ):
        policy.observation_space = Dict(keys)
        program_path = tmp_path / "policy.pt2" if "a.b" in keys else None
        lines = export_policy(policy, tmp_path / "policy.onnx", program_path)
        session = onnxruntime.InferenceSession(tmp_path / "policy.onnx", providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_inputs()] == names
        columns = np.split(obs_BO, 3, axis=1)
        (action,) = session.run(None, dict(zip(names, columns)))
        np.testing.assert_allclose(action, expected, atol=2e-6)
        if program_path:
            action = torch.export.load(program_path).module()(*map(torch.from_numpy, columns)).detach().numpy()
            np.testing.assert_allclose(action, expected, atol=2e-6)
            assert all("a.b_2 is the part ['a.b'] of an observation, whose own name is taken" in line for line in lines)
        assert ("own name is taken" in lines[0]) == (set(names) != {*keys})


def test_what_no_graph_holds_is_refused_by_name(runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, why in (("gac", "a plan, searched"), ("rvs", "the return that was"), ("dt", "a window of steps")):
        run = str(runs[name])
        capsys.readouterr()
        assert main(["export", run, "--onnx", str(tmp_path / "x.onnx")]) == 2
        result = capsys.readouterr().err
        assert f"is a run of {name}, expected bc, percent-bc, softgac, sac" in result and why in result
    assert main(["export", run]) == 2 and not list(tmp_path.iterdir())
    assert "neither --onnx nor --torch was given" in capsys.readouterr().err
