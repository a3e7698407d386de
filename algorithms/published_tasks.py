"""What the SoftGAC paper (arXiv 2605.08733) sets by task: the critics' support, the bridge's width, the length of a run.

A task is known by its Gymnasium id: dm_control's by their namespace, HumanoidBench's by their robot, Gym MuJoCo's by name.
"""

from __future__ import annotations

import dataclasses
import re

GYM_MUJOCO = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum", "Pusher",
    "Reacher", "Swimmer", "Walker2d",
)  # fmt: skip
ROBOTS = ("h1", "h1hand", "h1simplehand", "h1strong", "h1touch", "g1")  # HumanoidBench: h1-walk-v0, h1hand-push-v0
GYM_SUPPORT = 1600.0  # the support is [-1600, 1600]
THREE_MILLION = ("humanoid-run", "h1-hurdle")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """The paper's constants of one task."""

    suite: str
    v_max: float  # the support is [-v_max, v_max]
    bridge_width: int  # units
    steps: int  # env steps of a run


def published(env_id: str) -> Published | None:
    """What the paper sets for ``env_id``; None for a task of a suite that it does not name."""
    namespace, _, name = re.sub(r"-v\d+$", "", env_id.rpartition(":")[2]).rpartition("/")
    steps = 3_000_000 if name in THREE_MILLION else 1_000_000
    if namespace == "dm_control":
        dog = name.split("-")[0] == "dog"
        return Published(suite="DMC", v_max=200.0, bridge_width=256 if dog else 512, steps=steps)
    if not namespace and name.split("-")[0] in ROBOTS and "-" in name:
        return Published(suite="HumanoidBench", v_max=200.0, bridge_width=512, steps=steps)
    if not namespace and name in GYM_MUJOCO:
        return Published(suite="Gym MuJoCo", v_max=GYM_SUPPORT, bridge_width=512, steps=1_000_000)
    return None
