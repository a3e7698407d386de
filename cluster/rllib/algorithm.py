"""An RLlib Algorithm whose work a fleet of this project does; methods.py has those of SoftGAC and its rivals."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.tune import PlacementGroupFactory, Trainable

from cluster.checks import make_spec
from cluster.dataset_identity import identity_notes
from cluster.dataset_task import task_notes
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec
from cluster.outside import unnamed
from cluster.rllib.config import SAVED_SETTINGS, FleetConfig, listed
from cluster.rllib.module import PolicyModule
from cluster.rllib.results import FORMAT, SAVED, episode_results, evaluated, local, newest, read_saved, trained
from cluster.run_dir import RunDirectory
from cluster.session import Session
from learners import checkpoint
from replay.manifest import write_atomic
from replay.task import id_of, naming_texts
from rollout_workers.env_ids import name_module

logger = logging.getLogger(__name__)
LISTEN_S = 0.5  # between two looks at what other commands ask, while no method of the algorithm runs


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
            "learner and ray.shard_cpus for each shard as well: limit TuneConfig(max_concurrent_trials=) to what the cluster holds."
        )

    # --- Trainable ------------------------------------------------------------------------------------------------

    def setup(self, config: Any) -> None:
        """Proves the configuration; the fleet starts when it is first needed, so that a restore comes before it."""
        logging.getLogger("ray.rllib").setLevel(config.log_level)
        self.callbacks = [kind() for kind in listed(config.callbacks_class)]
        self._session: Session | None = None
        self._failed, self._ended_by = False, ""
        self._lock = threading.RLock()  # of whoever uses the session
        self._run: RunDirectory | None = None  # prepared, locked
        self._starts = self._parts = 0
        self._module: PolicyModule | None = None
        self._module_order: tuple[int, int] | None = None
        self._lines: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._episodes: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._run_config = config.run_config()
        self._plan = self._make_spec()
        for text in (*task_notes(self._plan), *identity_notes(self._plan)):
            logger.warning(text)
        self._call_back("on_algorithm_init", metrics_logger=self.metrics)

    def step(self) -> dict[str, Any]:
        """One ``train()``: env_steps_per_iteration more env steps, and the updates that the replay ratio makes of them."""
        with self._driving() as session:
            before = session.env_steps, session.aggregator.updates, time.monotonic()
            session.advance_to(session.env_steps + self.config.env_steps_per_iteration)
            complete = session.env_steps >= self._run_config.steps
            while complete and not session.asked_to_stop and session.advance():
                pass
            result = self._result(session, *before)
            complete = complete or session.asked_to_stop
        self._module_order = None
        interval = self.config.evaluation_interval
        if interval and not self._ended_by and (self.iteration + 1) % interval == 0:
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
        self._end("stopped")
        self._ended_by = self._ended_by or "stop()"

    # --- Algorithm ------------------------------------------------------------------------------------------------

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:
        """evaluation_duration deterministic episodes, episode i from seed evaluation.seed + i; training is held."""
        self._call_back("on_evaluate_start", metrics_logger=self.metrics)
        with self._driving() as session:
            found = {"env_runners": episode_results(evaluated(session))}
        self._call_back("on_evaluate_end", metrics_logger=self.metrics, evaluation_metrics=found)
        return found

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> PolicyModule | None:
        """The policy as it is now, for inference; None for another id. Later calls refresh the same object."""
        if module_id != DEFAULT_MODULE_ID:
            return None
        with self._driving() as session:
            weights = newest(session)
        if self._module is None:
            self._module = PolicyModule.of(self._run_config)
        if self._module_order != weights.order:
            self._module.set_state(weights.unpack())
            self._module_order = weights.order
        return self._module

    def get_weights(self, policies: list[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
        """The acting policy's weights by name, under the one module's id."""
        with self._driving() as session:
            return {DEFAULT_MODULE_ID: {name: np.array(value) for name, value in newest(session).unpack().items()}}

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
        folder = Path(tempfile.mkdtemp()) if path is None else local(path)
        with self._driving() as session:
            session.advance_to(session.env_steps)
            problems = session.fleet.save().problems
            if problems:
                raise RunError(f"no checkpoint was made at {folder}: " + "; ".join(problems))
            self._copy_out(session.run, folder)
        settings = {name: getattr(self.config, name) for name in SAVED_SETTINGS} | {"env": id_of(self._run_config.env)}
        saved = {
            "format": FORMAT,
            "algorithm": self._run_config.algorithm,
            "iteration": self.iteration,
            "time_total_s": self._time_total,
            "starts": self._starts,
            "settings": settings,
        }
        write_atomic(folder / SAVED, json.dumps(saved, indent=1, default=str).encode())
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
        folder = local(path)
        saved = read_saved(folder, self._run_config.algorithm)
        if checkpoint.load_newest(folder / "checkpoints", self._plan.identity()) is None:
            raise UsageError(
                f"{folder} holds no learner checkpoint: nothing was changed; give a folder that save_to_path wrote"
            )
        self.cleanup()
        self._failed, self._ended_by = False, ""
        self._starts, self._parts = int(saved["starts"]) + 1, self._parts + 1
        self._iteration, self._time_total = int(saved["iteration"]), float(saved["time_total_s"])
        self._module_order = None
        self._plan = self._make_spec()
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
        folder = local(path)
        saved = read_saved(folder, cls.config_class.algorithm)
        if config is None:
            env_id, kwargs = (saved["settings"].get(name) for name in ("env", "env_config"))
            if ":" in str(env_id) or naming_texts(kwargs):
                raise UsageError(
                    f"{folder} names the environment {env_id!r}, whose module might be imported, expected your own "
                    "code to name it, because a checkpoint may come from anybody: nothing was started; if you trust it, give config= "
                    "with environment(...)"
                )
            config = cls.get_default_config()
            for name, value in saved["settings"].items():
                setattr(config, name, value)
            if found := unnamed(config.run_config(), {}):
                raise UsageError(
                    f"{folder} has settings that reach out of the run ({found}), expected your own code to give them, because a checkpoint "
                    "may come from anybody: nothing was started; if you trust it, give config= with training(set=...)"
                )
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

    def _make_spec(self) -> RunSpec:
        path = Path(self.logdir) / f"run-{self._parts}"
        name_module(self._run_config.env)
        self.config.register_env()
        return make_spec(self._run_config, RunDirectory(path), self._starts)

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
        """The session, started if need be. A failure is written to its run directory and ends the run, as `drawbridge stop` does."""
        with self._lock:
            if self._failed or self._ended_by:
                why = "has failed" if self._failed else f"was ended by {self._ended_by}"
                record = self.run_dir / ("failure.json" if self._failed else "summary.json")
                raise RunError(f"this run {why} (see {record}); go on from its newest checkpoint in a new one")
            try:
                if self._session is None:
                    self._start()
                assert self._session is not None
                yield self._session
                if self._session.asked_to_stop:
                    self._obey_stop()
            except Exception as error:
                self._failed = True
                if self._session is not None:
                    self._session.fail(error)
                raise

    def _start(self) -> None:
        self._run = self._run or self._prepare()
        session = Session(self._run, self._plan, outputs=self._lines.append, event=logger.warning)
        self._session = session.__enter__()
        session.advance_to(session.env_steps)
        threading.Thread(target=self._listen, args=(session,), daemon=True).start()

    def _listen(self, session: Session) -> None:
        """Takes what other commands ask of a run that waits for the next call of this algorithm, until ``session`` ends."""
        while self._session is session and not self._failed:
            time.sleep(LISTEN_S)
            with self._lock:
                if self._session is session and not self._failed:
                    session.answer()
                    if session.asked_to_stop:
                        self._obey_stop()

    def _obey_stop(self) -> None:
        self._ended_by = "`drawbridge stop`"
        self._end("interrupted")

    def _end(self, outcome: str) -> None:
        with self._lock:
            session, run = self._session, self._run
            self._session = self._run = None
            try:
                if session is not None and not self._failed:
                    session.finish(outcome)
            finally:
                if session is not None:
                    session.fleet.close()
                if run is not None:
                    run.release()

    def _result(self, session: Session, env_steps: int, updates: int, began: float) -> dict[str, Any]:
        lines = list(self._lines)
        self._lines.clear()
        window = self.config.metrics_num_episodes_for_smoothing
        self._episodes += [line for line in lines if line.get("episodes")]
        while len(self._episodes) > 1 and sum(line["episodes"] for line in list(self._episodes)[1:]) >= window:
            self._episodes.popleft()
        return trained(session, lines, self._episodes, env_steps, updates, time.monotonic() - began)

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
        for call in [getattr(each, name) for each in self.callbacks] + listed(
            getattr(self.config, f"callbacks_{name}")
        ):
            call(algorithm=self, **arguments)


def _batch_of_one(obs: Any) -> Any:
    return {key: _batch_of_one(value) for key, value in obs.items()} if isinstance(obs, dict) else np.asarray(obs)[None]
