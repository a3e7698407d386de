"""Whether a saved state fits an agent."""

from __future__ import annotations

import torch


def check_state(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError naming every entry of ``state`` that is missing, surplus, or of another shape or dtype than ``own``'s."""
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not known" for name in state if name not in own]
    problems += [
        f"{name} is {state[name].dtype} {tuple(state[name].shape)}, expected {mine.dtype} {tuple(mine.shape)}"
        for name, mine in own.items()
        if name in state and (state[name].shape, state[name].dtype) != (mine.shape, mine.dtype)
    ]
    if problems:
        raise ValueError(
            f"this state does not fit the agent, which is unchanged: {'; '.join(problems)}. Build the agent with the "
            "configuration, dimensions and device kind that the state was made with"
        )
