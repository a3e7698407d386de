"""Where else a run's metrics go: MLflow or Weights & Biases, whose own variables and files say to which server and as whom.

MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, or WANDB_MODE, WANDB_PROJECT and `wandb login`. A resumed run goes on in the same
record there, which ``control/logger.json`` of its directory names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cluster.config import RunConfig, flatten
from cluster.history import read_object
from replay.manifest import write_atomic

WAITING = 512  # records that wait for a slow server; beyond, the new ones are left out
CLOSE_S = 5.0  # that a server is given at the end of a run to take what waits
PROJECT = "drawbridge"  # of MLflow an experiment, where the user names none
PARAMS = 50  # that MLflow is given at once; it refuses more than 100


class Logger(Protocol):
    """What takes a run's metrics. It may block and raise whatever it likes: see ``InBackground``."""

    id: str  # by which the service knows the run

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Takes the numbers of one metrics record."""

    def close(self, completed: bool) -> None:
        """Ends the run there."""


class About(NamedTuple):
    """What a service gets of a run: its name and settings; ``id``: by which it knows the run already, "" if it does not."""

    name: str
    settings: dict[str, Any]
    run_dir: Path
    id: str


class MlflowLogger:
    """A run of MLflow."""

    def __init__(self, about: About) -> None:
        import mlflow

        if os.environ.get("MLFLOW_TRACKING_URI", "").startswith("file:"):  # whoever names a folder means it
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)
        self.id = mlflow.start_run(run_id=about.id or None, run_name=about.name).info.run_id
        pairs = [] if about.id else list(about.settings.items())  # they stay what they were
        for first in range(0, len(pairs), PARAMS):
            mlflow.log_params(dict(pairs[first : first + PARAMS]))

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See ``Logger``."""
        self._mlflow.log_metrics(dict(values), step=step)

    def close(self, completed: bool) -> None:
        """See ``Logger``."""
        self._mlflow.end_run("FINISHED" if completed else "FAILED")


class WandbLogger:
    """A run of Weights & Biases."""

    def __init__(self, about: About) -> None:
        import wandb

        if os.environ.get("WANDB_MODE", "online") in ("online", "shared") and not wandb.login(prompt=False):
            raise RuntimeError("nobody is logged in here; `wandb login`, or set WANDB_MODE=offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            name=about.name,
            config=about.settings,
            dir=str(about.run_dir),
            id=about.id or None,
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )
        self.id = str(self._run.id)

    def write(self, values: Mapping[str, float], step: int) -> None:
        """See ``Logger``."""
        self._run.log(dict(values), step=step)

    def close(self, completed: bool) -> None:
        """See ``Logger``."""
        self._run.finish(exit_code=0 if completed else 1)


LOGGERS: dict[str, Callable[[About], Logger]] = {"mlflow": MlflowLogger, "wandb": WandbLogger}


class InBackground:
    """Gives a run's metrics to a logger in a thread of its own: a server that is slow or gone holds up no run and ends none.

    Args:
        name: of the service.
        make: begins or continues the run there.
        event: called in words when it takes nothing, and again when it does.
    """

    def __init__(self, name: str, make: Callable[[], Logger], unit: str, event: Callable[[str], None]) -> None:
        self._name, self._make, self._unit, self._event = name, make, unit, event
        self._queue: queue.Queue[tuple[dict[str, float], int] | bool] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Takes a metrics record."""
        values = {
            name: float(value)
            for name, value in line.items()
            if isinstance(value, (int, float)) and name not in (self._unit, "time_s")
        }
        if self._thread.is_alive() and not self._queue.full():
            self._queue.put((values, int(line.get(self._unit, 0))))

    def close(self, completed: bool) -> None:
        """Ends the run there once everything is sent, or after CLOSE_S."""
        if not self._thread.is_alive():
            return
        if not self._queue.full():
            self._queue.put(completed)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            self._event(
                f"{self._name} has not taken all metrics within {CLOSE_S:.0f} s, expected it to: the last ones are missing there; all "
                "are in metrics.jsonl"
            )

    def _work(self) -> None:
        try:
            logger = self._make()
        except Exception as error:
            self._event(
                f"{self._name} takes no metrics of this run ({type(error).__name__}: {error}), expected a server or a folder that does: "
                "the run goes on without, all are in metrics.jsonl; mend that, and resume the run"
            )
            return
        failed = 0
        while not isinstance(task := self._queue.get(), bool):
            try:
                logger.write(*task)
                if failed:
                    self._event(f"{self._name} takes metrics again; {failed:,} records are missing there")
                failed = 0
            except Exception as error:
                failed += 1
                if failed == 1:
                    self._event(f"{self._name} did not take a metrics record ({type(error).__name__}: {error})")
        try:
            logger.close(task)
        except Exception as error:
            self._event(f"{self._name} did not end its record of the run ({type(error).__name__}: {error})")


def start_logger(run_dir: Path, config: RunConfig, event: Callable[[str], None]) -> InBackground | None:
    """The logger that ``metrics.logger`` names; None if it names none."""
    kind = config.metrics.logger
    if not kind:
        return None
    kept = run_dir / "control" / "logger.json"

    def make() -> Logger:
        before = read_object(kept) if kept.exists() else {}
        settings = {key: value for key, (value, _) in flatten(config).items()}
        about = About(name=run_dir.name, settings=settings, run_dir=run_dir, id=str(before.get(kind, "")))
        logger = LOGGERS[kind](about)
        write_atomic(kept, json.dumps(before | {kind: logger.id}).encode())
        return logger

    return InBackground(kind, make, config.unit, event)


def missing_package(kind: str) -> str:
    """What is wrong with ``metrics.logger`` here, in a sentence; "" if nothing."""
    if not kind or importlib.util.find_spec(kind) is not None:
        return ""
    return (
        f"metrics.logger is {kind}, which is not installed, expected its package: nothing could be logged there; install it with "
        f"pip install -c constraints.txt -e '.[{kind}]' in the environment of drawbridge, or leave the setting out"
    )
