"""When to plan again: scores of rules in mazes with and without pushes, and with a changed wall, and how their alarms meet the pushes."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.changed_wall import make_changed_maze
from benchmarks.markdown import over_seeds, table
from benchmarks.pushes import Alarms, ElboPolicy, PushedMaze, WatchedPolicy, alarms, push_steps
from benchmarks.trained import MakeEnv, Trained, by_data
from rollout_workers.envs import make_batch_env

STARTS = (30_000, 100)  # no rule was chosen on these
CALM = (20_000, 50)  # tuning starts, where an ELBO falls as far as it may
PATIENCE = 25  # steps
NEVER_AGAIN = "1000000"
RULES = {
    "never": {"agent.replan": "none"},
    "every 100": {"agent.replan": "scheduled", "agent.replan_every": "100"},
    "every 50": {"agent.replan": "scheduled", "agent.replan_every": "50"},
    "prediction error": {"agent.replan": "prediction-error"},
    "prediction error, Eq. 3": {"agent.replan": "prediction-error", "agent.replan_from": "start"},
    "ELBO": {"agent.replan": "prediction-error"},
    "oracle": {"agent.replan": "scheduled", "agent.replan_every": NEVER_AGAIN},
}


def replanning(runs: Sequence[Trained], rules: Sequence[str] = tuple(RULES)) -> str:
    """Each run acts in its best mode under every rule. A displacement head that was not trained is skipped."""
    head = ["", "rule", "score", "with pushes", "with a changed wall"]
    head += ["pushes found", "delay, steps", "false alarms / 1,000 steps"]
    rows = []
    for data, group in by_data(runs).items():
        watching = all(run.spec.config.agent.next_state_weight for run in group)
        able = [rule for rule in rules if watching or not _watches(rule)]
        rows += [[data, rule, *_row([_measure(run, rule) for run in group], rule)] for rule in able]
    return table(head, rows)


def _watches(rule: str) -> bool:
    return RULES[rule]["agent.replan"] == "prediction-error"


class Measured(NamedTuple):
    """One run under one rule."""

    calm: float  # score
    pushed: float
    walled: float
    met: Alarms  # with pushes
    quiet: Alarms  # without


def _row(found: Sequence[Measured], rule: str) -> list[str]:
    cells = [over_seeds([getattr(one, name) for one in found]) for name in ("calm", "pushed", "walled")]
    if not _watches(rule):
        return [*cells, "", "", ""]
    return [
        *cells,
        over_seeds([100 * one.met.found for one in found], 0) + " %",
        over_seeds([one.met.delay for one in found], 0),
        over_seeds([one.quiet.false for one in found], 2),
    ]


def _measure(run: Trained, rule: str) -> Measured:
    steps = int(run.dataset.summary().max_length)
    never_E, push_E = np.full(STARTS[1], -1), push_steps(*STARTS, steps)
    limits_S = _furthest(run) if rule == "ELBO" else None

    def scored(pushed_E: np.ndarray, make_env: MakeEnv) -> tuple[float, Alarms]:
        kind = WatchedPolicy if limits_S is None else functools.partial(ElboPolicy, furthest_S=limits_S)
        policy = run.policy(run.best_mode, RULES[rule], kind)
        assert isinstance(policy, WatchedPolicy)
        if rule == "oracle":
            policy.oracle_E = pushed_E
        made = run.run(policy, run.best_mode, STARTS, make_env=make_env)
        return float(run.scores(made.returns).mean()), alarms(policy.replans, pushed_E, steps, PATIENCE)

    calm, quiet = scored(never_E, make_batch_env)
    pushed, met = scored(push_E, PushedMaze)
    walled, _ = scored(never_E, make_changed_maze)
    told = f"{calm:.1f}, {pushed:.1f} with pushes, {walled:.1f} with a changed wall"
    print(f"{run.run_dir.name}, {rule}: {told}", file=sys.stderr, flush=True)
    return Measured(calm, pushed, walled, met, quiet)


def _furthest(run: Trained) -> np.ndarray:
    """How far the ELBO falls (S,) at most within that many steps, in episodes that nothing disturbs."""
    policy = run.policy(run.best_mode, RULES["ELBO"], ElboPolicy)
    assert isinstance(policy, ElboPolicy)
    run.run(policy, run.best_mode, CALM)
    fall_SE = np.stack(policy.falls)
    return np.array([(fall_SE[s:] - fall_SE[: len(fall_SE) - s]).max() for s in range(len(fall_SE))])
