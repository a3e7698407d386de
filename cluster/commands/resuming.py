"""Which settings may change when a run goes on: those that neither its checkpoints nor its replay were made with."""

from __future__ import annotations

from cluster.config import RunConfig, flatten, override
from cluster.errors import UsageError
from cluster.outside import check_named
from cluster.own_code import run_words
from cluster.run_dir import RunDirectory

MAY_CHANGE = (
    "steps", "worker.", "evaluation.", "metrics.", "ray.", "replay.snapshot_s", "replay.snapshots_kept", "learner.checkpoint_s",
    "learner.checkpoints_kept", "learner.publish_updates", "learner.nonfinite_skips", "learner.rollbacks", "learner.restart_budget",
    "learner.cpus", "learner.gpus", "learner.cuda_graph",
)  # fmt: skip
FIXED = {  # by the beginning of their names: why they may not; the first that fits counts
    "env": "the policy was learned in that environment",
    "dataset": "what was learned came from that dataset",
    "seed": "the random numbers in the checkpoint follow from it",
    "backend": "the checkpoint holds what that backend needs to go on",
    "agent.": "the checkpoint holds networks and optimisers that were made with it",
    "learner.": "the checkpoint holds a learner and counts that were made with it",
    "replay.": "the snapshots hold a replay and counts that were made with it",
    "data.": "the replay holds what was taken from the dataset with it",
    "online.": "the stages so far, and the counts of the next ones, were made with it",
}
INLINE_HOLDS = ("worker.workers", "worker.envs_per_worker", "worker.chunk_steps", "worker.fast_envs")
OF_INLINE = "the checkpoint of an inline run holds its workers, with their running episodes, as they were made with it"


def resumed(run: RunDirectory, settings: dict[str, str]) -> RunConfig:
    """The run's configuration with other settings; UsageError names every one that cannot change, with the reason, and all else that
    is wrong with them."""
    config = run.config()
    problems: list[str] = []
    changed = override(config, settings, problems)
    check_named(changed, settings, run.path / "config.json")
    before, after = flatten(config), flatten(changed)
    fixed = {
        key: f"{key} is {before[key][0]!r} in this run, expected no other value than that ({after[key][0]!r} was given): {why}"
        for key in settings
        if key in before and before[key][0] != after[key][0] and (why := _why_fixed(config, key))
    }
    problems += fixed.values()
    if problems:
        may = {key: text for key, text in settings.items() if key not in fixed}
        raise UsageError(
            _with_others(run, override(config, may, []), problems)
            + f"\nLeave out what cannot change, or begin a new run with it: `drawbridge train`, or `{run_words('finetune', run.path, config)}` "
            "to keep its policy"
        )
    return changed


def _with_others(run: RunDirectory, config: RunConfig, problems: list[str]) -> str:
    """``problems`` in one text with all others that ``config`` has for this run."""
    from cluster.checks import make_spec

    try:
        run.check_resumable(config)
    except UsageError as error:
        problems.append(str(error))
    try:
        make_spec(config, run, 0, problems)
    except UsageError as error:
        return str(error)
    raise AssertionError("make_spec refuses whatever has problems")


def _why_fixed(config: RunConfig, key: str) -> str:
    """Why this setting of the run may not change; "" where it may."""
    if config.backend == "inline" and key in INLINE_HOLDS:
        return OF_INLINE
    if key.startswith(MAY_CHANGE):
        return ""
    return next((why for beginning, why in FIXED.items() if key.startswith(beginning)), "the run was made with it")
