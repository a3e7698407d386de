"""What RLlib is given: results under RLlib's keys, and checkpoints, which are folders on this machine or runs of the command line."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune import Checkpoint

from algorithms.weights import Weights
from cluster.config import flatten
from cluster.errors import RunError, UsageError
from cluster.run_dir import RunDirectory
from cluster.session import Session
from replay.task import split_task
from rollout_workers.evaluator import Evaluation

SAVED = "drawbridge_rllib.json"  # written last: a folder without it is no checkpoint
FORMAT = 1
OF_THE_FACE = {
    "algorithm",
    "preset",
    "env",
    "steps",
    "evaluation.episodes",
    "evaluation.every_steps",
}  # set by its own methods


def evaluated(session: Session) -> Evaluation:
    """One evaluation of the newest policy, waited for."""
    newest(session)
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


def newest(session: Session) -> Weights:
    """The newest published policy; a learner that has just started publishes its first within seconds."""
    limit_s = session.config.ray.start_timeout_s
    deadline = time.monotonic() + limit_s
    while (weights := session.fleet.weights()) is None:
        session.advance()
        if time.monotonic() > deadline:
            raise RunError(f"the learner published no policy within {limit_s:.0f} s, expected one at its start")
    return weights


def trained(
    session: Session,
    lines: list[dict[str, Any]],
    episodes: deque[dict[str, Any]],
    env_steps: int,
    updates: int,
    seconds: float,
) -> dict[str, Any]:
    """One iteration under RLlib's keys; ``custom_metrics`` has the whole line of metrics.jsonl.

    Args:
        lines: of this iteration; ``episodes``: those with the newest episodes.
        env_steps, updates: before it, ``seconds`` ago.
    """
    line, aggregator = lines[-1], session.aggregator
    made, learned = session.env_steps - env_steps, aggregator.updates - updates
    batch = session.config.learner.batch_size
    return {
        "env_runners": {
            **windowed(episodes),
            "num_episodes": int(sum(each.get("episodes", 0) for each in lines)),
            "num_env_steps_sampled": made,
            "num_env_steps_sampled_lifetime": session.env_steps,
            "num_env_steps_sampled_per_second": made / max(seconds, 1e-9),
        },
        "learners": {
            "__all_modules__": {
                "num_env_steps_trained": learned * batch,
                "num_env_steps_trained_lifetime": aggregator.updates * batch,
            },
            DEFAULT_MODULE_ID: {
                **{name.removeprefix("loss_"): value for name, value in line.items() if name.startswith("loss_")},
                "num_grad_updates": learned,
                "num_grad_updates_lifetime": aggregator.updates,
                "weights_seq_no": aggregator.version,
            },
        },
        "replay_buffer": {"num_env_steps_stored": line["size_rows"], "replay_ratio": line["replay_ratio"]},
        "fault_tolerance": {
            "num_healthy_workers": aggregator.workers,
            "num_remote_worker_restarts": aggregator.workers_restarted,
        },
        "num_env_steps_sampled_lifetime": session.env_steps,
        "custom_metrics": line,
    }


def episode_results(evaluation: Evaluation) -> dict[str, Any]:
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


def windowed(lines: deque[dict[str, Any]]) -> dict[str, float]:
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


def read_saved(folder: Path, algorithm: str) -> dict[str, Any]:
    """What save_to_path wrote about the checkpoint, or what it would have written about the run directory ``folder``."""
    try:
        found = _of_run(folder) if _is_run(folder) else dict(json.loads((folder / SAVED).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{folder} is no checkpoint of this face ({error}); nothing was started; give a folder that save_to_path or Tune wrote, "
            "or a run directory"
        ) from error
    if (found.get("format"), found.get("algorithm")) != (FORMAT, algorithm):
        raise UsageError(
            f"{folder} holds a checkpoint of {found.get('algorithm')!r}, format {found.get('format')}, expected {algorithm!r}, format "
            f"{FORMAT}; nothing was started; use the class that wrote it"
        )
    return found


def _is_run(folder: Path) -> bool:
    """Whether it is a run directory: save_to_path writes no lock, so a folder that it did not finish is none."""
    return not (folder / SAVED).exists() and (folder / "run.lock").exists() and (folder / "config.json").exists()


def _of_run(folder: Path) -> dict[str, Any]:
    """A run of the command line as a checkpoint with the run's settings, but without its end: the caller decides that."""
    run = RunDirectory.open(folder)
    if owner := run.owner():
        raise UsageError(
            f"{folder} is a run that continues (process {owner}), expected one that ended: its files change while they are copied, so "
            f"nothing was started; `drawbridge stop {folder}` ends it with a checkpoint"
        )
    config = run.config()
    kept = {key: value for key, (value, _) in flatten(config).items() if key not in OF_THE_FACE}
    env_id, kwargs = split_task(config.env)
    settings = {"env": env_id, "env_config": kwargs, "preset": config.preset, "fleet_settings": kept}
    return {
        "format": FORMAT,
        "algorithm": config.algorithm,
        "iteration": 0,
        "time_total_s": float(run.live().get("time_s", 0.0)),
        "starts": run.starts(),
        "settings": settings | {"evaluation_duration": config.evaluation.episodes},
    }


def local(path: Any) -> Path:
    """A folder of this machine for a path, a file:// address or a Ray Checkpoint."""
    if isinstance(path, Checkpoint):
        return Path(path.to_directory())
    text = str(path).removeprefix("file://")
    if "://" in text:
        raise UsageError(
            f"{path} is not on this machine; nothing was read or written; give a local folder and copy it, or let Tune do so"
        )
    return Path(text).resolve()
