"""A run's policy as one file for other programs: an ONNX graph or a torch program from observations to the environment's actions.

Both are the noise-free policy, with its weights, the normalisation of observations and the action box inside.
Letters: B batch, O observation dim, A action dim.
"""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from algorithms import online_names
from algorithms.onnx_graph import OPSET
from cluster.errors import RunError, UsageError
from cluster.policy import LoadedPolicy
from replay.manifest import write_atomic

CHECKED = 64  # observations on which a file is compared with the policy before it is written
TOLERANCE = 1e-4  # of an action box's half width; float32 rounding in another order gives 1e-6
Leaf = tuple[str, tuple[int, ...]]  # a part of an observation: its name and its shape


def export_policy(policy: LoadedPolicy, onnx_path: Path | None, torch_path: Path | None) -> list[str]:
    """Writes the files that were asked for; a line for each. UsageError for a policy that no graph holds."""
    if not hasattr(_acting(policy), "onnx_model"):
        raise UsageError(
            f"{policy.run_dir} is a run of {policy.algorithm}, expected bc, percent-bc, {online_names()}, or one that learns values: its "
            f"policy carries {_carried(policy.algorithm)} through each episode, which a graph from observation to action cannot hold, so "
            "nothing was written; act with drawbridge.load"
        )
    parts = leaves(policy.observation_space)
    renamed, lines = _renamed(policy.observation_space, parts), []
    expected = _expected(
        policy, parts
    )  # before any trace: a table that a trace is the first to cache is none for others
    for path, write in ((onnx_path, _as_onnx), (torch_path, _as_torch)):
        if path is None:
            continue
        data, words, action = write(policy, parts)
        difference = _difference(policy, action, expected)
        try:
            write_atomic(path, data)
        except OSError as error:
            raise RunError(
                f"{path} could not be written ({error}), expected room for the policy: it is not there; give a file that can be"
            ) from error
        lines.append(
            f"{path}: {words}; differs from torch by at most {difference:.1e} over {CHECKED} observations{renamed}"
        )
    return lines


def leaves(space: gym.Space) -> list[Leaf]:
    """The parts of an observation in the order in which policies see them; a Box alone is ``obs``.

    No two have one name, and none that of the output: a part ``action`` becomes ``action_2``.
    """
    found: list[Leaf] = []
    taken = {"action"}
    for path, shape in _paths(space):
        name = _joined(path)
        free = (
            name if name not in taken else next(f"{name}_{n}" for n in itertools.count(2) if f"{name}_{n}" not in taken)
        )
        taken.add(free)
        found.append((free, shape))
    return found


def _paths(space: gym.Space, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], tuple[int, ...]]]:
    """The keys that lead to each part, and its shape."""
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key in sorted(space) for leaf in _paths(space[key], (*path, key))]
    return [(path, tuple(space.shape or ()))]


def _joined(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path)) or "obs"


def _renamed(space: gym.Space, parts: list[Leaf]) -> str:
    """Which parts have other names than their keys, to add to a line; "" if none has."""
    found = [
        f"{name} is the part {''.join(f'[{key!r}]' for key in path)} of an observation"
        for (name, _), (path, _) in zip(parts, _paths(space))
        if name != _joined(path)
    ]
    return "".join(f"; {text}, whose own name is taken" for text in found)


def _acting(policy: LoadedPolicy) -> Any:
    """The algorithm's own policy."""
    return policy.actor.stateless.inner if policy.actor.stateless else policy.actor.policy


def _weights(policy: LoadedPolicy) -> dict[str, np.ndarray]:
    assert policy.actor.weights is not None
    return policy.actor.weights.unpack()


def _carried(algorithm: str) -> str:
    window = "a window of steps and the return to go"
    carried = {"gac": "a plan, searched for by gradient ascent,", "dt": window, "odt": window}
    return carried.get(algorithm, "the return that was asked for")


def _as_onnx(policy: LoadedPolicy, parts: list[Leaf]) -> tuple[bytes, str, np.ndarray]:
    """The serialised model, what it is, and its actions for the observations of ``_observations``."""
    import onnxruntime

    data = onnx_bytes(policy, parts)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (action,) = session.run(["action"], _split(_observations(policy), parts))
    return data, f"ONNX opset {OPSET}, {_in_and_out(policy, parts)}", action


def onnx_bytes(policy: LoadedPolicy, parts: list[Leaf]) -> bytes:
    """The policy's own graph with weights and noise fixed, from the observation's parts to the environment's action box."""
    acting, box = _acting(policy), policy.box
    model = onnx.load_from_string(acting.onnx_model())
    graph = model.graph
    weights = _weights(policy)
    names = [entry.name for entry in graph.input]
    graph.initializer.extend(
        numpy_helper.from_array(np.array(weights[name]), name) for name in names if name in weights
    )
    del graph.input[:], graph.output[:]
    inner = "policy/"  # what the names inside begin with, and no input's
    while any(name.startswith(inner) for name, _ in parts):
        inner = f"/{inner}"
    for node in graph.node:
        node.input[:] = [name and inner + name for name in node.input]  # an input that is left out has no name
        node.output[:] = [name and inner + name for name in node.output]
    for tensor in graph.initializer:
        tensor.name = inner + tensor.name
    before: list[Any] = []
    after: list[Any] = []

    def constant(name: str, value: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), inner + name))
        return inner + name

    def add(nodes: list[Any], op: str, inputs: list[str], output: str, **more: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [inner + output], **more))
        return inner + output

    flat = []
    for i, (name, shape) in enumerate(parts):
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ("B", *shape)))
        size = constant(f"size/{i}", np.array([-1, math.prod(shape)]))
        flat.append(add(before, "Reshape", [name, size], f"flat/{i}"))
    obs = add(before, "Concat", flat, "obs", axis=1)
    if "noise" in names:
        zero = numpy_helper.from_array(np.zeros(1, np.float32))
        rows = add(before, "Shape", [obs], "noise/rows", start=0, end=1)
        zeros = add(
            before, "Concat", [rows, constant("noise/shape", np.array(acting.noise_shape))], "noise/zeros", axis=0
        )
        add(before, "ConstantOfShape", [zeros], "noise", value=zero)
    kind = helper.np_dtype_to_tensor_dtype(box.half_A.dtype)
    action = add(after, "Cast", [f"{inner}action"], "box/unit", to=kind)
    action = add(after, "Mul", [action, constant("box/half", box.half_A)], "box/scaled")
    action = add(after, "Add", [action, constant("box/middle", box.middle_A)], "box/shifted")
    action = add(after, "Max", [action, constant("box/low", box.lowest_A)], "box/above")
    action = add(after, "Min", [action, constant("box/high", box.highest_A)], "box/inside")
    shape_of_box = constant("box/shape", np.array([-1, *box.shape]))
    after.append(helper.make_node("Reshape", [action, shape_of_box], ["action"]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info("action", kind, ("B", *policy.box.shape)))
    helper.set_model_props(model, _facts(policy))
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def _as_torch(policy: LoadedPolicy, parts: list[Leaf]) -> tuple[bytes, str, np.ndarray]:
    """As ``_as_onnx``, of a program of torch.export."""
    example = [torch.from_numpy(part) for part in _split(_observations(policy), parts).values()]
    rows = {0: torch.export.Dim("B")}
    module = _Program(policy, parts).eval()
    with torch.inference_mode():
        program = torch.export.export(module, tuple(example), dynamic_shapes=((rows,) * len(example),))
        action = program.module()(*example).numpy()
    file = io.BytesIO()
    torch.export.save(program, file, extra_files=_facts(policy))
    return file.getvalue(), f"torch.export program of torch {torch.__version__}, {_in_and_out(policy, parts)}", action


class _Program(torch.nn.Module):
    """Observations, a tensor for each part, to the environment's actions."""

    def __init__(self, policy: LoadedPolicy, parts: list[Leaf]) -> None:
        super().__init__()
        self._acting, self._sizes, box = _acting(policy), [math.prod(shape) for _, shape in parts], policy.box
        self._acting.load_weights(_weights(policy))  # an engine of onnxruntime has its own
        self._box = [torch.from_numpy(part) for part in (box.half_A, box.middle_A, box.lowest_A, box.highest_A)]
        self._shape = policy.box.shape

    def forward(self, *parts: torch.Tensor) -> torch.Tensor:
        flat = [part.reshape(-1, size) for part, size in zip(parts, self._sizes)]
        obs_BO = torch.cat(flat, 1)
        if hasattr(self._acting, "noise_shape"):
            action_BA = self._acting.act(obs_BO, obs_BO.new_zeros(obs_BO.shape[0], *self._acting.noise_shape))
        else:
            action_BA = self._acting.act_on(obs_BO)
        half_A, middle_A, low_A, high_A = self._box
        scaled_BA = (action_BA.to(half_A.dtype) * half_A + middle_A).clamp(low_A, high_A)
        return scaled_BA.reshape(-1, *self._shape)


def _in_and_out(policy: LoadedPolicy, parts: list[Leaf]) -> str:
    """Inputs and output with their shapes, for people."""
    shown = [f"{name} ({', '.join(map(str, ('B', *shape)))})" for name, shape in [*parts, ("action", policy.box.shape)]]
    return f"{', '.join(shown[:-1])} float32 -> {shown[-1]} {policy.box.half_A.dtype}"


def _facts(policy: LoadedPolicy) -> dict[str, str]:
    """What a file says of itself."""
    named = ("algorithm", "env", "env_steps", "updates")
    return {"drawbridge": "1"} | {name: str(getattr(policy, name)) for name in named}


def _observations(policy: LoadedPolicy) -> np.ndarray:
    """Observations (B, O) to compare on."""
    return np.random.default_rng(0).standard_normal((CHECKED, policy.actor.policy.obs_dim), np.float32)


def _split(obs_BO: np.ndarray, parts: list[Leaf]) -> dict[str, np.ndarray]:
    """Flat observations as the parts that they are made of."""
    ends = np.cumsum([math.prod(shape) for _, shape in parts])[:-1]
    return {name: flat.reshape(-1, *shape) for (name, shape), flat in zip(parts, np.split(obs_BO, ends, axis=1))}


def _expected(policy: LoadedPolicy, parts: list[Leaf]) -> np.ndarray:
    """The actions of torch for the observations of ``_observations``."""
    with torch.inference_mode():
        flat = _split(_observations(policy), parts).values()
        return np.asarray(_Program(policy, parts)(*map(torch.from_numpy, flat)).numpy())


def _difference(policy: LoadedPolicy, action: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of a file's actions from those of torch; RunError where it is more than rounding."""
    difference = float(np.abs(action - expected).max())
    if not difference <= TOLERANCE * float(policy.box.half_A.max()):
        raise RunError(
            f"the exported policy differs from torch by {difference:.1e}, expected at most rounding: it would act otherwise than the "
            "run, so it was not written; report this with the run's config.json"
        )
    return difference
