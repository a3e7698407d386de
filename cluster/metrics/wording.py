"""How numbers, spans of time and a run's summary are put into words, for people."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from algorithms import ALGORITHMS
from cluster.metrics.catalogue import CLIPPED_LIMIT

AGENT_CHARTS = {  # what agents report, in the order of the report's charts: title, unit
    "elbo": ("ELBO", "nats a trajectory"),
    "return_error": ("Return error", "root mean square, the return's unit"),
    "kl_token": ("KL of a plan token", "nats"),
    "active_dims": ("Active latent dimensions", "share"),
    "kl_total": ("KL of a plan", "nats"),
    "action_nll": ("Action term", "negative log likelihood, nats a step"),
    "entropy": ("Policy entropy", "nats a step"),
    "return_nll": ("Return term", "negative log likelihood, nats"),
    "next_state_error": ("Next-state error", "mean square, data deviations"),
    "action_mse": ("Action error", "mean square"),
    "collapse": ("Posterior collapse", "1: alarm"),
    "plan_return": ("What plans say that is the return", "share"),
    "explore_spread": ("Spread of the returns of a stage", "data deviations"),
    "explore_collapse": ("Exploration collapse", "1: alarm"),
    "critic_loss": ("Critic loss", ""),
    "actor_loss": ("Actor loss", ""),
    "alpha": ("Temperature alpha", ""),
    "control_energy": ("Control energy", "nats"),
    "control_energy_per_step_coord": ("Control energy per step and coordinate", "nats"),
    "q_mean": ("Q, mean", "discounted return"),
    "clipped_mass": ("Target mass clipped", "share"),
    "imitated": ("Steps imitated", "share of those drawn"),
    "q_target_mean": ("Q of the target, mean", "discounted return"),
    "critic_entropy": ("Entropy of the critics", "nats"),
    "critic_grad_norm": ("Critic gradient norm", ""),
    "actor_grad_norm": ("Actor gradient norm", ""),
    "grad_norm": ("Gradient norm", ""),
    "behaviour_loss": ("Behaviour critic loss", "squared units of the support"),
    "behaviour_q": ("Behaviour Q, mean", "units of the support"),
    "behaviour_v": ("Behaviour V, mean", "units of the support"),
    "learning_rate": ("Learning rate", ""),
    "sigma_mean": ("Bridge noise sigma, mean", ""),
    "nonfinite": ("Non-finite updates skipped", "of one call"),
}
COMPLETED = {"0", "ok", "completed", "complete", "finished", "success", "done"}


def number(value: Any) -> str:
    """A figure with as many digits as a reader needs: 12,400; 164; 2.00; 0.0831; 3.2e-05; "-" for None."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    value = float(value)
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e9:
        return f"{value:.3g}"
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    if size >= 1 or value == 0:
        return f"{value:.2f}"
    return f"{value:.3f}" if size >= 0.1 else f"{value:.3g}"


def percent(fraction: Any) -> str:
    """A fraction in [0, 1] as a percentage: "3.1 %", "92 %", "-" for None or nan."""
    if fraction is None or not math.isfinite(fraction):
        return "-"
    share = 100 * fraction
    return f"{share:.1f} %" if 0 < share < 9.95 else f"{share:.0f} %"


def clipping_words(share: float) -> str:
    """The warning that ``share`` of the critics' target mass lies outside their support."""
    return (
        f"{percent(share)} of the critics' target mass lies outside their support, expected at most {percent(CLIPPED_LIMIT)}: it is "
        "clipped to the edge, so actions that lead there look alike; set agent.v_min and agent.v_max to bounds that hold "
        "every discounted return, or both to none for a support that follows the rewards; if they are, lower agent.alpha_init"
    )


def clock(seconds: Any) -> str:
    """A span of seconds as h:mm:ss, or "-" when it is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def span(seconds: float) -> str:
    """A span of seconds in words: "42 s", "3 min 12 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(n: Any, one: str, many: str | None = None) -> str:
    """A number with its noun: "1 episode", "10 episodes"."""
    return f"{number(n)} {one if n == 1 else many or one + 's'}"


def algorithm_name(name: str) -> str:
    """The name people know an algorithm by: softgac -> SoftGAC."""
    return ALGORITHMS[name].title if name in ALGORITHMS else name


def completed(exit_value: Any) -> bool:
    """Whether a summary's ``exit`` says that the run reached its end (0, "completed", ...)."""
    return str(exit_value).lower() in COMPLETED


def in_words(summary: Mapping[str, Any], width: int = 80) -> str:
    """A run's summary.json as a few plain ASCII sentences, wrapped at ``width``; what is missing is left out."""
    parts = (
        _outcome,
        _learned,
        _alarms,
        _learner,
        *((_age, _episodes, _rows, _workers) if _gathered(summary) else ()),
        _restarts,
    )
    sentences = [text for part in parts if (text := part(summary))]
    return "\n".join(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False) for text in sentences)


def _gathered(summary: Mapping[str, Any]) -> bool:
    """Whether the run gathered experience, or was to: only one that is counted in updates may learn from its dataset alone."""
    workers = summary.get("workers") or {}
    counted_in_steps = summary.get("min_size_rows") is not None
    return counted_in_steps or summary.get("env_steps", 1) > 0 or workers.get("started", 1) > 0


def _outcome(summary: Mapping[str, Any]) -> str:
    name = algorithm_name(str(summary.get("algorithm", "The run")))
    where = f" on {summary['env']}" if "env" in summary else ""
    details = [f"seed {summary['seed']}"] if "seed" in summary else []
    details += [f"{summary['backend']} backend"] if "backend" in summary else []
    note = f" ({', '.join(details)})" if details else ""
    how = "finished" if completed(summary.get("exit", 0)) else f"stopped before its end (exit: {summary['exit']})"
    units = (("env_steps", "env step"), ("updates", "update"))[0 if _gathered(summary) else 1 :]
    done = [count(summary[key], noun) for key, noun in units if key in summary]
    work = f": {' and '.join(done)}" if done else ""
    time = f" in {span(summary['wall_s'])}" if "wall_s" in summary else ""
    rates = [
        f"{number(float(summary[f'{key}_per_s']))} {noun}s/s"
        for key, noun in units
        if summary.get(f"{key}_per_s") is not None
    ]
    speed = f", {' and '.join(rates)}" if rates else ""
    return f"{name}{where}{note} {how}{work}{time}{speed}."


def _learned(summary: Mapping[str, Any]) -> str:
    mean, std, episodes = (summary.get(f"eval_{key}") for key in ("return_mean", "return_std", "episodes"))
    if mean is None:
        return "No evaluation was made, so nothing is known of the policy's return."
    over = f" over {count(episodes, 'episode')}" if episodes else ""
    spread = f", with a standard deviation of {number(float(std))}" if std is not None else ""
    score = summary.get("eval_normalised")
    scaled = (
        "" if score is None else f": {number(float(score))} where the data's random policy has 0 and its expert 100"
    )
    return f"Its deterministic policy returns {number(float(mean))} on average{over}{spread}{scaled}."


def _alarms(summary: Mapping[str, Any]) -> str:
    alarms = summary.get("alarms")
    return "\n".join(f"Alarm: {text}." for text in alarms if isinstance(text, str)) if isinstance(alarms, list) else ""


def _learner(summary: Mapping[str, Any]) -> str:
    ratio, shares = summary.get("replay_ratio"), summary.get("learner_time") or {}
    warm_up, before, sentences = summary.get("min_size_rows"), summary.get("pretrain_updates"), []
    if warm_up and not summary.get("updates", 1) and summary.get("env_steps", warm_up) < warm_up:
        sentences.append(
            f"It trained nothing: the first update follows {count(warm_up, 'env step')} (replay.min_size_rows); give --steps more than that, "
            "or lower replay.min_size_rows."
        )
    elif ratio is not None:
        after = f" after the first {number(warm_up)}" if warm_up else ""
        besides = f", besides {number(before)} before on the dataset" if before else ""
        sentences.append(f"The learner made {number(float(ratio))} updates for each env step{after}{besides}.")
    words = {"update": "into updates", "data_wait": "into waiting for data", "publish": "into publishing weights"}
    spent = [f"{percent(shares[key])} {word}" for key, word in words.items() if shares.get(key) is not None]
    if spent:
        sentences.append(f"Its time went {_listed(spent)}.")
    return " ".join(sentences)


def _age(summary: Mapping[str, Any]) -> str:
    age = summary.get("policy_age_versions") or {}
    if age.get("p50") is None or age.get("p95") is None:
        return ""
    return (
        f"The policy that gathered the experience was {count(age['p50'], 'version')} old at the median and "
        f"{number(age['p95'])} at the 95th percentile."
    )


def _episodes(summary: Mapping[str, Any]) -> str:
    made, asked = summary.get("online_episodes"), summary.get("asked_episodes")
    if made is None:
        return ""
    gathered = f"{count(made, 'whole episode')} gathered"
    if asked and made > asked:
        return f"{gathered}; {number(asked)} asked for, and environments that end an episode together add some."
    return f"{gathered} of {number(asked)} asked for." if asked and made < asked else f"{gathered}."


def _rows(summary: Mapping[str, Any]) -> str:
    rows = summary.get("rows") or {}
    if "recorded" not in rows:
        return ""
    dropped = rows.get("dropped") or {}
    lost = {reason: n for reason, n in dropped.items() if n} if isinstance(dropped, Mapping) else {"any": dropped}
    stored = f"{count(rows['recorded'], 'row')} of experience recorded, {number(rows.get('stored'))} stored"
    if not sum(lost.values()):
        return f"{stored}, none dropped."
    reasons = ", ".join(f"{reason} {number(n)}" for reason, n in sorted(lost.items()))
    return f"{stored}, {number(sum(lost.values()))} dropped ({reasons})."


def _workers(summary: Mapping[str, Any]) -> str:
    workers = summary.get("workers") or {}
    if "started" not in workers:
        return ""
    restarted = workers.get("restarted", 0)
    again = number(restarted) if restarted else "none"
    return f"{count(workers['started'], 'rollout worker')} started, {again} restarted."


def _restarts(summary: Mapping[str, Any]) -> str:
    counts = {part: n for part, n in (summary.get("restarts") or {}).items() if n and part != "worker"}
    return (
        f"Restarts of other parts: {', '.join(f'{part} {number(n)}' for part, n in counts.items())}." if counts else ""
    )


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
