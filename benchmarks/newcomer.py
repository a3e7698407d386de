"""From a bare clone to a policy in Python: seconds and CPU seconds until a newcomer sees something, here and with stable-baselines3.

    python benchmarks/newcomer.py --out /tmp/newcomer     a clone and an environment for each below it, which must be new

Both install with pip and this project's constraints, from whatever cache pip has, and begin to learn HalfCheetah-v5 as their first
pages say: `make train`, and SAC in a script that draws its own curve after ``STEPS`` env steps. Each is ended at its first policy.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
STEPS = 5_000  # of stable-baselines3 until it draws: five episodes
LIMIT_S = 1_200.0
STAGES = ("installed", "first sign of life", "first number", "first curve", "first policy in Python")
LOAD = """
import gymnasium as gym
from drawbridge import load
print(load("runs/first")(gym.make("HalfCheetah-v5").reset(seed=1)[0]))
"""
SB3 = f"""
import gymnasium as gym
from stable_baselines3 import SAC
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.results_plotter import plot_results
import matplotlib
matplotlib.use("Agg")
env = Monitor(gym.make("HalfCheetah-v5"), "log")
model = SAC("MlpPolicy", env, verbose=1).learn({STEPS}, log_interval=1)
plot_results(["."], None, "timesteps", "HalfCheetah-v5")
matplotlib.pyplot.savefig("curve.png")
print("action", model.predict(env.reset(seed=1)[0], deterministic=True)[0], flush=True)
"""


class Watch:
    """Seconds, and CPU seconds of this process's descendants, since it was made."""

    def __init__(self) -> None:
        self._began, self._used_s = time.monotonic(), 0.0
        self._before_s = _descendants_s()
        self.seen: list[tuple[float, float]] = []

    def mark(self) -> None:
        """Notes that the next of ``STAGES`` is reached."""
        self._used_s = max(self._used_s, _descendants_s() - self._before_s)
        self.seen.append((time.monotonic() - self._began, self._used_s))
        print(f"  {STAGES[len(self.seen) - 1]}: {self.seen[-1][0]:.0f} s, {self.seen[-1][1]:.0f} CPU s", flush=True)


def _descendants_s() -> float:
    """CPU seconds of this process's descendants; one that ended and that nobody waited for takes its own with it."""
    used = 0.0
    for index, process in enumerate([psutil.Process(), *psutil.Process().children(recursive=True)]):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used += times.children_user + times.children_system + (times.user + times.system if index else 0.0)
    return used


def wait_until(reached: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    """SystemExit if ``process`` ends before, or LIMIT_S are over."""
    end = time.monotonic() + LIMIT_S
    while not reached():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"{what} was not reached; see the log")
        time.sleep(0.1)


def drawbridge(out: Path) -> list[tuple[float, float]]:
    """`make train` in a clone until it has a curve, then its policy."""
    watch, tree = Watch(), out / "drawbridge"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tree)], check=True)
    with open(out / "drawbridge.log", "w", encoding="utf-8") as log:
        subprocess.run(["make", "setup"], cwd=tree, stdout=log, stderr=log, check=True)
        watch.mark()
        words = ["make", "train", "ARGS=--run-dir runs/first"]
        process = subprocess.Popen(words, cwd=tree, stdout=log, stderr=log, text=True)
    run, python = tree / "runs" / "first", str(tree / ".venv" / "bin" / "python")
    said, evaluated = (lambda: "run directory" in (out / "drawbridge.log").read_text()), run / "evaluations.jsonl"
    wait_until(said, process, STAGES[1])
    watch.mark()
    wait_until(lambda: evaluated.exists() and evaluated.stat().st_size > 0, process, STAGES[2])
    watch.mark()
    wait_until((run / "curve.png").exists, process, STAGES[3])
    watch.mark()
    subprocess.run([python, "-c", LOAD], cwd=tree, check=True, stdout=subprocess.DEVNULL)
    watch.mark()
    subprocess.run([python, "-m", "cluster", "stop", str(run)], cwd=tree, check=True, stdout=subprocess.DEVNULL)
    process.wait(60)
    return watch.seen


def stable_baselines3(out: Path) -> list[tuple[float, float]]:
    """The same in a script with stable-baselines3's SAC."""
    watch, place, log_path = Watch(), out / "sb3", out / "sb3.log"
    place.mkdir()
    python = str(place / ".venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", str(place / ".venv")], check=True)
    packages = ["stable-baselines3", "gymnasium[mujoco]", "matplotlib", "pandas", "torch"]
    words = ["-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *packages]
    with open(log_path, "w", encoding="utf-8") as log:
        subprocess.run([python, *words], check=True, stdout=log, stderr=log)
        watch.mark()
        process = subprocess.Popen([python, "-u", "-c", SB3], cwd=place, stdout=log, stderr=log, text=True)
    for stage, words_in in zip(STAGES[1:3], ("Using ", "ep_rew_mean")):
        wait_until(lambda text=words_in: text in log_path.read_text(), process, stage)
        watch.mark()
    wait_until((place / "curve.png").exists, process, STAGES[3])
    watch.mark()
    wait_until(lambda: "action" in log_path.read_text(), process, STAGES[4])
    watch.mark()
    process.wait(60)
    return watch.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True)
    rows = {}
    for name, run in (("Drawbridge", drawbridge), ("stable-baselines3", stable_baselines3)):
        print(name, flush=True)
        rows[name] = run(out)
    print(f"\n| seconds / CPU seconds from a bare clone to | {' | '.join(rows)} |\n|---|---|---|")
    for index, stage in enumerate(STAGES):
        print(f"| {stage} | {' | '.join(f'{seen[index][0]:.0f} / {seen[index][1]:.0f}' for seen in rows.values())} |")


if __name__ == "__main__":
    main()
