"""What each part of a preset of GAC is worth: the preset with one part changed, trained alike, and its diagnosis.

    python benchmarks/ablations.py --out runs/ablations --seeds 1 2 3 --updates 2000
    python benchmarks/ablations.py --preset linear --dataset drawbridge/pointmaze-umaze-d0-v0 --seeds 1 2 3 --updates 2000

The second takes the paper's parts, one at a time, into our own model. The dataset is made first: `drawbridge dataset make maze --env
PointMaze_UMaze-v3 --episodes 1000 --dwell 300` (or 0). A run that is there is
trained to its end and not again. Scores are of the preset's mode, 50 starts from 20000 up; shares are of the variance of 64 recorded
episodes. "Expert" acts from the same starts by the posteriors of episodes that the planner walked to the goal, scoring 100: a
low score means that the generator knows no such behaviour, whatever plan is searched. Letters: K episodes, n tokens of width d.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from algorithms.gac.agent import GAC
from algorithms.gac.diagnosis import posteriors
from algorithms.gac.generator import Memory
from algorithms.gac.policy import GACPolicy
from algorithms.interface import PlanRequest
from benchmarks.markdown import over_seeds, table
from benchmarks.plan_quality import SHARES
from cluster.checks import spec_of
from cluster.commands.evaluation import newest_learner
from cluster.diagnosis import packed
from cluster.run_dir import RunDirectory
from replay.stored_episode import StoredEpisode
from rollout_workers.episodes import Acts, EpisodeRuns
from rollout_workers.maze import maze_of
from rollout_workers.waypoints import WaypointPlanner

ROOT = Path(__file__).resolve().parent.parent

FIRST, STARTS = 20_000, 50  # seed of the first start, how many

CHANGES: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {
        "the preset": (),
        "window 2": ("agent.window=2",),
        "window 8": ("agent.window=8",),
        "window 32": ("agent.window=32",),
        "free bits 0": ("agent.free_bits=0",),
        "free bits .1": ("agent.free_bits=0.1",),
        "1 token": ("agent.tokens=1",),
        "4 tokens": ("agent.tokens=4",),
        "16 tokens": ("agent.tokens=16",),
        "return head of one layer": ("agent.return_layers=1",),
        "y told to the encoder": ("agent.posterior_return=true",),
        "linear reading": ("agent.plan_reading=linear",),
        "implicit prior": ("agent.prior=implicit",),
        "standard prior": ("agent.prior=standard",),
        "stored posteriors, 3 steps": ("agent.posterior=stored", "agent.inner_steps=3"),
    },
    "linear": {
        "the preset": (),
        "KL weight 1": ("agent.kl_weight=1",),
        "KL weight 1, free bits .1": ("agent.kl_weight=1", "agent.free_bits=0.1"),
        "KL weight 1, free bits .5": ("agent.kl_weight=1", "agent.free_bits=0.5"),
        "4 tokens": ("agent.tokens=4",),
        "16 tokens": ("agent.tokens=16",),
        "y not told to the encoder": ("agent.posterior_return=false",),
        "plan never hidden": ("agent.plan_dropout=0",),
        "search by fresh noise": ("agent.infer_fresh=true",),
        "next states generated": ("agent.next_state_weight=0.1",),
        "return head of three layers": ("agent.return_layers=3",),
        "implicit prior": ("agent.prior=implicit",),
        "standard prior": ("agent.prior=standard",),
        "stored posteriors, 3 steps": ("agent.posterior=stored", "agent.inner_steps=3"),
        "cross-attention": ("agent.plan_reading=attention", "agent.layers=1", "agent.width=64"),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "ablations")
    parser.add_argument("--dataset", default="drawbridge/pointmaze-umaze-d300-v0")
    parser.add_argument("--preset", choices=list(CHANGES), default="cpu")
    parser.add_argument("--only", nargs="+", metavar="CHANGE", help="rows of the table (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--updates", type=int, default=1_500)
    options = parser.parse_args()
    if unknown := set(options.only or ()) - set(CHANGES[options.preset]):
        parser.error(f"no change {sorted(unknown)} of {options.preset}; give some of {list(CHANGES[options.preset])}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.only or CHANGES[options.preset]:
        found = [diagnosed(options, name, seed) for seed in options.seeds]
        rows.append([name, *cells(found)])
        print(rows[-1], file=sys.stderr, flush=True)
    head = [
        "",
        "score",
        "expert",
        "plan hidden",
        "redrawn",
        *SHARES.values(),
        "nats a token",
        "of it the return",
    ]
    print(table(head, rows))


def diagnosed(options: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """What `drawbridge diagnose` says of one run, which is trained unless it is there."""
    preset, dataset, updates = options.preset, options.dataset, options.updates
    words = (
        preset,
        dataset.rsplit("/", 1)[-1],
        "".join(c if c.isalnum() else "-" for c in name).strip("-"),
        str(updates),
        str(seed),
    )
    run = options.out / "-".join(words)
    kept = run.with_suffix(".json")
    if not kept.exists():
        train = ["train", "gac", "--preset", preset, "--dataset", dataset, "--backend", "inline"]
        train += ["--seed", str(seed), "--run-dir", str(run)]
        train += ["--steps", str(updates)]
        for setting in (*CHANGES[preset][name], f"evaluation.every_steps={updates}", "evaluation.final_episodes=1"):
            train += ["--set", setting]
        if not run.exists() or RunDirectory(run).never_began():
            drawbridge(*train)
        elif (RunDirectory(run).summary() or {}).get("exit") != "completed":
            drawbridge("resume", str(run))
        kept.write_text(drawbridge("diagnose", str(run), "--episodes", str(STARTS), "--seed", str(FIRST), "--json"))
    found: dict[str, Any] = json.loads(kept.read_text())
    if "expert" not in found:
        found["expert"] = expert(run)
        kept.write_text(json.dumps(found))
    return found


class GivenPlans(GACPolicy):
    """Acts by plans that are given, one an environment."""

    z_Knd: torch.Tensor

    def read(self, z_Knd: torch.Tensor, env_K: np.ndarray, obs_KO: np.ndarray) -> Memory:
        """Of the given plans."""
        return self.model.memory(self.z_Knd[torch.from_numpy(env_K)])


def expert(run_dir: Path) -> float:
    """Normalised score of acting by local posteriors of the planner's own episodes, each from its own start."""
    run = RunDirectory.open(run_dir)
    spec = spec_of(run.config(), run)
    learner = newest_learner(spec)
    agent, maze, dataset = cast(GAC, learner.agent), maze_of(spec.config.env), spec.dataset
    assert maze is not None and dataset is not None
    seeds = [FIRST + i for i in range(STARTS)]
    walked = run_all(spec.config.env, WaypointPlanner(maze, noise=0.5, target=maze.goal_cell), seeds)
    agent.encoder = None  # it has not seen such episodes: search
    z_Knd = plans(agent, posteriors(agent, packed(walked)).mean_Bnd, walked)
    acted = act_out(agent, spec.config.env, z_Knd, seeds)
    return float(np.mean([dataset.normalised(float(one.reward_T.sum())) for one in acted]))


@torch.no_grad()
def plans(agent: GAC, z0_Knd: torch.Tensor, episodes: Sequence[StoredEpisode]) -> torch.Tensor:
    """z (K, n, d) of z_0 at the episodes' starts."""
    return agent.model.plan(z0_Knd, torch.from_numpy(np.stack([episode.obs_TO[0] for episode in episodes])))


def act_out(agent: GAC, env_id: str, z_Knd: torch.Tensor, seeds: list[int]) -> list[StoredEpisode]:
    """Episodes of the K plans, each from the start of its seed."""
    policy = GivenPlans(agent.config, agent.obs_dim, agent.action_dim)
    policy.load_weights({name: tensor.numpy() for name, tensor in agent.policy_weights().items()})
    policy.aim, policy.z_Knd = PlanRequest(mode="prior"), z_Knd
    return run_all(env_id, policy, seeds)


def run_all(env_id: str, actor: Acts, seeds: list[int]) -> list[StoredEpisode]:
    """An episode from each seed, but for those that met a NaN or an infinity."""
    runs = EpisodeRuns(env_id)
    try:
        found = runs.run(actor, seeds, np.random.SeedSequence(0).spawn(len(seeds)))
    finally:
        runs.close()
    return [episode for episode in found if episode is not None]


def drawbridge(*words: str) -> str:
    """Its standard output."""
    command = [sys.executable, "-m", "cluster", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def cells(found: list[dict[str, Any]]) -> list[str]:
    """Means over seeds: three scores, three shares, KL of a plan, share of it that is the return."""
    scores = [
        over_seeds([one["scores"][key]["normalised_mean"] for one in found])
        for key in ("searched", "hidden", "redrawn")
    ]
    shares = [over_seeds([one["explained"][key] for one in found], 3) for key in SHARES]
    nats = over_seeds([one["plan"]["kl_token"] for one in found], 2)
    scores.insert(1, over_seeds([one["expert"] for one in found]))
    return [*scores, *shares, nats, over_seeds([one["plan"]["return_share"] for one in found], 2)]


if __name__ == "__main__":
    main()
