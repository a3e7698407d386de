"""What the behaviour of a run of gac depends on: ``drawbridge diagnose``.

Letters: B trajectories, N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from algorithms import ALGORITHMS
from algorithms.gac.agent import GAC
from algorithms.gac.bound import least_nats
from algorithms.gac.diagnosis import VARIANTS, PartialPlan, contents, explained, posteriors
from algorithms.gac.policy import GACPolicy
from algorithms.gac.regression import explained_without_plan
from algorithms.interface import PlanRequest, PlanRequestError
from algorithms.weights import Weights
from cluster.checks import dataset_problems, spec_of
from cluster.commands.counter import Counter, counted
from cluster.commands.evaluation import collected, newest_learner, plan_request
from cluster.config import RunConfig
from cluster.dataset_identity import identity_notes
from cluster.dataset_task import check_same_task
from cluster.errors import UsageError
from cluster.graph import RunSpec
from cluster.metrics.alarms import alarms, collapse_words
from cluster.run_dir import RunDirectory
from replay.dataset import Dataset, DatasetError
from replay.minari_files import settled
from replay.schema import Trajectories
from replay.stored_episode import StoredEpisode
from rollout_workers.env import EnvError
from rollout_workers.episodes import EpisodeRuns
from rollout_workers.evaluator import Evaluator

RECORDED, OTHERS = 64, 256  # episodes of the dataset that are looked at, and others that regressions learn from
STARTS, DRAWS = 8, 8  # from which plans drawn from the prior are acted out, and how many from each
SCORES = {
    "searched": "the plan as searched",
    "hidden": "hidden: nothing but zeros",
    "redrawn": "drawn anew, but for the return it promises",
    "one": "one plan for all starts",
    "prior": "drawn from the prior, not searched",
}
PROMISE_LEFT = "hidden, but for the return it promises"  # linear reading has that beside the plan
SHARES = {
    "state": "the state, without a plan",
    "state_return": "state and return, without a plan",
    "own": "the plan of their own episode",
    "promise": "plans that promise the same",
    "others": "plans of other episodes",
    "prior": "one plan drawn from the prior",
}


def diagnose(
    run_dir: Path,
    episodes: int,
    seed: int,
    *,
    mode: str | None = None,
    target_return: float | None = None,
    dataset: str | None = None,
) -> dict[str, Any]:
    """Scores by parts of the plan, shares of the recorded actions' variance, what the plan says, and what follows from it.

    Args:
        dataset: id of the recorded episodes to look at, such as others than were learned from; None: the run's own.

    Raises UsageError for a run without plans, for what cannot be asked of them, and for episodes of another task or fewer than two.
    """
    run = RunDirectory.open(run_dir)
    spec = spec_of(run.config(), run)
    if not ALGORITHMS[spec.config.algorithm].plans:
        raise UsageError(
            f"{run_dir} is a run of {spec.config.algorithm}, which makes no plans, expected one of gac: there is nothing to diagnose; give "
            "such a run (`drawbridge evaluate` measures every algorithm)"
        )
    request = plan_request(spec, mode, target_return) or PlanRequest()
    own, note = _own(spec, dataset is None)
    looked_at = own if dataset is None else _of_same_task(spec, dataset)
    recorded = None if looked_at is None else _recorded(looked_at)
    learner = newest_learner(spec)
    agent, weights = cast(GAC, learner.agent), learner.weights()
    with collected() as warned:
        scores = {name: _score(spec, own, weights, name, request, episodes, seed) for name in VARIANTS}
        scores["prior"] = _score(spec, own, weights, "searched", PlanRequest(mode="prior"), episodes, seed)
    found: dict[str, Any] = {
        "algorithm": spec.config.algorithm,
        "env": spec.config.env,
        "updates": weights.updates,
        "planned_updates": spec.config.planned_updates,
        "plan_reading": agent.config.plan_reading,
        "seed": seed,
        "episodes": episodes,
        "mode": scores["searched"].pop("mode"),
        "target": scores["searched"].pop("target"),
        "scores": scores,
        "warnings": warned + ([note] if note else identity_notes(spec)),
    }
    if looked_at is not None and recorded is not None:
        looked, others = recorded
        Counter().show(f"looking at {len(looked):,} recorded episodes", last=True)
        batch = packed(looked)
        q = posteriors(agent, batch)
        said = contents(agent.model, batch, q)
        found |= {
            "dataset": looked_at.id,
            "recorded_episodes": len(batch),
            "explained": explained_without_plan(agent.model, looked, others)._asdict()
            | explained(agent.model, batch, q, seed)._asdict(),
            "plan": said._asdict() | {"collapsed": said.kl_token < _least_nats(spec.config, agent, weights.updates)},
            "ends": _ends(spec, weights, looked, seed),
        }
    return found | {"reading": reading(found)}


def reading(found: dict[str, Any]) -> list[str]:
    """What follows from a diagnosis, in sentences."""
    scores = {name: one["normalised_mean"] for name, one in found["scores"].items()}
    unit = "points"
    if any(value is None for value in scores.values()):
        scores, unit = {name: one["return_mean"] for name, one in found["scores"].items()}, "of return"
    costs = {name: scores["searched"] - scores[name] for name in ("hidden", "redrawn", "one")}
    sentences = [
        f"Hiding the plan costs {costs['hidden']:.1f} {unit}, drawing it anew {costs['redrawn']:.1f}, one plan for all starts "
        f"{costs['one']:.1f}; the search is worth {scores['searched'] - scores['prior']:.1f}."
    ]
    if "explained" in found:
        shares = found["explained"]
        words = "carries next to no behaviour" if shares["own"] - shares["promise"] < 0.01 else "carries behaviour"
        sentences += [
            f"By their own plan the model explains {shares['own']:.4f} of the recorded actions, by plans that promise the same "
            f"{shares['promise']:.4f}: the plan {words}.",
            f"State and return explain {shares['state_return']:.4f} without a plan, so plans tell {_beyond(shares)}.",
        ]
        said = found["plan"]
        sound = alarms(
            {
                "loss_plan_return": said["return_share"],
                "loss_collapse": said["collapsed"],
                "updates": found["updates"],
            },
            found["planned_updates"],
        )
        if "collapse" in sound:
            sound["collapse"] = collapse_words(
                "on the recorded episodes", said["kl_token"], "the search's worth is above"
            )
        sentences += sound.values()
    return sentences


def _beyond(shares: dict[str, float]) -> str:
    more = shares["own"] - shares["state_return"]
    return f"{more:.4f} that these do not" if more > 0 else "no more than these do"


def _least_nats(config: RunConfig, agent: GAC, updates: int) -> float:
    """What the newest of a run's ``updates`` held its plans to, as its metrics did."""
    stages = config.online.stages
    in_stages = stages > 0 and updates > config.steps - stages * config.online.updates_per_stage
    return least_nats(agent.config, agent.updates - 1, in_stages=in_stages)


def diagnosis_in_words(found: dict[str, Any]) -> str:
    """``diagnose`` for a person."""
    asked = "" if found["target"] is None else f", asked for {found['target']:.1f}"
    lines = [
        f"GAC on {found['env']}, {found['updates']:,} updates, mode {found['mode']}{asked}, {found['episodes']} starts",
        "",
        f"{'Acting by the plan':<48}{'normalised':>12}{'return':>12}",
    ]
    hidden = {"hidden": PROMISE_LEFT} if found["plan_reading"] == "linear" else {}
    for name, words in (SCORES | hidden).items():
        one = found["scores"][name]
        score = "-" if one["normalised_mean"] is None else f"{one['normalised_mean']:.1f}"
        lines.append(f"  {words:<46}{score:>12}{one['return_mean']:>12.1f}")
    lines += [f"  warning    {text}" for text in found["warnings"]]
    if "explained" in found:
        lines += [
            "",
            f"{'What explains the actions of ' + str(found['recorded_episodes']) + ' recorded episodes':<48}{'share':>12}",
        ]
        lines += [f"  {words:<46}{found['explained'][name]:>12.4f}" for name, words in SHARES.items()]
        said = found["plan"]
        ends = "-" if found["ends"] is None else f"{found['ends']:.3f}"
        lines += [
            "",
            f"{'How far plans drawn from the prior differ, to the recorded variance':<60}",
            f"  {'their actions in one state':<46}{found['explained']['spread']:>12.3f}",
            f"  {'where they end from one start':<46}{ends:>12}",
        ]
        lines += [
            "",
            "What the plan says",
            f"  {'active dimensions':<46}{said['active_dims']:>9} of {said['dims']}",
            f"  {'KL, nats a token':<46}{said['kl_token']:>12.3f}",
            f"  {'correlation of the return read off it':<46}{said['return_correlation']:>12.3f}",
            f"  {'share of it that is the return':<46}{said['return_share']:>12.3f}",
        ]
    return "\n".join([*lines, "", *found["reading"]])


def packed(episodes: Sequence[StoredEpisode]) -> Trajectories:
    """Episodes as a learner is given them, nothing stored beside them."""
    parts = [np.concatenate([e.obs_TO, e.action_TA, e.reward_T[:, None]], 1, dtype=np.float32) for e in episodes]
    lengths = [len(part) for part in parts]
    return Trajectories(
        rows_NF=torch.from_numpy(np.concatenate(parts)),
        offset=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        return_B=torch.tensor([float(e.reward_T.sum()) for e in episodes]),
        posterior_BP=torch.zeros(len(episodes), 0),
        visits_B=torch.zeros(len(episodes), dtype=torch.int32),
    )


def _recorded(dataset: Dataset) -> tuple[list[StoredEpisode], list[StoredEpisode]]:
    """Up to RECORDED episodes of the dataset to look at, and up to OTHERS more, both evenly spread over those that can be read;
    UsageError where these are fewer than two."""
    try:
        count = dataset.summary().episodes
    except DatasetError as error:
        raise UsageError(f"{error}; nothing was diagnosed") from error
    if count < 2:
        raise UsageError(
            f"dataset {dataset.id} has {count} episode that can be read, expected at least 2: shares are of what differs between "
            "episodes, so nothing was diagnosed; give --dataset with more"
        )
    refused = {index for indices in dataset.refused.values() for index in indices}
    readable = [index for index in range(dataset.total_episodes) if index not in refused]
    looked = _spread(readable, RECORDED)
    return list(dataset.episodes(looked)), list(dataset.episodes(_spread(sorted({*readable} - {*looked}), OTHERS)))


def _spread(indices: list[int], count: int) -> list[int]:
    """Up to ``count`` of them, evenly spread."""
    return [indices[i] for i in np.unique(np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int))]


def _own(spec: RunSpec, needed: bool) -> tuple[Dataset | None, str]:
    """The run's own dataset, and why there is none where it has one; UsageError if it is ``needed`` and cannot be read."""
    try:
        return spec.dataset, ""
    except UsageError as error:
        if needed:
            raise UsageError(
                f"the run's dataset cannot be read ({error}), expected its episodes: nothing was diagnosed; put it back, or give --dataset "
                "with the id or the folder of episodes of the same task"
            ) from error
        return None, f"not normalised, because the run's own dataset cannot be read: {error}"


def _of_same_task(spec: RunSpec, dataset_id: str) -> Dataset:
    """Episodes to look at in place of the run's own; UsageError where they are of another task."""
    replay = dataclasses.replace(spec.config.replay, shards=1)  # no shard is to hold them
    other = dataclasses.replace(
        spec, config=dataclasses.replace(spec.config, dataset=settled(dataset_id), replay=replay)
    )
    problems = dataset_problems(other, "choose another dataset")
    if other.dataset is None or problems:
        raise UsageError(f"{'; '.join(problems) or 'no dataset was named'}; nothing was diagnosed")
    check_same_task(
        other.dataset, spec.config.env, "nothing was diagnosed; give --dataset with episodes of the run's task"
    )
    return other.dataset


def _ends(spec: RunSpec, weights: Weights, recorded: Sequence[StoredEpisode], seed: int) -> float | None:
    """Variance of where plans drawn from the prior end from one start, over that of where recorded episodes end; the mean over
    the observation's numbers. None where episodes have no time limit or fewer than two of a kind end."""
    policy = GACPolicy(spec.config.agent, spec.obs_dim, spec.action_dim)
    policy.load_weights(weights.unpack())
    policy.aim = PlanRequest(mode="prior")
    starts = [seed + i // DRAWS for i in range(STARTS * DRAWS)]
    try:
        runs = EpisodeRuns(spec.config.env, spec.config.worker.fast_envs)
    except EnvError:
        return None
    try:
        with counted("plans of one start", len(starts), part=True):
            made = runs.run(policy, starts, np.random.SeedSequence(seed).spawn(len(starts)))
    finally:
        runs.close()
    grouped = (made[i : i + DRAWS] for i in range(0, len(made), DRAWS))
    ends = [[one.next_obs_O for one in group if one is not None] for group in grouped]
    within_SO = np.array([np.var(group, axis=0, ddof=1) for group in ends if len(group) > 1])
    if not len(within_SO) or len(recorded) < 2:
        return None
    between_O = np.var([one.next_obs_O for one in recorded], axis=0, ddof=1)
    told_O = between_O > 0
    return float((within_SO.mean(0)[told_O] / between_O[told_O]).mean()) if told_O.any() else None


def _score(
    spec: RunSpec, own: Dataset | None, weights: Weights, variant: str, request: PlanRequest, episodes: int, seed: int
) -> dict[str, Any]:
    """Episodes that are acted by a part of each plan, on the scale of the run's ``own`` dataset."""
    policy = PartialPlan(spec.config.agent, spec.obs_dim, spec.action_dim, variant)
    timeout_s = spec.config.evaluation.timeout_s
    evaluator = Evaluator(spec.config.env, policy, timeout_s=timeout_s, max_envs=episodes)
    try:
        with counted(SCORES["prior" if request.mode == "prior" else variant], episodes, part=True):
            made = evaluator.evaluate(weights, episodes, seed, request)
    except PlanRequestError as error:
        raise UsageError(f"{error}; nothing was diagnosed") from error
    scores = [] if own is None else [own.normalised(value) for value in made.returns]
    known = [score for score in scores if score is not None]
    about = {"mode": made.mode, "target": made.target} if variant == "searched" and request.mode != "prior" else {}
    return about | {
        "return_mean": made.return_mean,
        "return_std": made.return_std,
        "normalised_mean": sum(known) / len(known) if known else None,
    }
