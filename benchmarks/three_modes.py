"""What SoftGAC and its rivals keep of a bandit with three modes, with learned critics: `python benchmarks/generative.py toy`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np

from algorithms import ALGORITHMS

# SoftGAC from the first temperatures of its preset and of the paper, at the budgets of its preset, of the paper's runs and of the
# paper's toy; its rivals by their presets.
PANELS: list[tuple[str, dict[str, float]]] = [
    ("softgac", {"alpha_init": 2.0, "rho": 0.5}), ("softgac", {"alpha_init": 2.0, "rho": 0.2}),
    ("softgac", {"alpha_init": 2.0, "rho": 0.05}), ("softgac", {"alpha_init": 0.1, "rho": 0.2}),
    ("softgac", {"alpha_init": 0.1, "rho": 0.05}),
    *((name, {}) for name, algorithm in ALGORITHMS.items() if algorithm.online == "always" and name != "softgac"),
]  # fmt: skip
KNOBS = ("alpha_init", "rho", "target_entropy", "target_energy", "target_cost")  # named in each panel
HEIGHT = 10.0  # of a mode, in the atoms' units


def draw(arguments: argparse.Namespace) -> None:
    """One panel a method: actions after learning the bandit of softgac/toy.py, critics and all, a colour for each seed."""
    import matplotlib
    import torch

    from algorithms.softgac.toy import mode_shares, toy_q

    matplotlib.use("Agg")
    from matplotlib import pyplot

    torch.set_num_threads(1)
    line = torch.linspace(-1, 1, 401)
    x, y = torch.meshgrid(line, line, indexing="xy")
    box = torch.stack([x, y], -1)
    uniform = np.array(mode_shares(box.reshape(-1, 2)))
    print("| near each mode: mean [lowest, highest] | left | right | low | kept, each seed | cost (budget) |")
    print(
        "|---|---|---|---|---|---|\n| uniform actions | " + " | ".join(f"{share:.0%}" for share in uniform) + " | | |"
    )
    figure, axes = pyplot.subplots(3, 4, figsize=(13, 11))
    for axis, (method, fields) in zip(axes.flat, PANELS):
        learned = [learned_actions(method, fields, arguments.updates, seed) for seed in arguments.seeds]
        actions, costs, (budget, *_) = zip(*learned)
        share_SM = np.array([mode_shares(action) for action in actions])
        config = dataclasses.replace(ALGORITHMS[method].presets["cpu"](), **fields)
        label = " ".join([method, *(f"{knob}={getattr(config, knob):g}" for knob in KNOBS if hasattr(config, knob))])
        mean = [f"{share:.0%}" for share in share_SM.mean(0)]
        cells = [f"{a} [{low:.0%}, {high:.0%}]" for a, low, high in zip(mean, share_SM.min(0), share_SM.max(0))]
        kept = " / ".join(str(count) for count in (share_SM > uniform).sum(1))
        held = "" if budget is None else f"{np.mean(costs):.2f} ({budget:.2f})"
        print(f"| {label} | " + " | ".join([*cells, kept, held]) + " |", flush=True)
        axis.contourf(x, y, toy_q(box), levels=14, cmap="Blues")
        for seed, action in zip(arguments.seeds, actions):
            axis.scatter(*action[:500].T, s=3, alpha=0.6, linewidths=0, label=f"seed {seed}")
        title = f"{label.replace(' ', chr(10), 1)}\n{', '.join(mean)}"
        axis.set(title=title, xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.title.set_fontsize(10)
    axes[0, 0].legend(fontsize=7, markerscale=3)
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=90)


def learned_actions(method: str, fields: dict[str, float], updates: int, seed: int) -> tuple[Any, float, float | None]:
    """2,048 actions drawn after ``updates``, their mean cost and its budget: half of each batch are its own actions, half uniform ones."""
    import torch

    from algorithms.interface import AgentSpec
    from algorithms.softgac.toy import STATE, toy_q

    algorithm, draw = ALGORITHMS[method], torch.Generator().manual_seed(seed)
    given = {"critic_width": 64, "critic_lr": 3e-3, "v_min": -2 * HEIGHT, "v_max": 2 * HEIGHT, **fields}
    config = algorithm.presets["cpu"]()
    if hasattr(config, "alpha_lr"):
        given["alpha_lr"] = 0.01  # at less the budget is not reached by the end, at more the temperature swings
    config = dataclasses.replace(config, **given)
    agent: Any = algorithm.make_agent(config, AgentSpec(obs_dim=2, action_dim=2, seed=seed))
    policy: Any = algorithm.make_policy(config, 2, 2)
    rng = np.random.default_rng(seed)

    def own(count: int) -> Any:
        policy.load_weights(agent.policy_weights())
        with torch.no_grad():
            return policy.act(torch.tensor(STATE).expand(count, 2), torch.from_numpy(policy.sample_noise(rng, count)))

    for _ in range(updates // 10):
        action = torch.cat([own(1280), torch.rand(1280, 2, generator=draw) * 2 - 1])
        rows = torch.zeros(2560, agent.layout.width)
        rows[:, :2] = rows[:, 6:] = torch.tensor(STATE)
        rows[:, 2:4], rows[:, 4] = action, HEIGHT * toy_q(action)
        metrics = agent.update(rows[torch.randperm(2560, generator=draw)].reshape(10, 256, -1))
    return own(2048), float(metrics["control_energy"]), agent.actor.budget if agent.tempered else None
