"""The report's small charts: which metrics of a run are shown, under which title, in which order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cluster.history import Run, agent_metrics
from cluster.pictures.chart import Line, draw_chart

AXES = {"env_steps": "environment steps", "updates": "updates"}  # what a run's length is counted in, in words
EPISODES = (  # key of a metrics line, title, unit
    ("return_mean", "Training return", "sum of rewards, exploring"),
    ("length_mean", "Episode length", "env steps"),
)
WORK = (
    ("env_steps_per_s", "Environment steps", "per s"),
    ("updates_per_s", "Updates", "per s"),
    ("replay_ratio", "Replay ratio", "updates / env step"),
    ("policy_age_p95", "Policy age, 95th percentile", "versions"),
    ("learner_data_wait", "Learner waits for data", "share of its time"),
    ("fill", "Replay fill", "0 to 1"),
    ("memory_bytes", "Memory", "bytes"),
)
ONLINE = {"env_steps_per_s", "policy_age_p95"}  # all zero where nothing was gathered
LEARNING = {
    "elbo": ("ELBO", "nats a trajectory"),
    "return_error": ("Return error", "root mean square, the return's unit"),
    "kl_token": ("KL of a plan token", "nats"),
    "active_dims": ("Active latent dimensions", "share"),
    "kl_total": ("KL of a plan", "nats"),
    "action_nll": ("Action term", "negative log likelihood, nats a step"),
    "return_nll": ("Return term", "negative log likelihood, nats"),
    "next_state_error": ("Next-state error", "mean square, data deviations"),
    "action_mse": ("Action error", "mean square"),
    "collapse": ("Posterior collapse", "1: alarm"),
    "critic_loss": ("Critic loss", ""),
    "actor_loss": ("Actor loss", ""),
    "alpha": ("Temperature alpha", ""),
    "control_energy": ("Control energy", "nats"),
    "control_energy_per_step_coord": ("Control energy per step and coordinate", "nats"),
    "q_mean": ("Q, mean", "discounted return"),
    "imitated": ("Steps imitated", "share of those drawn"),
    "critic_grad_norm": ("Critic gradient norm", ""),
    "grad_norm": ("Gradient norm", ""),
    "learning_rate": ("Learning rate", ""),
    "sigma_mean": ("Bridge noise sigma, mean", ""),
    "nonfinite": ("Non-finite updates skipped", "of one call"),
}
TARGET_COLOUR = 7


class Shown(NamedTuple):
    """A run as the charts show it."""

    label: str
    colour: int
    run: Run


def small_charts(shown: Sequence[Shown], unit: str) -> Iterable[str]:
    """HTML figures of ``shown``, runs whose length is counted in ``unit``; metrics that none of them has are left out."""
    agents = {name: key for each in shown for name, key in agent_metrics(each.run.last).items()}
    order = [name for name in LEARNING if name in agents] + sorted(set(agents) - set(LEARNING))
    learning = [(agents[name], *LEARNING.get(name, (name.replace("_", " "), ""))) for name in order]
    for key, title, meaning in (*EPISODES, *learning, *WORK):
        lines = [Line(label=label, colour=colour, x=x, y=y) for label, colour, x, y in _series(shown, key)]
        if unit == "updates" and _says_nothing(key, lines):
            continue
        if key == "replay_ratio":
            lines += _targets(shown)
        yield draw_chart(title, meaning, lines, axis=AXES.get(unit, unit))


def _series(shown: Sequence[Shown], key: str) -> Iterable[tuple[str, int, list[float], list[float]]]:
    return ((each.label, each.colour, *each.run.series(key)) for each in shown)


def _says_nothing(key: str, lines: Sequence[Line]) -> bool:
    """In a run of stages: a ratio that nothing holds, and what only gathering makes other than zero."""
    return key == "replay_ratio" or (key in ONLINE and not any(any(line.y) for line in lines))


def _targets(shown: Sequence[Shown]) -> Iterable[Line]:
    runs = [each.run for each in shown]
    targets = {run.last["target_replay_ratio"] for run in runs if "target_replay_ratio" in run.last}
    for target in sorted(filter(math.isfinite, targets)):
        reach = max(run.length for run in runs)
        yield Line(label="target", colour=TARGET_COLOUR, x=[0.0, float(reach)], y=[target, target], dashed=True)
