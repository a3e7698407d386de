"""What is wrong with a run although it goes on, in words; from the newest values of a metrics record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from algorithms.gac.config import ALIKE, LEARNED
from cluster.history import number as is_number
from cluster.history import unit_of
from cluster.metrics.catalogue import ALARM_PREFIX, CLIPPED_LIMIT
from cluster.metrics.wording import clipping_words, number, percent

ALARMS = ("slow_workers", "clipping", "collapse", "plan_return", "promise", "exploration")
SLOW_WORKER = 0.5  # of the median's env steps a second
PLAN_RETURN_LIMIT = 0.9  # share of what plans say that is the return


def alarms(record: Mapping[str, Any], updates: int | None = None) -> dict[str, str]:
    """A sentence for each alarm that sounds, by its name, one of ALARMS.

    ``updates``: that the whole run makes; None: it counts env steps, or there is no telling how far it is.
    """
    found = {}
    slowest, median = record.get("worker_steps_per_s_min"), record.get("worker_steps_per_s_p50")
    names = record.get("slowest_workers")  # none in the first seconds
    if names and slowest is not None and median is not None and slowest < SLOW_WORKER * median:
        found["slow_workers"] = (
            f"some workers make less than half of the median's {median:.1f} env steps a second ({names}), expected "
            "about the same of all: look at the load of their nodes, or at what their environments do"
        )
    clipped, collapsed = record.get("loss_clipped_mass") or 0.0, record.get("loss_collapse") or 0.0
    share, promised, limit = (record.get(key) for key in ("loss_plan_return", "eval_promise", "eval_promise_limit"))
    if clipped > CLIPPED_LIMIT:
        found["clipping"] = clipping_words(clipped)
    early = updates is not None and record.get("updates", 0) < LEARNED * updates
    if collapsed > 0:
        where, nats = f"in {percent(collapsed)} of the newest updates", record.get("loss_kl_token")
        found["collapse"] = collapse_words(where, nats, "`drawbridge diagnose` measures how much")
    elif share is not None and share > PLAN_RETURN_LIMIT and not early:
        found["plan_return"] = (
            f"{percent(share)} of what plans say is the return, expected at most {percent(PLAN_RETURN_LIMIT)}: a search chooses how much "
            "return to ask for, not how to get it, as a return-conditioned regression does (train rvs); for plans that say more lower "
            "agent.kl_weight, set agent.posterior_return=false, raise agent.tokens or agent.free_bits"
        )
    if promised is not None and limit is not None and promised > limit:
        found["promise"] = (
            f"plans promise a return of {number(float(promised))} on average, expected at most {number(float(limit))}: that is far above any "
            f"return known{_kept(record)}, so the promise means nothing: too little was learned, or the search has left what was; train "
            "longer, ask for less (mode st), lower agent.infer_steps and agent.infer_max_steps, or raise agent.infer_kl_weight (mode kl)"
        )
    if (record.get("loss_explore_collapse") or 0.0) > 0:
        found["exploration"] = (
            f"the exploring episodes of the newest stage are all alike: their returns deviate by {percent(record.get('loss_explore_spread'))} "
            f"of the data's deviation, expected more than {percent(ALIKE)}, and miss what was asked for and the best return known: more of "
            "them teach nothing; raise agent.explore_action_std, agent.explore_reach or agent.explore_gain"
        )
    return found


def _kept(record: Mapping[str, Any]) -> str:
    kept = record.get("eval_return_mean")
    return "" if kept is None else f" or above the {number(float(kept))} that they keep"


def collapse_words(where: str, nats: float | None, measured: str) -> str:
    """That plans say too little: where that was seen, what they say on average, and what measures how much they steer."""
    said = "little" if nats is None else f"{nats:.2f} nats a token on average"
    return (
        f"the posterior has collapsed {where}: plans say {said}, expected more than .05 and, late on a dataset, agent.free_bits; searching "
        f"plans may steer little ({measured}); train longer, raise agent.points, shorten agent.window, lower agent.kl_weight, or raise "
        "agent.free_bits where it is 0"
    )


def alarm_keys(record: Mapping[str, Any], updates: int | None = None) -> dict[str, int]:
    """The keys of a metrics record that say which alarms sound by the others."""
    found = alarms(record, updates)
    return {f"{ALARM_PREFIX}{name}": int(name in found) for name in ALARMS}


def figures(live: Mapping[str, Any]) -> dict[str, Any]:
    """What alarms are read from, of a live.json: its numbers, and the names of the slowest workers."""
    return {key: value for key, value in live.items() if is_number(value) or (key == "slowest_workers" and value)}


def planned_updates(config: Mapping[str, Any]) -> int | None:
    """``RunConfig.planned_updates`` of a config.json; None too where it does not say."""
    steps: Any = config.get("steps")
    return int(steps) if unit_of(config) == "updates" and is_number(steps) else None
