"""Which alert fires for which fault: a real Prometheus over real runs, each fault injected, as a Markdown table.

    .venv/bin/python benchmarks/alerts.py [--only disk numbers plans silent fleet lost starved healthy]

Prometheus runs by deploy/monitoring/start.sh with the rules of deploy/alerts.yml; a minute of a rule lasts 2 s here, as in
tests/monitored.py. Faults that no process but the run can make come from the environments of tests/broken_envs.py. DiskLow and the
alerts of failed writes need a file system of a few megabytes, which only root can mount. Exit code 1: an alert did not fire, or one
fired before its fault or for the healthy run.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))

import tiny_episodes  # noqa: E402
from monitored import Monitor, monitored  # noqa: E402
from ray_runs import RayRun  # noqa: E402
from small_disk import small_disk  # noqa: E402
from tiny_runs import command, train_words, wait_for  # noqa: E402

from benchmarks.markdown import table  # noqa: E402

START_S = 600.0  # longest that a run may take to start there
FIRES_S = 240.0  # longest that an alert is waited for, on a machine that others use too
LOST_S, LOST_UPDATES = 60.0, 800  # of learning, at least, which the learner has to do again once it is killed
SILENT_S = 60.0  # after which Stalled calls a run silent, also with the impatient rules
HEALTHY_S = 60.0  # that the healthy run is watched: 30 minutes of the rules
Row = list[str]


class Run:
    """One monitored run, and the alerts that fired for it."""

    def __init__(self, monitor: Monitor, run: RayRun) -> None:
        self.monitor, self.run, self.name = monitor, run, run.run_dir.name
        run.wait(lambda: "running" in monitor.states(self.name), "the run to be scraped", START_S)
        self.target = monitor.target(self.name)

    def fired(self) -> set[str]:
        return self.monitor.fired(self.name, self.target)

    def check(
        self,
        fault: str,
        *rules: str,
        inject: Callable[[], Any] | None = None,
        kept: Callable[[Any], Any] = lambda condition: condition,
    ) -> list[Row]:
        """Injects a fault and waits for its alerts; a row for each.

        Args:
            inject: None for a fault that is there from the start.
            kept: what keeps the fault up while its alerts are waited for, or asks more of them.
        """
        before = self.fired() if inject else set()
        if inject:
            inject()
        since, after = time.monotonic(), {}
        for rule in rules:
            with contextlib.suppress(AssertionError):
                wait_for(kept(lambda rule=rule: rule in self.fired()), rule, FIRES_S)
                after[rule] = f"fired after {time.monotonic() - since:.0f} s"
            print(f"{rule}: {after.get(rule, 'DID NOT FIRE')}", flush=True)
        quiet = "quiet" if inject else "-"
        return [[r, fault, "FIRED" if r in before else quiet, after.get(r, "DID NOT FIRE")] for r in rules]


class Faults:
    """Starts the runs and injects the faults. Each method is one run and gives a row for each of its rules."""

    def __init__(self, folder: Path, monitor: Monitor) -> None:
        self.folder, self.monitor = folder, monitor
        self.switch = folder / "switch"  # broken_envs.SlowStart and Rests look at it
        os.environ["FAULT_SWITCH"] = str(self.switch)

    @contextlib.contextmanager
    def run(self, run_dir: Path, env: str, *flags: str, **settings: Any) -> Iterator[Run]:
        given: dict[str, Any] = {
            "metrics__port": 0,
            "metrics__line_s": 0.5,
            "metrics__targets_dir": self.monitor.targets,
        }
        given |= {"ray__start_timeout_s": START_S} | settings
        words = train_words(run_dir, env, "--steps", "100000000", *flags, **given)
        with self.driven(run_dir, *words) as run:
            yield run

    @contextlib.contextmanager
    def driven(self, run_dir: Path, *words: str) -> Iterator[Run]:
        run = RayRun(run_dir, self.folder / f"{run_dir.name}.log", *words)
        try:
            yield Run(self.monitor, run)
        finally:
            run.close()

    def disk(self) -> list[Row]:
        """An inline run of an environment that returns NaN, on a small disk that fills up; killed in the end."""
        with small_disk(self.folder / "disk") as disk:
            run_dir, quick = disk.path / "faulty", {"learner__checkpoint_s": 2}
            with self.run(run_dir, "broken_envs:SometimesNaN-v0", "--backend", "inline", **quick) as run:
                full = ("SnapshotFailed", "ReportFailed", "CheckpointOld")
                return [
                    *run.check("the environment returns NaN", "RowsDropped"),
                    *run.check("a file system of 24 MiB", "DiskLow"),
                    *run.check("the disk is full", *full, inject=disk.fill, kept=disk.kept_full),
                    *run.check("the driver is killed (SIGKILL)", "RunDown", inject=run.run.process.kill),
                ]

    def numbers(self) -> list[Row]:
        """Inline runs whose numbers are wrong: observations that overflow, a support that is too narrow, plans without information."""
        inline, skips = ("--backend", "inline"), {"learner__nonfinite_skips": 1_000_000}
        with self.run(self.folder / "explodes", "broken_envs:Explodes-v0", *inline, **skips) as run:
            rows = run.check("observations of 1e17", "NonFinite")
        with self.run(self.folder / "narrow", "Pendulum-v1", *inline, agent__v_min=-0.1, agent__v_max=0.1) as run:
            rows += run.check("a support of [-0.1, 0.1]", "ValueClipped")
        tiny_episodes.make_dataset(self.folder / "datasets", _Environment())  # type: ignore[arg-type]
        settings = {"agent__kl_weight": 1_000, "metrics__port": 0, "metrics__line_s": 0.5}
        settings |= {"metrics__targets_dir": self.monitor.targets}
        run_dir = self.folder / "collapses"
        words = tiny_episodes.train_words("gac", run_dir, *inline, "--steps", "1000000", **settings)
        with self.driven(run_dir, *words) as run:
            rows += run.check("a weight of 1,000 of the KL", "PosteriorCollapsed")
        return rows

    def plans(self) -> list[Row]:
        """Inline runs of gac: a search that leaves the data, and stages where nothing is rewarded, unlike in the data."""
        common: dict[str, Any] = {
            "metrics__port": 0,
            "metrics__line_s": 0.5,
            "metrics__targets_dir": self.monitor.targets,
        }
        far = common | {"agent__plan_reading": "linear", "agent__layers": 0, "evaluation__every_steps": 500}
        far |= {"agent__infer_mode": "max", "agent__infer_lr": 1, "agent__infer_max_steps": 500}
        inline, there = ("--backend", "inline"), ("--env", tiny_episodes.BARREN)
        promises, base, alike = (self.folder / name for name in ("promises", "base", "alike"))
        tiny_episodes.make_dataset(self.folder / "swings", _Environment())  # type: ignore[arg-type]
        words = tiny_episodes.train_words("gac", promises, *inline, "--steps", "1000000", **far)
        with self.driven(promises, *words) as run:
            rows = run.check("a search of 500 long steps", "PromiseRunaway")
        tiny_episodes.make_barren_dataset(self.folder / "barren", _Environment())  # type: ignore[arg-type]
        made = command(*tiny_episodes.train_words("gac", base, *inline, *there, "--steps", "10"))
        assert made.returncode == 0, made.stderr
        words = tiny_episodes.finetune_words(base, alike, *there, stages=100_000, episodes=12, updates=5, **common)
        with self.driven(alike, *words) as run:
            return rows + run.check("stages where nothing is rewarded", "ExplorationCollapsed")

    def silent(self) -> list[Row]:
        """An inline run that writes no records while a step of its environment lasts; Stalled must fire for that, whatever else it sees."""
        self.switch.unlink(missing_ok=True)
        longer = {"worker__step_timeout_s": 600}  # the run must not end first
        with self.run(self.folder / "silent", "broken_envs:Rests-v0", "--backend", "inline", **longer) as run:

            def for_silence(fired: Callable[[], bool]) -> Callable[[], bool]:
                return lambda: fired() and run.monitor.value("Stalled", run.target) > SILENT_S

            fault = "an inline run whose env step takes minutes"
            rows = run.check(fault, "Stalled", inject=self.switch.touch, kept=for_silence)
        self.switch.unlink()
        return rows

    def fleet(self) -> list[Row]:
        """A run on Ray: workers that do not start or are killed, a learner that is stopped."""
        budget = {"worker__restart_budget": 5, "replay__snapshot_s": 5}
        slow = {
            "agent__critic_width": 256,
            "learner__batch_size": 256,
            "ray__call_timeout_s": 600,
            "worker__step_timeout_s": 600,
        }
        with self.run(self.folder / "fleet", "broken_envs:SlowStart-v0", "--workers", "2", **budget, **slow) as run:
            run.run.wait_for_steps(500)
            missing = ("WorkersMissing", "WorkersPending")
            rows = run.check("6 of 8 workers do not start", *missing, inject=lambda: self._scale(run, 8))
            self._scale(run, 2)
            killed = ("RestartStorm", "BudgetLow")
            rows += run.check("4 workers are killed, of 5 restarts", *killed, inject=lambda: self._kill_workers(run, 4))
            (learner,) = run.run.children("ray::LearnerActor")
            stop = functools.partial(learner.send_signal, signal.SIGSTOP)
            return rows + run.check("the learner is stopped (SIGSTOP)", "Stalled", inject=stop)

    def lost(self) -> list[Row]:
        """A run on Ray whose learner has to make all its updates again, slowly, because it is killed before its first checkpoint."""
        slow = {"agent__critic_width": 256, "learner__batch_size": 256, "learner__checkpoint_s": 1_000}
        with self.run(self.folder / "lost", "InvertedPendulum-v5", "--workers", "1", **slow) as run:
            run.run.wait(lambda: run.run.live().get("updates", 0) > 0, "the first update", START_S)
            by = time.monotonic() + LOST_S
            run.run.wait(
                lambda: time.monotonic() > by and run.run.live()["updates"] >= LOST_UPDATES, "more updates", START_S
            )
            (learner,) = run.run.children("ray::LearnerActor")
            return run.check("the learner is killed, with no checkpoint", "RatioOff", inject=learner.kill)

    def starved(self) -> list[Row]:
        """A run on Ray with one slow worker (a step takes 50 ms), whose chunks are long, and a learner that publishes every update."""
        quick: dict[str, Any] = {
            "learner__publish_updates": 1,
            "learner__updates_per_call": 1,
            "worker__chunk_steps": 64,
        }
        quick["replay__replay_ratio"] = 0.25  # 16 updates while the worker makes a chunk
        flags = ("--workers", "1", "--envs-per-worker", "1")
        with self.run(self.folder / "starved", "broken_envs:Slow-v0", *flags, **quick) as run:
            return run.check("one slow worker, 16 updates a chunk", "LearnerStarved", "PolicyLagHigh")

    def healthy(self) -> list[Row]:
        """A run on Ray without a fault: watched, then stopped."""
        with self.run(self.folder / "healthy", "InvertedPendulum-v5", "--workers", "2") as run:
            by = time.monotonic() + HEALTHY_S
            run.run.wait(lambda: time.monotonic() > by, "the end of the watch", HEALTHY_S + 30)
            run.run.process.terminate()
            run.run.process.wait(120)
            gone = f'up{{instance="{run.target}"}}'
            wait_for(lambda: not self.monitor.query(gone), "its target to go", 60)
            fired = run.fired()
        after = f"FIRED: {sorted(fired)}" if fired else "quiet"
        return [["none", f"a healthy run for {HEALTHY_S:.0f} s, then SIGTERM", "-", after]]

    def _scale(self, run: Run, workers: int) -> None:
        self.switch.touch() if workers > 2 else self.switch.unlink(missing_ok=True)
        print(command("scale", str(run.run.run_dir), "--workers", str(workers)).stdout.strip(), flush=True)

    def _kill_workers(self, run: Run, times: int) -> None:
        run.run.wait(lambda: run.run.live()["workers"] == 2, "two workers", FIRES_S)
        for count in range(1, times + 1):
            before = run.run.live()["env_steps"]
            run.run.kill_one("ray::WorkerActor")
            run.run.wait(lambda count=count: run.run.live()["workers_restarted"] >= count, "a restart", FIRES_S)
            run.run.wait_for_steps(before + 100)


class _Environment:
    """The part of pytest's monkeypatch that tiny_episodes needs."""

    def setenv(self, name: str, value: str) -> None:
        os.environ[name] = value


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("disk", "numbers", "plans", "silent", "fleet", "lost", "starved", "healthy")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts, help="runs to make (default: all)")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="alerts-") as name:
        folder = Path(name)
        with monitored(folder / "monitor") as monitor:
            faults = Faults(folder, monitor)
            for part in arguments.only:
                rows += getattr(faults, part)()
    print(table(["rule", "fault", "before", "after"], rows))
    left = [p.pid for p in psutil.Process().children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
    bad = [row for row in rows if row[2] == "FIRED" or not row[3].startswith(("fired", "quiet"))]
    if left:
        print(f"processes left: {left}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
