"""Which settings may change when a run resumes, and the values of the others: each checkpoint keeps those that it was made with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.config import RunConfig, flatten
from cluster.setting_text import in_todays_words

MAY_CHANGE = (
    "steps", "worker.", "evaluation.", "metrics.", "ray.", "replay.snapshot_s", "replay.snapshots_kept", "learner.checkpoint_s",
    "learner.checkpoints_kept", "learner.publish_updates", "learner.nonfinite_skips", "learner.rollbacks", "learner.restart_budget",
    "learner.cpus", "learner.gpus", "learner.device", "learner.cuda_graph",
)  # fmt: skip
SEARCHED = "all evaluations and exploring plans of a run are of one search, so that they can be compared; `drawbridge evaluate --set` tries another"
FIXED = {  # by the beginning of their names: why they may not; the first that fits counts
    "algorithm": "the checkpoint holds what that algorithm has learned",
    "preset": "the run's settings began with that preset's",
    "env": "the policy was learned in that environment",
    "dataset": "what was learned came from that dataset",
    "seed": "the random numbers in the checkpoint follow from it",
    "backend": "the checkpoint holds what that backend needs to go on",
    "agent.infer_": SEARCHED,
    "agent.replan": SEARCHED,
    "agent.explore_": "the episodes so far were gathered with it",
    "agent.": "the checkpoint holds networks and optimisers that were made with it",
    "learner.": "the checkpoint holds a learner and counts that were made with it",
    "replay.": "the snapshots hold a replay and counts that were made with it",
    "data.": "the replay holds what was taken from the dataset with it",
    "online.": "the stages so far, and the counts of the next ones, were made with it",
}
INLINE_HOLDS = ("worker.workers", "worker.envs_per_worker", "worker.chunk_steps", "worker.fast_envs")
OF_INLINE = "the checkpoint of an inline run holds its workers, with their running episodes, as they were made with it"

OF_STAGES = (
    "its length is that of its stages, and another one would move them: updates would come before stage 1, and stages that are over would "
    "be learned again; for more, fine-tune the run again with --stages and --updates-per-stage"
)


def why_fixed(backend: str, key: str) -> str:
    """Why this setting of a run on ``backend`` may not change; "" where it may."""
    if backend == "inline" and key in INLINE_HOLDS:
        return OF_INLINE
    if key.startswith(MAY_CHANGE):
        return ""
    return next((why for beginning, why in FIXED.items() if key.startswith(beginning)), "the run was made with it")


def why_fixed_in(made: Mapping[str, Any], key: str) -> str:
    """Why this setting may not change in a run that was made with the settings ``made``, by dotted key; "" where it may."""
    if key == "steps" and made["online.stages"]:
        return OF_STAGES
    return why_fixed(made["backend"], key)


def longer_words(stages: int, it: str = "it", that: str = "that") -> str:
    """What makes a complete run of so many ``stages`` longer, for messages."""
    return f"fine-tune {it} again for more stages" if stages else f"give --steps more than {that} to go on"


def settings_to_keep(config: RunConfig) -> dict[str, Any]:
    """What a checkpoint keeps: by dotted key the settings that may not change, and the length of the run."""
    return {
        key: value
        for key, (value, _) in flatten(config).items()
        if key == "steps" or key in INLINE_HOLDS or why_fixed(config.backend, key)
    }


def settings_made_with(directory: Path, config: RunConfig) -> dict[str, Any]:
    """The settings that the newest checkpoint in ``directory`` keeps, as far as ``config`` has them.

    A checkpoint of an older version keeps its backend alone; without a checkpoint there are none.
    """
    from learners import checkpoint  # with numpy: a command that learns nothing need not wait for it

    meta, expected = checkpoint.newest_meta(directory) or {}, flatten(config)
    kept = meta.get("settings")
    found = {"backend": meta["backend"]} if "backend" in meta else {}
    for key, value in kept.items() if isinstance(kept, dict) else ():
        key, value = in_todays_words(key, value, expected)
        found[key] = value
    return {key: value for key, value in found.items() if key in expected}
