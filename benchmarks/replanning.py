"""When to plan again: scores of rules in mazes with and without pushes, and how their alarms meet the pushes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from benchmarks.markdown import over_seeds, table
from benchmarks.pushes import Alarms, PushedMaze, WatchedPolicy, alarms, push_steps
from benchmarks.trained import MakeEnv, Trained, by_data
from rollout_workers.envs import make_batch_env

STARTS = (30_000, 100)  # no rule was chosen on these
PATIENCE = 25  # steps
NEVER_AGAIN = "1000000"
RULES = {
    "never": {"agent.replan": "none"},
    "every 100": {"agent.replan": "scheduled", "agent.replan_every": "100"},
    "every 50": {"agent.replan": "scheduled", "agent.replan_every": "50"},
    "prediction error": {"agent.replan": "prediction-error"},
    "prediction error, Eq. 3": {"agent.replan": "prediction-error", "agent.replan_from": "start"},
    "oracle": {"agent.replan": "scheduled", "agent.replan_every": NEVER_AGAIN},
}


def replanning(runs: Sequence[Trained], rules: Sequence[str] = tuple(RULES)) -> str:
    """Each run acts in its best mode under every rule. A displacement head that was not trained is skipped."""
    head = ["", "rule", "score", "score with pushes", "pushes found", "delay, steps", "false alarms / 1,000 steps"]
    rows = []
    for data, group in by_data(runs).items():
        watching = all(run.spec.config.agent.next_state_weight for run in group)
        able = [rule for rule in rules if watching or not rule.startswith("prediction error")]
        rows += [[data, rule, *_row([_measure(run, rule) for run in group], rule)] for rule in able]
    return table(head, rows)


def _row(found: list[tuple[float, float, Alarms, Alarms]], rule: str) -> list[str]:
    calm, pushed, alarms_, quiet = zip(*found)
    cells = [over_seeds(calm), over_seeds(pushed)]
    if not rule.startswith("prediction error"):
        return [*cells, "", "", ""]
    return [
        *cells,
        over_seeds([100 * alarm.found for alarm in alarms_], 0) + " %",
        over_seeds([alarm.delay for alarm in alarms_], 0),
        over_seeds([alarm.false for alarm in quiet], 2),
    ]


def _measure(run: Trained, rule: str) -> tuple[float, float, Alarms, Alarms]:
    """Scores without and with pushes, and the alarms with and without them."""
    calm, quiet = _episodes(run, rule, pushed=False)
    shaken, received = _episodes(run, rule, pushed=True)
    print(f"{run.run_dir.name}, {rule}: {calm:.1f}, {shaken:.1f} with pushes", file=sys.stderr, flush=True)
    return calm, shaken, received, quiet


def _episodes(run: Trained, rule: str, *, pushed: bool) -> tuple[float, Alarms]:
    mode = run.best_mode
    policy = run.policy(mode, RULES[rule], WatchedPolicy)
    assert isinstance(policy, WatchedPolicy)
    steps = int(run.dataset.summary().max_length)
    push_E = push_steps(*STARTS, steps) if pushed else np.full(STARTS[1], -1)
    if rule == "oracle":
        policy.oracle_E = push_E
    make_env: MakeEnv = make_batch_env
    if pushed:
        make_env = PushedMaze
    made = run.run(policy, mode, STARTS, make_env=make_env)
    return float(run.scores(made.returns).mean()), alarms(policy.replans, push_E, steps, PATIENCE)
