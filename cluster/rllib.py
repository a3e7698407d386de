"""The RLlib face: ``SoftGACConfig`` and ``SoftGAC`` drive the fleet of this project where RLlib's own parts would run.

    config = SoftGACConfig().environment("HalfCheetah-v5").env_runners(num_env_runners=2)
    algo = config.build_algo()
    algo.train(), algo.evaluate(), algo.save_to_path(path), SoftGAC.from_checkpoint(path), tune.Tuner(SoftGAC, ...)

Used of RLlib: Algorithm, AlgorithmConfig (stable) with Trainable's setup, step, save_checkpoint, load_checkpoint and
cleanup. What touches the beta RLModule is in ``PolicyModule`` alone; nothing touches Learner, LearnerGroup or EnvRunner.
The fleet starts with the first call that needs it, works while ``train`` runs, and is held in between.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.tune import Checkpoint, PlacementGroupFactory, Trainable

from algorithms import ALGORITHMS
from algorithms.interface import Policy
from algorithms.weights import Weights
from cluster.checks import make_plan
from cluster.config import RunConfig, make_preset, override
from cluster.errors import RunError, UsageError
from cluster.graph import Plan
from cluster.run_dir import RunDirectory
from cluster.session import Session
from learners import checkpoint
from replay.durable import write_atomic
from rollout_workers.env import ActionBox, close_or_warn, flatten_observations, name_module, observation_dim
from rollout_workers.envs import make_env
from rollout_workers.evaluator import Evaluation

logger = logging.getLogger(__name__)

ENDLESS = 10**15  # env steps of a run whose caller decides when it ends
SAVED = "drawbridge_rllib.json"  # written last: a folder without it is no checkpoint
FORMAT = 1

MAPPED = {  # RLlib's setting -> ours. None, where RLlib's default would stand, leaves the preset's value
    "num_env_runners": "worker.workers",
    "num_envs_per_env_runner": "worker.envs_per_worker",
    "num_cpus_per_env_runner": "worker.cpus",
    "max_num_env_runner_restarts": "worker.restart_budget",
    "num_learners": "learner.learners",
    "num_cpus_per_learner": "learner.cpus",
    "num_gpus_per_learner": "learner.gpus",
    "gamma": "agent.gamma",
    "seed": "seed",
    "evaluation_duration": "evaluation.episodes",
}
SAVED_SETTINGS = (*MAPPED, "env", "preset", "fleet_settings", "env_steps_per_iteration", "evaluation_interval")
CALLBACKS = ("on_algorithm_init", "on_train_result", "on_evaluate_start", "on_evaluate_end", "on_checkpoint_loaded")
READ = {  # settings that the face, Tune or RLlib's Algorithm itself reads
    *SAVED_SETTINGS,
    *(f"callbacks_{name}" for name in CALLBACKS),
    "callbacks_class",
    "num_cpus_for_main_process",
    "custom_resources_for_main_process",
    "metrics_num_episodes_for_smoothing",
    "log_level",
    "log_sys_usage",
    "stats_cls_lookup",
    "algo_class",
    "class",
    "_is_frozen",
    "in_evaluation",
    "simple_optimizer",
    "policies",  # more than one are seen by is_multi_agent
}


class FleetConfig(AlgorithmConfig):
    """RLlib's configuration of a Drawbridge algorithm; ``run_config`` says what it means to the fleet.

    Carried: ``environment`` (a Gymnasium id), ``env_runners`` (num_env_runners: worker processes, 0 for the whole graph
    in this process; num_envs_per_env_runner; num_cpus_per_env_runner), ``learners`` (num_learners: 0 and 1 are one
    learner; CPUs and GPUs), ``evaluation`` (interval, duration in episodes), ``debugging(seed=)``, ``callbacks`` of the
    driver, ``resources`` of the main process and ``training`` as below. Any other setting that differs from its
    default is an error that names it.
    """

    algorithm: ClassVar[str]

    def __init__(self, algo_class: type[FleetAlgorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class)
        for name in MAPPED:
            if name != "evaluation_duration":  # RLlib checks this one, and would not take None
                setattr(self, name, None)
        self.num_cpus_for_main_process = 0.1  # type: ignore[assignment]  # the driver looks on; its fleet reserves its own
        self.preset = "cpu"
        self.fleet_settings: dict[str, Any] = {}
        self.env_steps_per_iteration = 1_000

    def training(
        self,
        *,
        preset: str | None = None,
        set: dict[str, Any] | None = None,
        env_steps_per_iteration: int | None = None,
        **settings: Any,
    ) -> FleetConfig:
        """Sets how the fleet trains.

        Args:
            preset: "cpu" or "paper".
            set: our settings by dotted key, as in ``drawbridge config PRESET``: {"replay.replay_ratio": 1.0}. Calls add up.
                ``steps`` bounds the run, which has no end of its own.
            env_steps_per_iteration: env steps that one ``train()`` makes, to the end of the chunk that reaches them.
            settings: RLlib's own, of which ``gamma`` is carried.
        """
        super().training(**settings)
        if preset is not None:
            self.preset = preset
        if set is not None:
            self.fleet_settings = {**self.fleet_settings, **set}
        if env_steps_per_iteration is not None:
            self.env_steps_per_iteration = env_steps_per_iteration
        return self

    def validate(self) -> None:
        """Raises UsageError, a ValueError, that lists every setting which cannot be carried out."""
        self.run_config()
        super().validate()

    def run_config(self) -> RunConfig:
        """The configuration of the fleet."""
        problems = [*self._unsupported(), *self._inconsistent()]
        settings = {key: str(value) for key, value in self.fleet_settings.items()}
        for name, key in MAPPED.items():
            value = getattr(self, name)
            if value is None:
                continue
            if key in settings:
                problems.append(
                    f"{name}={value} and training(set={{{key!r}: ...}}) set the same thing; give one of them"
                )
            settings[key] = str(value)
        if self.num_learners == 0:
            settings["learner.learners"] = "1"
        if self.num_env_runners == 0:
            settings |= {"worker.workers": "1", "backend": "inline"}
        settings.setdefault("steps", str(ENDLESS))
        settings |= {"env": str(self.env), "evaluation.every_steps": "0"}
        try:
            config = override(make_preset(self.algorithm, self.preset, str(self.env)), settings)
        except UsageError as error:
            problems.append(str(error))
        if problems:
            raise UsageError(
                f"{type(self).__name__} cannot be carried out; nothing was started:\n"
                + "\n".join(f"  - {text}" for text in problems)
            )
        return config

    def _unsupported(self) -> list[str]:
        default = vars(type(self)().update_from_dict(type(self)().to_dict()))
        found = [
            f"{name}={value!r} is not carried by this face, which leaves data, models, connectors and sampling to its own fleet; leave "
            "it at its default, or use training(set={...}) with the fleet's own setting"
            for name, value in vars(self).items()
            if name not in READ and not name.startswith("__") and not (name in default and _same(value, default[name]))
        ]
        if self.is_multi_agent:
            found.append("several policies are configured; the fleet trains one")
        return found

    def _inconsistent(self) -> list[str]:
        found = []
        if not isinstance(self.env, str):
            found.append(
                f"env is {self.env!r}, expected the id of a registered Gymnasium environment, as workers make it by name"
            )
        if type(self.env_steps_per_iteration) is not int or self.env_steps_per_iteration < 1:
            found.append(
                f"env_steps_per_iteration is {self.env_steps_per_iteration!r}, expected a whole number of at least 1: train() would do nothing"
            )
        if "env" in self.fleet_settings or "evaluation.every_steps" in self.fleet_settings:
            found.append(
                "training(set=) has env or evaluation.every_steps: use environment() and evaluation(evaluation_interval=)"
            )
        for kind in _listed(self.callbacks_class):
            foreign = [
                n
                for n in dir(RLlibCallback)
                if n.startswith("on_") and getattr(kind, n) is not getattr(RLlibCallback, n)
            ]
            found += [
                f"callback {kind.__name__}.{name} would never be called, as no episode passes through RLlib; carried are {', '.join(CALLBACKS)}"
                for name in foreign
                if name not in CALLBACKS
            ]
        return found


class FleetAlgorithm(Algorithm):
    """An RLlib Algorithm whose work is done by a fleet of this project; see SoftGAC."""

    config_class: ClassVar[type[FleetConfig]]
    config: Any  # a frozen FleetConfig

    @classmethod
    def get_default_config(cls) -> FleetConfig:
        return cls.config_class()

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """The driver's share alone: the fleet's actors are scheduled outside the trial, so that they can be scaled."""
        settings = cls.get_default_config().update_from_dict(config)
        share = {"CPU": settings.num_cpus_for_main_process, **settings.custom_resources_for_main_process}
        return PlacementGroupFactory([share])

    @classmethod
    def resource_help(cls, config: Any) -> str:
        return (
            "A trial reserves resources for its driver only. Its fleet reserves worker.cpus for each worker, learner.cpus for each "
            "learner and ray.shard_cpus for each shard beside it: limit TuneConfig(max_concurrent_trials=) to what the cluster holds."
        )

    # --- Trainable ------------------------------------------------------------------------------------------------

    def setup(self, config: Any) -> None:
        """Proves the configuration; the fleet starts when it is first needed, so that a restore comes before it."""
        logging.getLogger("ray.rllib").setLevel(config.log_level)
        self.callbacks = [kind() for kind in _listed(config.callbacks_class)]
        self._session: Session | None = None
        self._failed = False
        self._run: RunDirectory | None = None  # prepared, locked
        self._starts = self._parts = 0
        self._module: PolicyModule | None = None
        self._module_order: tuple[int, int] | None = None
        self._lines: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._episodes: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._run_config = config.run_config()
        self._plan = self._make_plan()
        self._call_back("on_algorithm_init", metrics_logger=self.metrics)

    def step(self) -> dict[str, Any]:
        """One ``train()``: env_steps_per_iteration more env steps, and the updates that the replay ratio makes of them."""
        with self._driving() as session:
            before = session.env_steps, session.tally.updates, time.monotonic()
            session.advance_to(session.env_steps + self.config.env_steps_per_iteration)
            complete = session.env_steps >= self._run_config.steps
            while complete and session.advance():
                pass
            result = self._result(session, *before)
        self._module_order = None
        interval = self.config.evaluation_interval
        if interval and (self.iteration + 1) % interval == 0:
            result["evaluation"] = self.evaluate()
        return result | {"done": complete}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        self.save_to_path(checkpoint_dir)

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        self.restore_from_path(checkpoint_dir)

    def log_result(self, result: dict[str, Any]) -> None:
        self._call_back("on_train_result", metrics_logger=self.metrics, result=result)
        Trainable.log_result(self, result)

    def cleanup(self) -> None:
        """Ends the fleet in order; its run directory keeps a last checkpoint and summary.json."""
        session, run = self._session, self._run
        self._session = self._run = None
        try:
            if session is not None and not self._failed:
                session.finish("stopped")
        finally:
            if session is not None:
                session.fleet.close()
            if run is not None:
                run.release()

    # --- Algorithm ------------------------------------------------------------------------------------------------

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """evaluation_duration deterministic episodes, episode i from seed evaluation.seed + i; training is held."""
        self._call_back("on_evaluate_start", metrics_logger=self.metrics)
        with self._driving() as session:
            found = {"env_runners": _episode_results(_evaluated(session))}
        self._call_back("on_evaluate_end", metrics_logger=self.metrics, evaluation_metrics=found)
        return found

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> PolicyModule | None:
        """The policy as it is now, for inference; None for another id. Later calls refresh the same object."""
        if module_id != DEFAULT_MODULE_ID:
            return None
        with self._driving() as session:
            weights = _newest(session)
        if self._module is None:
            self._module = PolicyModule.of(self._run_config)
        if self._module_order != weights.order:
            self._module.set_state(weights.unpack())
            self._module_order = weights.order
        return self._module

    def get_weights(self, policies: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
        """The acting policy's weights by name, under the one module's id."""
        with self._driving() as session:
            return {DEFAULT_MODULE_ID: {name: np.array(value) for name, value in _newest(session).unpack().items()}}

    def compute_single_action(self, observation: Any, *, explore: bool = False) -> np.ndarray:  # type: ignore[override]
        """The action for one observation of the environment, in the environment's action box; noise-free unless ``explore``."""
        if self._module is None or self._module_order is None:
            self.get_module()
        module = self._module
        assert module is not None
        batch = {Columns.OBS: _batch_of_one(observation)}
        forward = module.forward_exploration if explore else module.forward_inference
        return np.asarray(forward(batch)[Columns.ACTIONS_FOR_ENV])[0]

    def save_to_path(
        self, path: Any = None, *, state: Any = None, filesystem: Any = None, use_msgpack: bool = False
    ) -> str:
        """Writes a checkpoint: learner (parameters, optimisers, temperature, counters), the whole replay, the settings.

        Args:
            path: a local folder; a new temporary one if None. What an earlier save left there is replaced.
            state, filesystem: not carried. use_msgpack: without effect, as nothing is pickled.

        Raises:
            UsageError: a remote path, ``state`` or ``filesystem``. RunError: a part could not be written.
        """
        if state is not None or filesystem is not None:
            raise UsageError(
                "save_to_path(state=, filesystem=) is not carried: nothing was saved; give a local path alone"
            )
        folder = Path(tempfile.mkdtemp()) if path is None else _local(path)
        with self._driving() as session:
            session.advance_to(session.env_steps)
            problems = session.fleet.save().problems
            if problems:
                raise RunError(f"no checkpoint was made at {folder}: " + "; ".join(problems))
            self._copy_out(session.run, folder)
        settings = {name: getattr(self.config, name) for name in SAVED_SETTINGS}
        told = {
            "format": FORMAT,
            "algorithm": self._run_config.algorithm,
            "iteration": self.iteration,
            "time_total_s": self._time_total,
            "starts": self._starts,
            "settings": settings,
        }
        write_atomic(folder / SAVED, json.dumps(told, indent=1, default=str).encode())
        return str(folder)

    def restore_from_path(
        self, path: Any, *, component: str | None = None, filesystem: Any = None, **kwargs: Any
    ) -> None:
        """Goes on from a checkpoint of ``save_to_path``. A running fleet ends and starts anew when it is next needed.

        Raises:
            UsageError: no checkpoint there, one of another algorithm, a part or a file system asked for.
            CheckpointError: it is damaged, or of another environment or network.
        """
        if component is not None or filesystem is not None:
            raise UsageError(
                "restore_from_path(component=, filesystem=) is not carried: nothing was changed; give a local path alone"
            )
        folder = _local(path)
        told = _read_saved(folder, self._run_config.algorithm)
        if checkpoint.load_newest(folder / "checkpoints", self._plan.identity()) is None:
            raise UsageError(
                f"{folder} holds no learner checkpoint: nothing was changed; give a folder that save_to_path wrote"
            )
        self.cleanup()
        self._failed = False
        self._starts, self._parts = int(told["starts"]) + 1, self._parts + 1
        self._iteration, self._time_total = int(told["iteration"]), float(told["time_total_s"])
        self._module_order = None
        self._plan = self._make_plan()
        self._run = self._prepare(folder)  # copies now: Tune removes the folder afterwards
        self._call_back("on_checkpoint_loaded")

    @classmethod
    def from_checkpoint(
        cls, path: Any, filesystem: Any = None, *, config: FleetConfig | None = None, **kwargs: Any
    ) -> FleetAlgorithm:
        """A new Algorithm that goes on from a checkpoint of ``save_to_path``.

        Args:
            path: local folder, or a Ray Checkpoint.
            config: settings to go on with, where others than the saved ones are wanted (another number of env runners,
                say, or callbacks, which are code and not saved).
        """
        if filesystem is not None:
            raise UsageError("from_checkpoint(filesystem=) is not carried: nothing was started; give a local path")
        folder = _local(path)
        told = _read_saved(folder, cls.config_class.algorithm)
        if config is None:
            if ":" in str(told["settings"].get("env")):
                raise UsageError(
                    f"{folder} names the environment {told['settings']['env']!r}, whose module would be imported, expected your own "
                    "code to name it, because a checkpoint may come from anybody: nothing was started; if you trust it, give config= "
                    "with environment(...)"
                )
            config = cls.get_default_config()
            for name, value in told["settings"].items():
                setattr(config, name, value)
        algorithm = cls(config=config)
        algorithm.restore_from_path(folder)
        return algorithm

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        raise UsageError("the state of a fleet with its replay does not fit into one dict: use save_to_path(path)")

    def set_state(self, *args: Any, **kwargs: Any) -> None:
        raise UsageError("the state of a fleet with its replay does not fit into one dict: use restore_from_path(path)")

    def __repr__(self) -> str:
        config = getattr(self, "_run_config", None)
        if config is None:
            return f"{type(self).__name__}(not set up)"
        return f"{type(self).__name__}(env={config.env}; env-runners={config.worker.workers}; learners={config.learner.learners})"

    # --- the run --------------------------------------------------------------------------------------------------

    @property
    def run_dir(self) -> Path:
        """The run's directory under the trial's: ``drawbridge status``, ``report`` and ``evaluate`` read it."""
        return self._plan.run_dir

    def _make_plan(self) -> Plan:
        path = Path(self.logdir) / f"run-{self._parts}"
        name_module(self._run_config.env)
        return make_plan(self._run_config, RunDirectory(path), self._starts)

    def _prepare(self, source: Path | None = None) -> RunDirectory:
        """The run directory, locked by this process, with what is restored from ``source``."""
        run = RunDirectory.create(self._plan.run_dir, self._run_config)
        if source is not None:
            for name in ("checkpoints", "replay"):
                shutil.copytree(source / name, run.path / name, dirs_exist_ok=True)
            shutil.copy(source / "live.json", run.path / "live.json")
        return run

    @contextlib.contextmanager
    def _driving(self) -> Iterator[Session]:
        """The session, started if need be. A failure is written to its run directory and ends the run."""
        if self._failed:
            raise RunError(
                f"this run has failed (see {self.run_dir / 'failure.json'}); go on from its newest checkpoint in a new one"
            )
        try:
            if self._session is None:
                self._run = self._run or self._prepare()
                session = Session(self._run, self._plan, outputs=self._lines.append, event=logger.warning)
                self._session = session.__enter__()
                session.advance_to(session.env_steps)
            yield self._session
        except Exception as error:
            self._failed = True
            if self._session is not None:
                self._session.fail(error)
            raise

    def _result(self, session: Session, env_steps: int, updates: int, began: float) -> dict[str, Any]:
        """One iteration under RLlib's keys; ``custom_metrics`` has the whole line of metrics.jsonl."""
        lines = list(self._lines)
        self._lines.clear()
        window = self.config.metrics_num_episodes_for_smoothing
        self._episodes += [line for line in lines if line.get("episodes")]
        while len(self._episodes) > 1 and sum(line["episodes"] for line in list(self._episodes)[1:]) >= window:
            self._episodes.popleft()
        line, tally = lines[-1], session.tally
        made, learned, batch = (
            session.env_steps - env_steps,
            tally.updates - updates,
            self._run_config.learner.batch_size,
        )
        return {
            "env_runners": {
                **_windowed(self._episodes),
                "num_episodes": int(sum(each.get("episodes", 0) for each in lines)),
                "num_env_steps_sampled": made,
                "num_env_steps_sampled_lifetime": session.env_steps,
                "num_env_steps_sampled_per_second": made / max(time.monotonic() - began, 1e-9),
            },
            "learners": {
                "__all_modules__": {
                    "num_env_steps_trained": learned * batch,
                    "num_env_steps_trained_lifetime": tally.updates * batch,
                },
                DEFAULT_MODULE_ID: {
                    **{name.removeprefix("loss_"): value for name, value in line.items() if name.startswith("loss_")},
                    "num_grad_updates": learned,
                    "num_grad_updates_lifetime": tally.updates,
                    "weights_seq_no": tally.version,
                },
            },
            "replay_buffer": {"num_env_steps_stored": line["size_rows"], "replay_ratio": line["replay_ratio"]},
            "fault_tolerance": {
                "num_healthy_workers": tally.workers,
                "num_remote_worker_restarts": tally.workers_restarted,
            },
            "num_env_steps_sampled_lifetime": session.env_steps,
            "custom_metrics": line,
        }

    def _copy_out(self, run: RunDirectory, folder: Path) -> None:
        """The newest checkpoint, the shards' snapshots and the counters into ``folder``."""
        (folder / SAVED).unlink(missing_ok=True)
        for name in ("checkpoints", "replay"):
            shutil.rmtree(folder / name, ignore_errors=True)
        newest = max(run.checkpoints.glob("checkpoint-*"), key=lambda path: path.name)
        shutil.copytree(newest, folder / "checkpoints" / newest.name)
        shutil.copytree(run.replay, folder / "replay")
        for name in ("live.json", "config.json"):
            shutil.copy(run.path / name, folder / name)

    def _call_back(self, name: str, **arguments: Any) -> None:
        for call in [getattr(each, name) for each in self.callbacks] + _listed(
            getattr(self.config, f"callbacks_{name}")
        ):
            call(algorithm=self, **arguments)


class PolicyModule(TorchRLModule):
    """The acting policy as an RLModule for inference; everything of RLlib's module API that is used is here.

    ``forward_inference`` (noise-free) and ``forward_exploration`` take {"obs": (B, ...) arrays or tensors, or a Dict of
    them} and give "actions", float32 (B, A) in [-1, 1], and "actions_for_env", (B, *action_space.shape) in the
    environment's box. There is no forward_train: learners of this project train the policy.

    model_config: {"algorithm": name, "agent": the agent's settings as a dict, "seed": of the exploration noise}.
    """

    model_config: Any
    observation_space: Any
    action_space: Any

    @classmethod
    def of(cls, config: RunConfig) -> PolicyModule:
        """The module for a run's environment and agent, with weights of no use until ``set_state``."""
        env = make_env(config.env)
        try:
            settings = {"algorithm": config.algorithm, "agent": dataclasses.asdict(config.agent), "seed": config.seed}
            return cls(
                observation_space=env.observation_space,
                action_space=env.action_space,
                inference_only=True,
                model_config=settings,
            )
        finally:
            close_or_warn(env, config.env)

    def setup(self) -> None:
        algorithm = ALGORITHMS[self.model_config["algorithm"]]
        agent = algorithm.config_class(**self.model_config["agent"])
        self.box = ActionBox(self.action_space, "the module")
        obs_dim = observation_dim(self.observation_space, "the module")
        self.policy = cast(Policy, algorithm.make_policy(agent, obs_dim, self.box.dim))
        self.rng = np.random.default_rng(self.model_config.get("seed", 0))
        self.weights: dict[str, np.ndarray] = {}

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """The policy's weights by name; empty before the first ``set_state``."""
        return dict(self.weights)

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes weights by name; ValueError names every one that is missing, surplus or misshapen."""
        self.policy.load_weights(state)
        self.weights = {name: np.array(value, np.float32) for name, value in state.items()}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        obs_BO = self._flat(batch)
        return self._actions(obs_BO, np.zeros((len(obs_BO), *self.policy.noise_shape), np.float32))

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        obs_BO = self._flat(batch)
        return self._actions(obs_BO, self.policy.sample_noise(self.rng, len(obs_BO)))

    def _flat(self, batch: dict[str, Any]) -> np.ndarray:
        obs = batch[Columns.OBS]
        leaf = obs
        while isinstance(leaf, dict):
            leaf = next(iter(leaf.values()))
        return flatten_observations(obs, len(leaf))

    def _actions(self, obs_BO: np.ndarray, noise: np.ndarray) -> dict[str, torch.Tensor]:
        with torch.inference_mode():
            action_BA = self.policy.act(torch.from_numpy(obs_BO), torch.from_numpy(noise)).clone()
        return {
            Columns.ACTIONS: action_BA,
            Columns.ACTIONS_FOR_ENV: torch.from_numpy(self.box.rescale(action_BA.numpy())),
        }


class SoftGAC(FleetAlgorithm):
    """SoftGAC behind RLlib's Algorithm."""


class SoftGACConfig(FleetConfig):
    """RLlib's configuration of SoftGAC."""

    algorithm = "softgac"

    def __init__(self, algo_class: type[FleetAlgorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or SoftGAC)


class SAC(FleetAlgorithm):
    """This project's SAC, SoftGAC's control, behind RLlib's Algorithm."""


class SACConfig(FleetConfig):
    """RLlib's configuration of this project's SAC."""

    algorithm = "sac"

    def __init__(self, algo_class: type[FleetAlgorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or SAC)


SoftGAC.config_class, SAC.config_class = SoftGACConfig, SACConfig


def _evaluated(session: Session) -> Evaluation:
    """One evaluation of the newest policy, waited for."""
    _newest(session)
    limit_s = session.config.evaluation.timeout_s + session.config.ray.start_timeout_s
    deadline, before = time.monotonic() + limit_s, len(session.evaluations)
    session.fleet.request_evaluation(session.config.evaluation.episodes)
    while len(session.evaluations) == before:
        session.advance()
        if time.monotonic() > deadline:
            raise RunError(
                f"no evaluation ended within {limit_s:.0f} s; raise evaluation.timeout_s or lower evaluation_duration"
            )
    return session.evaluations[-1]


def _newest(session: Session) -> Weights:
    """The newest published policy; a learner that has just started publishes its first within seconds."""
    limit_s = session.config.ray.start_timeout_s
    deadline = time.monotonic() + limit_s
    while (weights := session.fleet.weights()) is None:
        session.advance()
        if time.monotonic() > deadline:
            raise RunError(f"the learner published no policy within {limit_s:.0f} s, expected one at its start")
    return weights


def _episode_results(evaluation: Evaluation) -> dict[str, Any]:
    returns, lengths = evaluation.returns, evaluation.lengths
    return {
        "episode_return_mean": evaluation.return_mean,
        "episode_return_min": min(returns),
        "episode_return_max": max(returns),
        "episode_len_mean": float(np.mean(lengths)),
        "episode_len_min": min(lengths),
        "episode_len_max": max(lengths),
        "num_episodes": len(returns),
        "num_env_steps_sampled": sum(lengths),
        "episode_returns": returns,
        "weights_seq_no": evaluation.version,
    }


def _windowed(lines: deque[dict[str, Any]]) -> dict[str, float]:
    """Over the newest episodes; nan before the first one has ended."""
    count = sum(line["episodes"] for line in lines)
    if not count:
        return dict.fromkeys(
            ("episode_return_mean", "episode_return_min", "episode_return_max", "episode_len_mean"), math.nan
        )
    return {
        "episode_return_mean": sum(line["return_mean"] * line["episodes"] for line in lines) / count,
        "episode_return_min": min(line["return_min"] for line in lines),
        "episode_return_max": max(line["return_max"] for line in lines),
        "episode_len_mean": sum(line["length_mean"] * line["episodes"] for line in lines) / count,
    }


def _read_saved(folder: Path, algorithm: str) -> dict[str, Any]:
    """What save_to_path told of itself."""
    try:
        told = dict(json.loads((folder / SAVED).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is no checkpoint of this face ({error}); nothing was started; give a folder that save_to_path or Tune wrote"
        ) from error
    if (told.get("format"), told.get("algorithm")) != (FORMAT, algorithm):
        raise UsageError(
            f"{folder} holds a checkpoint of {told.get('algorithm')!r}, format {told.get('format')}, expected {algorithm!r}, format "
            f"{FORMAT}; nothing was started; use the class that wrote it"
        )
    return told


def _local(path: Any) -> Path:
    """A folder of this machine for a path, a file:// address or a Ray Checkpoint."""
    if isinstance(path, Checkpoint):
        return Path(path.to_directory())
    text = str(path).removeprefix("file://")
    if "://" in text:
        raise UsageError(
            f"{path} is not on this machine; nothing was read or written; give a local folder and copy it, or let Tune do so"
        )
    return Path(text).resolve()


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        return one is other


def _batch_of_one(obs: Any) -> Any:
    return {key: _batch_of_one(value) for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
