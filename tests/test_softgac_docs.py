"""The snippet of docs/softgac.md runs as written."""

from __future__ import annotations

import pathlib
import re

import torch


def test_the_documented_check_of_one_update_runs_and_moves_every_parameter():
    text = (pathlib.Path(__file__).parents[1] / "docs" / "softgac.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(snippet, names)  # the project's own document
    state, after = names["state"], names["after"]
    assert isinstance(state, dict) and isinstance(after, dict)
    stated = re.sub(r"\{l\}", "1", text)
    for name, tensor in after.items():
        if name.startswith(("critic.", "actor.")) and name.endswith((".weight", ".m")):
            assert not torch.equal(tensor, state[name]), name
        if name.startswith("critic.norm1") or name.startswith("critic.linear1"):
            assert name.rsplit(".", 1)[0] in stated
    assert after["critic.passes"] == 1 and after["updates"] == 1
