"""MLflow and Weights & Biases: what a run sends them, in their own offline modes, and what becomes of a run when they fail."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from tiny_runs import lines, train_inline, wait_for

from cluster.cli import main
from cluster.metrics import loggers
from cluster.metrics.loggers import InBackground


def trained(run_dir: Path, kind: str) -> None:
    settings = {"metrics__logger": kind, "metrics__line_s": 0, "evaluation__every_steps": 0}
    assert train_inline(run_dir, "Pendulum-v1", 300, **settings) == 0
    assert main(["resume", str(run_dir), "--steps", "400", "--set", f"metrics.logger={kind}"]) == 0


def test_mlflow_has_the_records_of_a_run_and_of_its_continuation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    store = f"file:{tmp_path / 'store'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")  # as a user begins
    trained(tmp_path / "hopping", "mlflow")
    client = mlflow.MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("drawbridge").experiment_id])
    assert (run.info.run_name, run.info.status) == ("hopping", "FINISHED"), capsys.readouterr()
    assert run.data.params["env"] == "Pendulum-v1" and run.data.params["agent.gamma"] == "0.99"
    made = [line for line in lines(tmp_path / "hopping" / "metrics.jsonl") if "updates" in line]
    sent = {point.step: point.value for point in client.get_metric_history(run.info.run_id, "updates")}
    assert sent == {line["env_steps"]: line["updates"] for line in made} and max(sent) == 400


def test_wandb_has_the_records_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    trained(tmp_path / "run", "wandb")
    first, second = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert first.stem == second.stem  # one run of Weights & Biases
    for file, name in ((first, b"loss_critic_loss"), (second, b"env_steps_per_s")):  # written by a process of W&B's own
        wait_for(lambda file=file, name=name: name in file.read_bytes(), f"{name!r} in {file.name}", 30)


def test_a_logger_that_is_not_installed_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train_inline(tmp_path / "run", "Pendulum-v1", 300, metrics__logger="wandb") == 2
    result = capsys.readouterr().err
    assert "metrics.logger is wandb, which is not installed" in result and "-e '.[wandb]'" in result
    assert not (tmp_path / "run").exists()


class Fails:
    """A service that takes every second record and never ends."""

    id = "1"

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.ends = threading.Event()

    def write(self, values: Mapping[str, float], step: int) -> None:
        self.steps.append(step)
        if step % 2:
            raise ConnectionError("no route")

    def close(self, completed: bool) -> None:
        self.ends.wait(60)


def test_a_service_that_fails_or_hangs_neither_ends_nor_holds_up_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "CLOSE_S", 0.2)
    result: list[str] = []
    service = Fails()
    logger = InBackground("mlflow", lambda: service, "env_steps", result.append)
    for step in range(4):
        logger.write({"env_steps": step, "updates": 1, "phase": "words"})
    logger.close(True)
    service.ends.set()
    logger._thread.join(60)
    assert service.steps == [0, 1, 2, 3]
    assert result[0] == "mlflow did not take a metrics record (ConnectionError: no route)"
    assert result[1] == "mlflow takes metrics again; 1 records are missing there"
    assert "has not taken all metrics within 0 s" in result[-1]


def test_a_service_that_is_not_there_is_said_once() -> None:
    result: list[str] = []
    said = threading.Event()

    def refused() -> Fails:
        raise ConnectionError("no route")

    def event(text: str) -> None:
        result.append(text)
        said.set()

    logger = InBackground("wandb", refused, "env_steps", event)
    assert said.wait(60)
    logger.write({"env_steps": 1, "updates": 1})
    logger.close(True)
    assert len(result) == 1 and "wandb takes no metrics of this run (ConnectionError: no route)" in result[0]
