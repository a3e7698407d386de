"""Commands that look at a run without driving it: evaluate and status."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from algorithms.weights import Weights
from cluster.checks import plan_of
from cluster.errors import RunError
from cluster.graph import Plan, make_evaluator, make_learner, make_policy, newest_checkpoint, set_threads
from cluster.run_dir import RunDirectory


def evaluate(run_dir: Path, episodes: int, seed: int, video: Path | None) -> dict[str, Any]:
    """Deterministic episodes with the newest checkpoint's policy; optionally a film of the first."""
    run = RunDirectory.open(run_dir)
    plan = plan_of(run.config(), run)
    set_threads(plan.config)
    weights = newest_weights(plan)
    result = make_evaluator(plan).evaluate(weights, episodes, seed)
    if video is not None:
        _film(plan, weights, video, seed)
    return {
        "algorithm": plan.config.algorithm,
        "env": plan.config.env,
        "env_steps": result.env_steps,
        "updates": result.updates,
        "seed": seed,
        "episodes": len(result.returns),
        "return_mean": result.return_mean,
        "return_std": result.return_std,
        "returns": result.returns,
        "lengths": result.lengths,
        "errors": result.errors,
        "wall_s": result.wall_s,
    }


def newest_weights(plan: Plan) -> Weights:
    """The policy of the run's newest valid checkpoint, read on the CPU whatever it was trained on."""
    from learners.learner import PART

    found = newest_checkpoint(plan)
    if found is None:
        raise RunError(
            f"{plan.run_dir} has no checkpoint yet, so there is no policy to evaluate; the first one is written when the run starts to learn"
        )
    settings = dataclasses.replace(plan.config.learner, device="cpu")
    here = dataclasses.replace(plan, config=dataclasses.replace(plan.config, learner=settings))
    learner = make_learner(here, 0, lambda weights: None)
    noise = learner.state()["agent/generator"]  # a GPU's would not fit, and weights have no use for any
    learner.load_state(found.part(PART) | {"agent/generator": noise})
    return learner.weights()


def _film(plan: Plan, weights: Weights, path: Path, seed: int) -> None:
    from rollout_workers.acting import Actor
    from rollout_workers.video import record_video

    actor = Actor(make_policy(plan), backend=plan.config.worker.backend)
    actor.load(weights)
    record_video(plan.config.env, actor, path, seed=seed)


def status(run_dir: Path) -> dict[str, Any]:
    """What is known of a run: its state, newest line, last evaluation, and how it ended if it did."""
    run = RunDirectory.open(run_dir)
    live, owner = run.live(), run.owner()
    state = live.get("state", "unknown")
    if state in ("starting", "running", "finishing") and owner is None:
        state = "lost"
    evaluations = run.lines("evaluations.jsonl")
    config = run.config()
    found = {
        "run_dir": str(run.path),
        "state": state,
        "pid": owner,
        "algorithm": config.algorithm,
        "env": config.env,
        "seed": config.seed,
        "backend": config.backend,
        "steps": config.steps,
        "silent_s": round(time.time() - live["written"], 1) if "written" in live else None,
        "live": {key: value for key, value in live.items() if key not in ("pid", "state", "written")},
        "last_evaluation": evaluations[-1] if evaluations else None,
        "summary": run.summary(),
    }
    if (run.path / "failure.json").exists():
        found["failure"] = run.failure()
    return found


def status_in_words(found: dict[str, Any]) -> str:
    """``status`` for a person."""
    live = found["live"]
    lines = [
        f"{found['run_dir']}: {found['algorithm']} on {found['env']}, seed {found['seed']}, {found['state']}"
        + (f" (process {found['pid']})" if found["pid"] else ""),
    ]
    if "env_steps" in live:
        lines += [
            f"  env steps  {live['env_steps']:>12,} of {found['steps']:,}   {live.get('env_steps_per_s', 0):,.0f}/s",
            f"  updates    {live['updates']:>12,}   {live.get('updates_per_s', 0):,.0f}/s   replay ratio {live.get('replay_ratio', 0):.3f} "
            f"(target {live.get('target_replay_ratio', 0):g})",
            f"  replay     {live.get('size_rows', 0):>12,} rows, {100 * live.get('fill', 0):.1f} % full",
            f"  policy     version {live.get('version', 0)}, age p50 {live.get('policy_age_p50', 0)} p95 {live.get('policy_age_p95', 0)} versions",
            f"  workers    {live.get('workers', 0)} ({live.get('workers_restarted', 0)} restarts)",
        ]
    last = found["last_evaluation"]
    if last:
        mean = sum(last["returns"]) / len(last["returns"])
        lines.append(
            f"  evaluated  {mean:,.1f} over {len(last['returns'])} episodes at {last['env_steps']:,} env steps"
        )
    if found.get("failure"):
        lines.append(f"  failed     {found['failure']['error']}")
    if found["state"] in ("lost", "failed"):
        lines.append(f"  go on with `drawbridge resume {found['run_dir']}`")
    return "\n".join(lines)
