"""The RLlib face: what an RLlib user does with an Algorithm works, on this project's fleet."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import ray
import torch
from ray import tune
from ray.rllib.algorithms.callbacks import DefaultCallbacks
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune import register_env
from safetensors.numpy import load_file
from tiny_runs import TINY, newest_manifest

from algorithms import ALGORITHMS
from cluster.cli import main
from cluster.errors import RunError, UsageError
from cluster.rllib import SAC, FleetAlgorithm, FleetConfig, PolicyModule, SoftGAC, SoftGACConfig
from cluster.rllib.config import ENDLESS
from cluster.rllib.methods import CONFIGS
from cluster.run_dir import RunDirectory
from learners import checkpoint
from replay.limiter import feasible_tolerance

pytestmark = pytest.mark.cluster

SETTINGS = {key: value for key, value in TINY.items() if not key.startswith("evaluation")} | {"worker.cpus": 0.25}
CHUNK_ROWS = 4 * 4  # environments x steps


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, num_cpus=4, object_store_memory=200_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def tiny(env: str = "Pendulum-v1", runners: int = 0, steps: int = 160, **settings: Any) -> SoftGACConfig:
    config = SoftGACConfig().environment(env).env_runners(num_env_runners=runners, num_envs_per_env_runner=4)
    given = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    return config.training(set=given, env_steps_per_iteration=steps).evaluation(evaluation_duration=2).debugging(seed=5)


@pytest.fixture
def inline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Builds algorithms in this process, and stops them."""
    built: list[FleetAlgorithm] = []

    def build(config: FleetConfig | None = None) -> Any:
        built.append((config or tiny()).build_algo())
        return built[-1]

    yield build
    for algorithm in built:
        algorithm.stop()


def learner_state(saved: str) -> dict[str, torch.Tensor]:
    """The learner's tensors in a saved checkpoint, without the counters that a new generation of the weights moves."""
    found = checkpoint.load_newest(Path(saved) / "checkpoints", {})
    assert found is not None
    moved = ("version", "generation", "published_updates")
    return {name: t for name, t in found.tensors.items() if name.startswith("learner/") and not name.endswith(moved)}


def replay_rows(saved: str) -> np.ndarray:
    """The packed rows of all shards in the newest snapshots of a saved checkpoint; slots that were never written are zeros."""
    shards = sorted(Path(saved).glob("replay/shard-*"))
    segments = [shard / entry["file"] for shard in shards for entry in newest_manifest(shard)["segments"]]
    return np.concatenate([load_file(path)["rows"] for path in segments])


def settle(algorithm: FleetAlgorithm, batch: int = 32, block: int = 8, min_size: int = 64) -> int:
    """Waits until the learner has made every update that the replay ratio of 1 allows; returns their number."""
    tolerance = feasible_tolerance(chunk_rows=CHUNK_ROWS, block_rows=block * batch, samples_per_insert=batch)
    deadline = time.monotonic() + 60
    with algorithm._driving() as session:
        allowed = (session.env_steps - min_size + tolerance) // block * block
        while session.aggregator.updates < allowed:
            assert time.monotonic() < deadline, f"{session.aggregator.updates} of {allowed} updates after a minute"
            session.advance()
        return allowed


# --- on Ray -----------------------------------------------------------------------------------------------------------


def test_halfcheetah_trains_evaluates_saves_and_goes_on_from_the_checkpoint_on_ray(
    cluster: None, tmp_path: Path
) -> None:
    algo = tiny("HalfCheetah-v5", runners=2, steps=300).build_algo()
    try:
        first, second = algo.train(), algo.train()
        steps = second["num_env_steps_sampled_lifetime"]
        assert 300 <= first["num_env_steps_sampled_lifetime"] < 300 + CHUNK_ROWS * 2
        assert 300 <= second["env_runners"]["num_env_steps_sampled"] < 300 + CHUNK_ROWS
        evaluated = algo.evaluate()["env_runners"]
        assert evaluated["num_episodes"] == 2 and evaluated["episode_len_mean"] == 1000
        updates = settle(algo)
        with algo._driving() as session:
            assert session.env_steps == steps, "the fleet went on between two calls"
        saved = algo.save_to_path(tmp_path / "saved")
        assert not list(Path(saved).rglob("*.pkl"))
    finally:
        algo.stop()
    assert ray.is_initialized(), "stop() ended a cluster that was not its own"

    again = SoftGAC.from_checkpoint(saved)
    try:
        assert again.training_iteration == 2
        resaved = again.save_to_path(tmp_path / "resaved")
        before, after = learner_state(saved), learner_state(resaved)
        assert before.keys() == after.keys() and any("alpha" in name for name in before)
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        assert np.count_nonzero(replay_rows(saved).any(axis=1)) == steps
        np.testing.assert_array_equal(replay_rows(saved), replay_rows(resaved))
        result = again.train()
        assert result["training_iteration"] == 3
        assert result["num_env_steps_sampled_lifetime"] >= steps + 300
        assert result["learners"]["default_policy"]["num_grad_updates_lifetime"] > updates
    finally:
        again.stop()


def test_a_tune_sweep_of_two_trials_runs_its_workers_outside_of_the_trials_placement_groups(
    cluster: None, tmp_path: Path
) -> None:
    config = tiny(runners=1, steps=200).training(set={"agent.rho": tune.grid_search([0.1, 0.2])})
    config.env_runners(num_envs_per_env_runner=1)  # episodes of 200 steps end in the second iteration
    results = tune.Tuner(
        SoftGAC,
        param_space=config,
        run_config=tune.RunConfig(
            storage_path=str(tmp_path),
            stop={"training_iteration": 2},
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=True),
            verbose=0,
        ),
    ).fit()
    assert not results.errors and len(results) == 2
    assert [result.metrics["training_iteration"] for result in results] == [2, 2]
    assert {result.config["fleet_settings"]["agent.rho"] for result in results} == {0.1, 0.2}
    assert all(400 <= result.metrics["num_env_steps_sampled_lifetime"] < 500 for result in results)
    best = results.get_best_result("env_runners/episode_return_mean", "max")
    algo = SoftGAC.from_checkpoint(best.checkpoint)
    assert algo.training_iteration == 2
    algo.stop()


def test_an_actor_of_the_fleet_escapes_the_placement_group_that_captures_its_trial(cluster: None) -> None:
    from ray.util.placement_group import get_current_placement_group, placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    class Part:
        def captured(self) -> bool:
            return get_current_placement_group() is not None

    class Trial:
        def parts(self) -> tuple[bool, bool]:
            from cluster.remote import make_actor

            part = make_actor(Part, num_cpus=0.5).remote()
            return get_current_placement_group() is not None, ray.get(part.captured.remote(), timeout=30)

    group = placement_group([{"CPU": 0.1}])
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
    trial = ray.remote(Trial).options(num_cpus=0.1, scheduling_strategy=strategy).remote()
    assert ray.get(trial.parts.remote(), timeout=60) == (True, False)
    ray.kill(trial)
    remove_placement_group(group)


# --- in this process --------------------------------------------------------------------------------------------------


def test_train_gives_rllibs_keys(inline: Any) -> None:
    algo = inline()
    first = algo.train()
    assert math.isnan(first["env_runners"]["episode_return_mean"]), (
        "an episode of Pendulum has 200 steps, 4 run at once"
    )
    for _ in range(4):
        result = algo.train()
    runners, learner = result["env_runners"], result["learners"]["default_policy"]
    assert result["num_env_steps_sampled_lifetime"] == runners["num_env_steps_sampled_lifetime"] >= 800
    assert runners["episode_return_min"] <= runners["episode_return_mean"] <= runners["episode_return_max"] < 0
    assert runners["episode_len_mean"] == 200
    assert learner["alpha"] > 0 and learner["num_grad_updates_lifetime"] == result["custom_metrics"]["updates"] > 0
    assert result["learners"]["__all_modules__"]["num_env_steps_trained"] == 32 * learner["num_grad_updates"]
    assert result["replay_buffer"]["num_env_steps_stored"] == 800
    assert result["training_iteration"] == 5 and result["done"] is False


def test_evaluation_is_deterministic_and_comes_at_its_interval(inline: Any) -> None:
    algo = inline(tiny().evaluation(evaluation_interval=2, evaluation_duration=3))
    assert "evaluation" not in algo.train()
    during = algo.train()["evaluation"]["env_runners"]
    after = algo.evaluate()["env_runners"]
    assert during["episode_returns"] == after["episode_returns"] and after["num_episodes"] == 3


def test_a_call_after_stop_says_what_ended_the_run(inline: Any) -> None:
    algo = inline()
    algo.train()
    algo.stop()
    with pytest.raises(RunError, match=r"was ended by stop\(\) .*summary.json.*go on from its newest checkpoint"):
        algo.train()


def test_a_restored_run_continues_exactly_as_if_it_had_never_stopped(inline: Any, tmp_path: Path) -> None:
    algo = inline(tiny(steps=80))
    algo.train()
    saved = algo.save_to_path(tmp_path / "saved")
    straight = [algo.train() for _ in range(2)][-1]
    again = SoftGAC.from_checkpoint(saved)
    resumed = [again.train() for _ in range(2)][-1]
    states = [learner_state(each.save_to_path(tmp_path / str(i))) for i, each in enumerate((algo, again))]
    again.stop()
    assert resumed["num_env_steps_sampled_lifetime"] == straight["num_env_steps_sampled_lifetime"]
    assert resumed["training_iteration"] == straight["training_iteration"] == 3
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    np.testing.assert_array_equal(replay_rows(str(tmp_path / "0")), replay_rows(str(tmp_path / "1")))


def test_a_restore_replaces_what_a_running_algorithm_did_since(inline: Any, tmp_path: Path) -> None:
    algo = inline()
    algo.train()
    saved, weights = algo.save_to_path(tmp_path / "saved"), algo.get_weights()["default_policy"]
    algo.train()
    algo.restore_from_path(saved)
    assert algo.training_iteration == 1
    assert all(np.array_equal(value, weights[name]) for name, value in algo.get_weights()["default_policy"].items())
    assert algo.train()["num_env_steps_sampled_lifetime"] == 320


def test_a_restored_run_may_go_on_with_other_settings(inline: Any, tmp_path: Path) -> None:
    algo = inline()
    algo.train()
    again = SoftGAC.from_checkpoint(algo.save_to_path(), config=tiny(steps=48))
    assert again.train()["num_env_steps_sampled_lifetime"] == 208
    again.stop()


def test_the_module_acts_like_the_policy_and_its_actions_fit_the_environment(inline: Any) -> None:
    algo = inline()
    algo.train()
    module, env = algo.get_module(), gym.make("Pendulum-v1")
    obs_BO = np.stack([env.reset(seed=seed)[0] for seed in range(3)])
    acted = module.forward_inference({"obs": torch.from_numpy(obs_BO)})
    assert acted["actions"].shape == (3, 1) and acted["actions"].abs().max() <= 1
    torch.testing.assert_close(acted["actions_for_env"], 2 * acted["actions"])
    action = algo.compute_single_action(obs_BO[0])
    assert env.action_space.contains(action)
    np.testing.assert_allclose(action, acted["actions_for_env"][0], atol=1e-5)
    assert not np.array_equal(algo.compute_single_action(obs_BO[0], explore=True), action)
    assert algo.get_module("another") is None
    before = action.copy()
    algo.train()
    assert not np.array_equal(algo.compute_single_action(obs_BO[0]), before), "the module kept old weights"
    env.close()


def test_the_module_can_be_built_from_a_spec_and_a_state_alone(inline: Any) -> None:
    algo = inline()
    algo.train()
    module = algo.get_module()
    twin = RLModuleSpec(
        module_class=PolicyModule,
        observation_space=module.observation_space,
        action_space=module.action_space,
        model_config=module.model_config,
    ).build()
    twin.set_state(module.get_state())
    batch = {"obs": np.ones((2, 3), np.float32)}
    assert torch.equal(twin.forward_inference(batch)["actions"], module.forward_inference(batch)["actions"])
    with pytest.raises(ValueError, match="missing"):
        twin.set_state({})


def test_callbacks_of_the_driver_are_called(inline: Any) -> None:
    class Notes(DefaultCallbacks):
        def on_evaluate_end(self, *, algorithm: Any, evaluation_metrics: dict[str, Any], **kwargs: Any) -> None:
            algorithm.seen = evaluation_metrics

        def on_train_result(self, *, algorithm: Any, result: dict[str, Any], **kwargs: Any) -> None:
            result["noted"] = True

    algo = inline(tiny().callbacks(Notes))
    assert algo.train()["noted"]
    assert algo.evaluate() == algo.seen


@pytest.mark.parametrize("name", ["sac", "flowrl", "qvpo"])
def test_another_method_goes_on_exactly_from_its_checkpoint_which_softgac_refuses(
    name: str, inline: Any, tmp_path: Path
) -> None:
    settings = {key: value for key, value in SETTINGS.items() if not key.startswith("agent.bridge")}
    config = next(face for face in CONFIGS if face.algorithm == name)().environment("Pendulum-v1")
    config = config.env_runners(num_env_runners=0).debugging(seed=5)
    algo = inline(config.training(set=settings | {"agent.actor_width": 16}, env_steps_per_iteration=80))
    assert algo.train()["num_env_steps_sampled_lifetime"] >= 80
    saved, obs_O = algo.save_to_path(tmp_path / "saved"), np.array([0.5, -0.5, 1.0], np.float32)
    with pytest.raises(UsageError, match=f"checkpoint of '{name}'"):
        SoftGAC.from_checkpoint(saved)
    again = type(algo).from_checkpoint(saved)
    assert np.array_equal(again.compute_single_action(obs_O), algo.compute_single_action(obs_O))
    for each in (algo, again):
        each.train()
    straight, resumed = (learner_state(each.save_to_path(tmp_path / str(i))) for i, each in enumerate((algo, again)))
    again.stop()
    assert straight["learner/updates"] > 0 and all(torch.equal(straight[key], resumed[key]) for key in straight)


def test_every_method_has_a_face_of_its_own() -> None:
    faces = {config.algorithm: config().environment("Pendulum-v1") for config in CONFIGS}
    assert list(faces) == [name for name, algorithm in ALGORITHMS.items() if algorithm.online == "always"]
    for name, face in faces.items():
        assert face.run_config().algorithm == name and face.algo_class is face.face()
        assert face.algo_class.get_default_config().algorithm == name


def test_the_page_lists_the_class_and_the_configuration_of_every_method() -> None:
    page = (Path(__file__).parents[1] / "docs" / "rllib.md").read_text()
    rows = re.findall(r"(?m)^\| ([\w-]+) \| `(\w+)` \| `(\w+)` \|$", page)
    assert rows == [(config.algorithm, config.face().__name__, config.__name__) for config in CONFIGS]


def test_a_bounded_run_is_done_with_all_its_updates(inline: Any) -> None:
    algo = inline(tiny(steps=320).training(set={"steps": 400}))
    assert algo.train()["done"] is False
    assert algo.train()["done"] is True


def test_a_stopped_run_leaves_a_run_directory_that_the_commands_read(inline: Any) -> None:
    from cluster.commands.evaluation import evaluate
    from cluster.commands.status import status

    algo = inline()
    algo.train()
    algo.stop()
    found = status(algo.run_dir)
    assert found["state"] == "ended" and found["summary"]["exit"] == "stopped"
    assert len(evaluate(algo.run_dir, 1, 0, None)["returns"]) == 1


def test_drawbridge_stop_is_obeyed_between_two_calls_and_within_one(inline: Any) -> None:
    for steps in (160, 10**9):  # a call that returns at once, and one that lasts until it is stopped
        algo, stopped = inline(tiny(steps=steps)), []
        waits = threading.Thread(target=lambda algo=algo, out=stopped: out.append(main(["stop", str(algo.run_dir)])))
        algo.get_weights()  # starts the run
        if steps == 160:
            assert algo.train()["done"] is False
            waits.start()
        else:
            waits.start()
            assert algo.train()["done"] is True
        waits.join(60)
        assert stopped == [0] and RunDirectory.open(algo.run_dir).summary()["exit"] == "interrupted"
        with pytest.raises(RunError, match="was ended by `drawbridge stop`"):
            algo.train()


# --- settings -----------------------------------------------------------------------------------------------------------


def test_rllibs_settings_reach_the_fleet() -> None:
    config = (
        SoftGACConfig()
        .environment("HalfCheetah-v5", env_config={"max_episode_steps": 50, "ctrl_cost_weight": 0.5})
        .env_runners(num_env_runners=3, num_envs_per_env_runner=6, num_cpus_per_env_runner=0.5)
        .learners(num_learners=2, num_gpus_per_learner=0)
        .training(preset="paper", gamma=0.98, set={"replay.replay_ratio": 1.5})
        .training(set={"learner.updates_per_call": 4})
        .evaluation(evaluation_duration=7)
        .debugging(seed=9)
    ).run_config()
    assert (config.worker.workers, config.worker.envs_per_worker, config.learner.learners) == (3, 6, 2)
    task = 'HalfCheetah-v5?{"ctrl_cost_weight":0.5,"max_episode_steps":50}'
    assert (config.env, config.preset, config.seed, config.backend) == (task, "paper", 9, "ray")
    assert (config.agent.gamma, config.replay.replay_ratio, config.learner.updates_per_call) == (0.98, 1.5, 4)
    assert (config.evaluation.episodes, config.evaluation.every_steps, config.steps) == (7, 0, ENDLESS)
    assert config.learner.gpus == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.training(lr=3e-4), "lr=0.0003 is not carried"),
        (lambda c: c.training(train_batch_size_per_learner=64), "train_batch_size_per_learner=64 is not carried"),
        (lambda c: c.environment(env_config={"a": {1, 2}}), "which holds what JSON cannot"),
        (lambda c: c.env_runners(rollout_fragment_length=7), "rollout_fragment_length=7"),
        (lambda c: c.rl_module(model_config={"fcnet_hiddens": [8]}), "model_config"),
        (lambda c: c.multi_agent(policies={"a", "b"}), "several policies"),
        (lambda c: c.environment(3), "a name of tune.register_env, or a class"),
        (lambda c: c.environment("tune/lost"), "tune.register_env('lost', ...)"),
        (lambda c: c.training(env_steps_per_iteration=0), "at least 1"),
        (lambda c: c.training(set={"replay.ratio": 1}), "nearest: replay.replay_ratio"),
        (lambda c: c.training(set={"worker.workers": 4}), "set the same thing"),
        (lambda c: c.training(preset="cpv"), "did you mean 'cpu'"),
        (lambda c: c.update_from_dict({"num_worker": 2}), "num_worker=2 is not carried"),
        (lambda c: c.callbacks(on_episode_end=print), "callbacks_on_episode_end"),
        (lambda c: c.callbacks(type("Steps", (DefaultCallbacks,), {"on_episode_step": print})), "never be called"),
    ],
)
def test_a_setting_that_the_face_does_not_carry_is_an_error_that_names_it(change: Any, words: str) -> None:
    config = tiny(runners=2)
    config.validate()
    change(config)
    with pytest.raises(UsageError) as caught:
        config.validate()
    assert words in str(caught.value)


class Own(gym.Env):
    """Stays where it is; pays what it was made with."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, config: Any) -> None:
        self.pay = config["pay"] + config.worker_index

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), self.pay, False, False, {}


def test_a_class_and_a_name_of_tune_are_made_in_every_process_and_go_on_from_a_checkpoint(
    cluster: None, inline: Any, tmp_path: Path
) -> None:
    trained = inline(tiny().environment(Own, env_config={"pay": 0.5}))
    trained.train()
    saved = trained.save_to_path(tmp_path / "saved")
    again = SoftGAC.from_checkpoint(saved)
    assert again.train()["num_env_steps_sampled_lifetime"] == 320
    again.stop()
    register_env("five steps", lambda context: gym.wrappers.TimeLimit(Own(context), 5))  # no worker can import it
    named = inline(tiny("five steps", runners=1, steps=96).environment(env_config={"pay": 0.5}))
    assert named.train()["env_runners"]["episode_return_mean"] == 2.5
    assert RunDirectory.open(named.run_dir).config().env == 'tune/five_steps?{"pay":0.5}'


def test_an_unknown_environment_is_found_when_the_algorithm_is_built() -> None:
    with pytest.raises(UsageError, match="HalfCheetah-v5"):
        tiny("HalfCheetah-v55").build_algo()


def test_what_is_no_checkpoint_is_refused_before_anything_starts(inline: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no checkpoint of this face"):
        SoftGAC.from_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="not on this machine"):
        SoftGAC.from_checkpoint("s3://bucket/checkpoint")
    algo = inline()
    algo.train()
    saved = Path(algo.save_to_path(tmp_path / "saved"))
    [tensors] = saved.glob("checkpoints/*/tensors.safetensors")
    data = bytearray(tensors.read_bytes())
    data[-1] ^= 1
    tensors.write_bytes(data)
    with pytest.raises(checkpoint.CheckpointError, match="none of the 1 checkpoints"):
        algo.restore_from_path(saved)
    assert algo.train()["num_env_steps_sampled_lifetime"] == 320, "a refused restore disturbed the run"


def test_a_checkpoint_that_cannot_be_written_is_an_error(inline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    algo = inline()
    algo.train()
    with algo._driving() as session:
        full = SimpleNamespace(problems=["a snapshot failed: no space left"])
        monkeypatch.setattr(session.fleet, "save", lambda: full)
    with pytest.raises(RunError, match="no space left"):
        algo.save_to_path()


def test_a_run_of_the_command_line_goes_on_here_with_its_settings(tmp_path: Path) -> None:
    import drawbridge

    run = tmp_path / "run"
    given = SETTINGS | {
        "steps": 160,
        "seed": 5,
        "backend": "inline",
        "worker.workers": 1,
        "evaluation.final_episodes": 1,
    }
    drawbridge.train("softgac", "Pendulum-v1", env_kwargs={"g": 9.0}, run=run, settings=given)
    policy, obs_O = drawbridge.load(run), np.array([0.5, -0.5, 1.0], np.float32)
    algorithm = SoftGAC.from_checkpoint(run)
    try:
        np.testing.assert_allclose(algorithm.compute_single_action(obs_O), policy(obs_O), atol=2e-6)
        with algorithm._driving() as session:
            assert (session.env_steps, session.aggregator.updates) == (policy.env_steps, policy.updates)
            assert session.config.worker.chunk_steps == TINY["worker.chunk_steps"] and session.config.seed == 5
            assert session.config.env == policy.env == 'Pendulum-v1?{"g":9.0}'
            session.advance_to(policy.env_steps + 16)
            assert session.env_steps >= policy.env_steps + 16 and session.aggregator.updates > policy.updates
    finally:
        algorithm.stop()
    with pytest.raises(UsageError, match=r"holds a checkpoint of 'softgac'.* expected 'sac'"):
        SAC.from_checkpoint(run)
    held = RunDirectory(run)
    held.hold()
    with pytest.raises(UsageError, match=r"is a run that continues .*, expected one that ended"):
        SoftGAC.from_checkpoint(run)
    held.release()
