"""The snippet of docs/softgac.md runs as written, and a cycle takes as many operations as it says."""

from __future__ import annotations

import dataclasses
import pathlib
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from algorithms import ALGORITHMS, compiled
from algorithms.interface import AgentSpec

TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "softgac.md").read_text()


class Count(TorchDispatchMode):
    """Counts operations, views of a tensor left out: on a GPU a launch is behind each."""

    made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.made += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_a_cycle_takes_as_many_operations_as_is_documented(preset):
    config = dataclasses.replace(ALGORITHMS["softgac"].presets[preset](), critic_width=16, bridge_width=8)
    with compiled.without():
        agent = ALGORITHMS["softgac"].make_agent(config, AgentSpec(obs_dim=17, action_dim=6))
        rows = torch.randn(agent.cycle, 32, 2 * 17 + 6 + 2)
        agent.step_cycle(rows)
        with Count() as count:
            agent.step_cycle(rows)
    assert f"{count.made} operations in preset `{preset}`" in " ".join(TEXT.split())


def test_the_documented_check_of_one_update_runs_and_moves_every_parameter():
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)  # the project's own document
    state, after = names["state"], names["after"]
    assert isinstance(state, dict) and isinstance(after, dict)
    stated = re.sub(r"\{l\}", "1", TEXT)
    for name, tensor in after.items():
        if name.startswith(("critic.", "actor.")) and name.endswith((".weight", ".m")):
            assert not torch.equal(tensor, state[name]), name
        if name.startswith("critic.norm1") or name.startswith("critic.linear1"):
            assert name.rsplit(".", 1)[0] in stated
    assert after["critic.passes"] == 1 and after["updates"] == 1
