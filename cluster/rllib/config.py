"""RLlib's configuration of a fleet: which of its settings are carried, and what they mean to the fleet."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import ENV_CREATOR, _global_registry

from cluster.config import RunConfig, make_preset, override
from cluster.errors import UsageError
from replay.task import TaskError, join_task
from rollout_workers.env_ids import register_maker

if TYPE_CHECKING:
    from cluster.rllib.algorithm import FleetAlgorithm

ENDLESS = 10**15  # env steps of a run whose caller decides when it ends
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
SAVED_SETTINGS = (
    *MAPPED,
    "env",
    "env_config",
    "preset",
    "fleet_settings",
    "env_steps_per_iteration",
    "evaluation_interval",
)
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


OWN = "tune/"  # namespace of environments that a program has as a callable


class Created(gym.Env):
    """What a callable made: a whole environment with its own wrappers, which ``gymnasium.make`` would take for its own."""

    def __init__(self, make: Callable[[EnvContext], gym.Env], **kwargs: Any) -> None:
        self._env = make(EnvContext(kwargs, worker_index=0))
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self.reset, self.step = self._env.reset, self._env.step  # type: ignore[method-assign]
        self.render, self.close = self._env.render, self._env.close  # type: ignore[method-assign]


class FleetConfig(AlgorithmConfig):
    """RLlib's configuration of a Drawbridge algorithm; ``run_config`` says what it means to the fleet.

    Carried: ``environment`` (a Gymnasium id, a name of ``tune.register_env`` or a class that takes env_config; its arguments in
    env_config), ``env_runners`` (num_env_runners: worker processes, 0 for the whole graph in this process; num_envs_per_env_runner;
    num_cpus_per_env_runner), ``learners`` (num_learners: 0 and 1 are one learner; CPUs and GPUs), ``evaluation`` (interval, duration
    in episodes), ``debugging(seed=)``, ``callbacks`` of the driver, ``resources`` of the main process and ``training`` as below.
    Any other setting that differs from its default is an error that names it.
    """

    algorithm: ClassVar[str]
    face: ClassVar[Any]  # gives what it configures; no class itself: Ray would go round and round in it

    def __init__(self, algo_class: type[FleetAlgorithm] | None = None) -> None:
        super().__init__(algo_class=algo_class or self.face())
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
            preset: of `drawbridge presets`; "paper-fleet" is the published settings for a fleet.
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
        else:
            settings.setdefault("backend", "ray")
        settings.setdefault("steps", str(ENDLESS))
        try:
            env_id, _ = self._own_env()
            settings |= {"env": join_task(env_id, dict(self.env_config)), "evaluation.every_steps": "0"}
            config = override(make_preset(self.algorithm, self.preset, env_id), settings)
        except (UsageError, TaskError) as error:
            problems.append(str(error))
        if problems:
            raise UsageError(
                f"{type(self).__name__} cannot be carried out; nothing was started:\n"
                + "\n".join(f"  - {text}" for text in problems)
            )
        return config

    def register_env(self) -> None:
        """Lets this process and the fleet's make the environment, where a callable does."""
        env_id, make = self._own_env()
        if make is not None:
            register_maker(env_id, functools.partial(Created, make))

    def _own_env(self) -> tuple[str, Callable[[EnvContext], gym.Env] | None]:
        """The environment's id in the fleet, and the callable that makes it; None: it is one of Gymnasium's."""
        env: Any = self.env
        name = env.__name__ if isinstance(env, type) else str(env).removeprefix(OWN)
        env_id = OWN + re.sub(r"[^\w.-]", "_", name)
        if isinstance(env, type):
            return env_id, env
        if _global_registry.contains(ENV_CREATOR, name):
            return env_id, _global_registry.get(ENV_CREATOR, name)
        return (env_id if env_id in gym.registry else str(env)), None

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
        if not isinstance(self.env, (str, type)):
            found.append(
                f"env is {self.env!r}, expected the id of a registered Gymnasium environment, a name of tune.register_env, or a class that "
                "takes env_config: RLlib makes nothing else; register a callable with tune.register_env"
            )
        elif str(self.env).startswith(OWN) and self._own_env() == (self.env, None) and self.env not in gym.registry:
            found.append(
                f"env is {self.env!r}, which a class or a callable of another program made, expected it here: give environment() with it, or "
                f"tune.register_env({self.env.removeprefix(OWN)!r}, ...)"
            )
        if type(self.env_steps_per_iteration) is not int or self.env_steps_per_iteration < 1:
            found.append(
                f"env_steps_per_iteration is {self.env_steps_per_iteration!r}, expected a whole number of at least 1: train() would do nothing"
            )
        if "env" in self.fleet_settings or "evaluation.every_steps" in self.fleet_settings:
            found.append(
                "training(set=) has env or evaluation.every_steps: use environment() and evaluation(evaluation_interval=)"
            )
        for kind in listed(self.callbacks_class):
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


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:
        return one is other


def listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, (list, tuple)) else [value]
