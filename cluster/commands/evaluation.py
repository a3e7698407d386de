"""Deterministic episodes with a run's newest policy: what ``drawbridge evaluate`` measures."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algorithms import ALGORITHMS
from algorithms.weights import Weights
from cluster.checks import spec_of
from cluster.commands.counter import counted
from cluster.config import make_preset, override
from cluster.dataset_identity import identity_notes
from cluster.dataset_task import score_of, task_notes
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec, make_evaluator, make_learner, make_policy, newest_checkpoint
from cluster.history import document, number
from cluster.metrics.alarms import alarms
from cluster.own_code import to_come_words
from cluster.run_dir import RunDirectory
from cluster.saving import missing_checkpoint
from replay.option import with_preset

INFERENCE = ("agent.infer_", "agent.replan")  # fields that change how a trained policy acts, not what it is

if TYPE_CHECKING:
    from algorithms.interface import PlanRequest
    from learners.learner import Learner
    from rollout_workers.evaluator import Evaluation


def evaluate(
    run_dir: Path,
    episodes: int,
    seed: int,
    video: Path | None,
    *,
    mode: str | None = None,
    target_return: float | None = None,
    plot: Path | None = None,
    settings: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Deterministic episodes with the newest checkpoint's policy; optionally a video of the first.

    Args:
        mode, target_return: what a policy that plans is asked for; None: what the run's configuration says.
        plot: PNG of predicted against achieved returns.
        settings: dotted keys of how plans are inferred, over the run's own; those of the model stay as it was trained.

    Raises UsageError for what cannot be asked of this run's policy. ``warnings`` lists what is odd about it, and ``no_video`` says why the
    video that was asked for is not there.
    """
    run = RunDirectory.open(run_dir)
    spec = spec_of(run.config(), run)
    aim = plan_request(spec, mode, target_return)
    if plot is not None:
        _check_plot(spec, plot)
    if video is not None:
        _check_video(video)
    acting = _acting(spec, settings or {})
    weights, spec = newest_weights(spec), acting  # a checkpoint is of the settings it was trained with
    result, warned = _evaluation(spec, weights, episodes, seed, aim)
    warned += target_notes(spec, target_return)
    if result.note:
        warned.append(result.note)
    no_video = "" if video is None else _record(spec, weights, video, seed, aim)
    found = {
        "algorithm": spec.config.algorithm,
        "env": spec.config.env,
        "env_steps": result.env_steps,
        "updates": result.updates,
        "seed": seed,
        "episodes": len(result.returns),
        "return_mean": result.return_mean,
        "return_std": result.return_std,
        "returns": result.returns,
        "lengths": result.lengths,
        "errors": result.errors,
        "warnings": warned,
        "wall_s": result.wall_s,
    }
    found |= _normalised(spec, result, warned) | (
        _planned(result) if ALGORITHMS[spec.config.algorithm].takes_requests else {}
    )
    warned += _alarms(run, result)
    if no_video:
        found["no_video"] = no_video
    if plot is not None:
        from cluster.pictures.calibration import draw_calibration

        draw_calibration(found, plot)
    return found


def _alarms(run: RunDirectory, result: Evaluation) -> list[str]:
    """What is wrong with the promises of these plans, and with what the run has learned, by its newest metrics record."""
    record: dict[str, Any] = {
        key: value for key, value in document(run.path / "live.json", []).items() if number(value)
    }
    record |= {"eval_promise": None, "eval_promise_limit": result.promise_limit, "eval_return_mean": result.return_mean}
    if result.predicted:
        record["eval_promise"] = sum(result.predicted) / len(result.predicted)
    return list(alarms(record, run.config().planned_updates).values())


def _acting(spec: RunSpec, settings: dict[str, str]) -> RunSpec:
    """``spec`` with other settings of inference; UsageError for a setting that is more than that, or cannot work."""
    surplus = [key for key in settings if not key.startswith(INFERENCE)]
    if surplus:
        raise UsageError(
            f"--set {', '.join(surplus)}: expected fields that begin with {' or '.join(INFERENCE)}: the others say what was trained; "
            "nothing was evaluated; leave them out"
        )
    config = override(spec.config, settings)
    if problems := [f"agent.{text}" for text in config.agent.validate()]:
        with contextlib.suppress(UsageError):  # a preset that is no more
            preset = make_preset(config.algorithm, config.preset, config.env)
            problems = [with_preset(text, preset) for text in problems]
        raise UsageError(
            "these settings cannot work; nothing was evaluated:\n" + "\n".join(f"  - {text}" for text in problems)
        )
    return dataclasses.replace(spec, config=config)


def _check_plot(spec: RunSpec, path: Path) -> None:
    """UsageError, before any episode, unless there will be predicted returns to draw into a PNG."""
    from cluster.pictures.maze_drawing import check_png
    from cluster.pictures.plan_trial import planning_policy

    check_png(path)
    planning_policy(spec)


def _check_video(path: Path) -> None:
    """UsageError, before any episode, for a file that no video goes into."""
    from rollout_workers.video import check_mp4

    try:
        check_mp4(path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        seen = f"{path} is a folder" if path.is_dir() else f"{there} is no folder that can be written to"
        raise UsageError(f"{seen}, expected the name of a new .mp4 file: nothing was evaluated; name another file")


def _evaluation(
    spec: RunSpec, weights: Weights, episodes: int, seed: int, aim: PlanRequest | None
) -> tuple[Evaluation, list[str]]:
    """An evaluation, and what its policy warned of, each once."""
    from algorithms.interface import PlanRequestError
    from rollout_workers.evaluator import BrokenEpisodes, EvaluationTimeout

    with collected() as warned:
        try:
            result = make_evaluator(spec).evaluate(weights, episodes, seed, aim)
        except PlanRequestError as error:
            raise UsageError(f"{error}; nothing was evaluated") from error
        except (BrokenEpisodes, EvaluationTimeout) as error:
            raise RunError(str(error)) from error
    return result, warned


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """A block whose policies warn into a list, each warning once, which is full after the block; other warnings go on."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield found
    found += dict.fromkeys(str(one.message) for one in caught if one.category is UserWarning)
    for one in caught:
        if one.category is not UserWarning:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def target_notes(spec: RunSpec, target: float | None) -> list[str]:
    """One line about a target return outside the returns of the dataset, of policies that do not know these themselves; else none.

    Reads the dataset. After stages nothing is said: what they brought is not in it.
    """
    from algorithms.gac.target import return_range
    from replay.dataset import DatasetError

    config = spec.config
    algorithm = ALGORITHMS[config.algorithm]
    asked = algorithm.returns == "asked" and not algorithm.plans  # a plan's search warns by itself
    if target is None or not asked or config.online.stages or not math.isfinite(target):
        return []
    try:
        dataset = spec.dataset
        data = None if dataset is None else dataset.summary()
    except (UsageError, DatasetError):  # it is gone, and its returns with it
        return []
    if dataset is None or data is None:
        return []
    least, most = return_range(data.return_min, data.return_max)
    if least <= target <= most:
        return []
    return [
        f"target return {target:g} is outside the returns {data.return_min:g} to {data.return_max:g} of {dataset.id}, which the policy "
        f"was trained on: what it does there is a guess; ask for {least:g} to {most:g} to stay inside"
    ]


def plan_request(spec: RunSpec, mode: str | None, target_return: float | None) -> PlanRequest | None:
    """What the plans of a run are asked for; None for a policy that takes no requests."""
    from algorithms.interface import PlanRequest

    config = spec.config
    if not ALGORITHMS[config.algorithm].takes_requests:
        if mode is not None or target_return is not None:
            raise UsageError(
                f"{spec.run_dir} is a run of {config.algorithm}, which makes no plans and takes neither --mode nor --target-return; "
                "nothing was evaluated; leave them out"
            )
        return None
    return PlanRequest(mode=config.evaluation.mode if mode is None else mode, target_return=target_return)


def _normalised(spec: RunSpec, result: Evaluation, warned: list[str]) -> dict[str, Any]:
    """Returns on the scale of the run's dataset: 0 is its random policy, 100 its expert or planner; nothing without them.

    ``warned`` takes a warning when the dataset is of another task.
    """
    if not spec.config.dataset:
        return {}
    try:
        dataset = spec.dataset
    except UsageError as error:
        return {"normalised_mean": None, "normalised": None, "note": f"not normalised: {error}"}
    assert dataset is not None
    warned += [*task_notes(spec), *identity_notes(spec)]
    if not (scale := score_of(dataset, result.returns)):
        return {
            "normalised_mean": None,
            "normalised": None,
            "note": f"not normalised: {dataset.id} has no reference returns",
        }
    return {"dataset": dataset.id, **scale, "normalised": [dataset.normalised(value) for value in result.returns]}


def _planned(result: Evaluation) -> dict[str, Any]:
    """What is known of each episode's plan and, in mazes, of its path."""
    names = ("mode", "target", "predicted", "variance", "path_length", "shortest_path", "reached", "starts_in_goal")
    found = {name: getattr(result, name) for name in names}
    if not result.predicted:
        return found
    from cluster.pictures.calibration import rank_correlation

    return found | {"rank_correlation": rank_correlation(result.predicted, result.returns)}


def evaluation_in_words(found: dict[str, Any]) -> str:
    """``evaluate`` for a person."""
    policy = (
        f"policy of {found['env_steps']:,} env steps"
        if found["env_steps"]
        else f"policy of {found['updates']:,} updates"
    )
    mode = f", mode {found['mode']}" if found.get("mode") else ""
    lines = [
        f"{found['env']}: {found['return_mean']:.1f} +- {found['return_std']:.1f} over {len(found['returns'])} deterministic episodes "
        f"({policy}{mode})"
    ]
    if found.get("normalised_mean") is not None:
        lines.append(
            f"  normalised {found['normalised_mean']:.1f} (0: random, {found['random_return']:.1f}; 100: expert, {found['expert_return']:.1f})"
        )
    lines += [f"  warning    {text}" for text in found["warnings"]]
    predicted = [value for value in found.get("predicted") or () if math.isfinite(value)]
    if predicted:
        correlation = found.get("rank_correlation")
        note = "" if correlation is None else f", rank correlation with what was achieved {correlation:.2f}"
        lines.append(f"  predicted  {sum(predicted) / len(predicted):.1f} on average{note}")
    reached = found.get("reached") or ()
    if reached:
        lines.append(f"  goal       reached in {sum(step >= 0 for step in reached)} of {len(reached)} episodes")
    if found.get("note"):
        lines.append(f"  note       {found['note']}")
    return "\n".join(lines)


def newest_weights(spec: RunSpec) -> Weights:
    """The policy of the run's newest valid checkpoint."""
    return newest_learner(spec).weights()


def newest_learner(spec: RunSpec) -> Learner:
    """A learner with the run's newest valid checkpoint, on the CPU whatever it was trained on."""
    from learners.learner import PART

    found = newest_checkpoint(spec)
    if found is None:
        if lost := missing_checkpoint(RunDirectory(spec.run_dir)):
            raise RunError(f"{lost}: there is no policy; put them back")
        then = to_come_words(RunDirectory(spec.run_dir), spec.config, "wait for it, or stop the run")
        raise RunError(
            f"{spec.run_dir} has no checkpoint yet, so there is no policy, expected one: a run that learns writes one every "
            f"{spec.config.learner.checkpoint_s:g} s (learner.checkpoint_s) and one at its end; {then}"
        )
    settings = dataclasses.replace(spec.config.learner, device="cpu")
    here = dataclasses.replace(spec, config=dataclasses.replace(spec.config, learner=settings))
    learner = make_learner(here, 0, lambda weights: None)
    noise = learner.state()["agent/generator"]  # a GPU's would not fit, and weights have no use for any
    learner.load_state(found.part(PART) | {"agent/generator": noise})
    return learner


def _record(spec: RunSpec, weights: Weights, path: Path, seed: int, aim: PlanRequest | None) -> str:
    """Records a video; why there is none, "" if there is: the episodes that were measured are not to be lost with it."""
    from rollout_workers.actor import Actor
    from rollout_workers.env import EnvError
    from rollout_workers.evaluator import BrokenEpisodes
    from rollout_workers.renderer import NoRenderer
    from rollout_workers.video import record_video

    actor = Actor(make_policy(spec), backend=spec.config.worker.backend)
    if aim is not None:
        actor.policy.aim = aim
    actor.load(weights)
    try:
        with counted("filming", 1), collected():  # the evaluation has told what its policy warns of
            record_video(spec.config.env, actor, path, seed=seed)
    except (NoRenderer, EnvError, BrokenEpisodes, OSError) as error:
        return str(error)
    return ""
