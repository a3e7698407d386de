"""Learning curves of drawbridge and of stable-baselines3's SAC: same machine, same environments, same evaluation.

    python benchmarks/learning.py run --out runs/learning            every run that is missing there, one after the other
    python benchmarks/learning.py run --out runs/learning --agents sb3 --envs Hopper-v5
    python benchmarks/learning.py run --out runs/support --agents softgac softgac-fixed --envs Pendulum-v1 --steps 10000
    python benchmarks/learning.py draw --out runs/learning           docs/learning.png and a table in Markdown

Every agent is evaluated by 10 deterministic episodes with seeds 10000 to 10009 every 5,000 env steps. One torch thread a process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
STEPS = {
    "HalfCheetah-v5": 25_000, "Hopper-v5": 50_000, "Walker2d-v5": 50_000, "InvertedDoublePendulum-v5": 10_000,
    "Pendulum-v1": 10_000,
}  # fmt: skip
EVERY, EPISODES, FIRST_SEED = 5_000, 10, 10_000
NAMES = {
    "softgac": "Drawbridge SoftGAC (preset cpu)",
    "sac": "Drawbridge SAC (same critics)",
    "softgac-fixed": "SoftGAC, support [-400, 400]",
    "sac-fixed": "SAC, support [-400, 400]",
    "sb3": "stable-baselines3 SAC",
}
FIXED = ("--set", "agent.v_min=-400", "--set", "agent.v_max=400")
COLORS = {
    "softgac": "#0072B2", "sac": "#009E73", "softgac-fixed": "#56B4E9", "sac-fixed": "#CC79A7", "sb3": "#D55E00",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "draw"])
    parser.add_argument("--out", type=Path, required=True, help="where the runs' results go, and are looked for")
    parser.add_argument("--agents", nargs="+", choices=list(NAMES), default=["softgac", "sb3"])
    parser.add_argument(
        "--envs", nargs="+", choices=list(STEPS), default=["HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"]
    )
    parser.add_argument("--steps", type=int, help="env steps of a run, instead of the task's own")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--backend", choices=["ray", "inline"], default="inline", help="of drawbridge's runs")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "learning.png")
    arguments = parser.parse_args()
    if arguments.what == "draw":
        draw(arguments.out, arguments.picture)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for env in arguments.envs:
            for agent in arguments.agents:
                path = arguments.out / f"{agent}-{env}-{seed}.json"
                if path.exists():
                    continue
                steps = arguments.steps or STEPS[env]
                curve = (
                    run_sb3(env, seed, steps)
                    if agent == "sb3"
                    else run_drawbridge(agent, env, seed, steps, arguments.backend, arguments.out)
                )
                path.write_text(json.dumps({"agent": agent, "env": env, "seed": seed, "evaluations": curve}))
                print(
                    agent,
                    env,
                    seed,
                    [(point["env_steps"], round(float(np.mean(point["returns"])))) for point in curve],
                    flush=True,
                )


def run_drawbridge(agent: str, env: str, seed: int, steps: int, backend: str, out: Path) -> list[dict[str, Any]]:
    """One run of the command line; its evaluations."""
    run_dir = out / f"run-{agent}-{env}-{seed}-{int(time.time())}"
    algorithm, fixed = agent.removesuffix("-fixed"), FIXED if agent.endswith("-fixed") else ()
    command = [sys.executable, "-m", "cluster", "train", algorithm, "--env", env, "--preset", "cpu"]
    command += [
        "--seed",
        str(seed),
        *fixed,
        "--steps",
        str(steps),
        "--backend",
        backend,
        "--run-dir",
        str(run_dir.resolve()),
    ]
    command += ["--set", f"evaluation.every_steps={EVERY}", "--set", f"evaluation.episodes={EPISODES}"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines = (run_dir / "evaluations.jsonl").read_text().splitlines()
    return [{key: line[key] for key in ("env_steps", "time_s", "returns")} for line in map(json.loads, lines)]


def run_sb3(env_id: str, seed: int, steps: int) -> list[dict[str, Any]]:
    """stable-baselines3's SAC with its defaults: one environment, one update a step; with the faster matrix library."""
    import gymnasium
    import torch
    from stable_baselines3 import SAC

    from algorithms import runtime

    torch.set_num_threads(1)
    with runtime.library(runtime.choose("auto")):
        return _train_sb3(SAC("MlpPolicy", gymnasium.make(env_id), seed=seed, device="cpu"), env_id, steps)


def _train_sb3(model: Any, env_id: str, total: int) -> list[dict[str, Any]]:
    import gymnasium

    judge = gymnasium.make(env_id)
    points, began = [], time.monotonic()
    for steps in range(EVERY, total + 1, EVERY):
        model.learn(EVERY, reset_num_timesteps=steps == EVERY)
        returns = [_episode(model, judge, FIRST_SEED + i) for i in range(EPISODES)]
        points.append({"env_steps": steps, "time_s": time.monotonic() - began, "returns": returns})
    return points


def _episode(model: Any, env: Any, seed: int) -> float:
    obs, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        action, _ = model.predict(obs, deterministic=True)
        obs, reward, terminated, truncated, _ = env.step(action)
        total, over = total + float(reward), terminated or truncated
    return total


def draw(out: Path, picture: Path) -> None:
    """One panel an environment: mean over seeds, range of the seeds' means; and the table."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    envs = [env for env in STEPS if any(r["env"] == env for r in results)]
    figure, axes = pyplot.subplots(1, len(envs), figsize=(4.6 * len(envs), 3.6), squeeze=False)
    print("| environment | agent | seeds | " + "env steps: mean return [95 % interval] |\n|---|---|---|---|")
    for axis, env in zip(axes[0], envs):
        for agent, name in NAMES.items():
            runs = [r["evaluations"] for r in results if r["env"] == env and r["agent"] == agent]
            if not runs:
                continue
            points = min(len(run) for run in runs)
            steps = np.array([point["env_steps"] for point in runs[0][:points]])
            mean_RG = np.array([[np.mean(point["returns"]) for point in run[:points]] for run in runs])
            low, high = interval(mean_RG)
            axis.plot(steps, mean_RG.mean(0), color=COLORS[agent], label=name, marker="o", markersize=3)
            axis.fill_between(steps, low, high, color=COLORS[agent], alpha=0.18, linewidth=0)
            shown = ", ".join(
                f"{s // 1000}k: {m:,.0f} [{a:,.0f}, {b:,.0f}]" for s, m, a, b in zip(steps, mean_RG.mean(0), low, high)
            )
            print(f"| {env} | {name} | {len(runs)} | {shown} |")
        axis.set(title=env, xlabel="env steps", ylabel="deterministic return")
        axis.grid(alpha=0.25)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def interval(mean_RG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % bootstrap interval of the mean over runs, at each evaluation."""
    rng = np.random.default_rng(0)
    draws = rng.integers(len(mean_RG), size=(2_000, len(mean_RG)))
    low, high = np.quantile(mean_RG[draws].mean(axis=1), [0.025, 0.975], axis=0)
    return low, high


if __name__ == "__main__":
    main()
