"""A small writer of ONNX graphs, node by node: no exporter, so what runs is what is written.

A policy that is written once, for torch, is traced: its function is called on ``Value``s, which add a node for each of torch's
operations. Those that are not in ``Value`` are refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, checker, helper, numpy_helper

OPSET = 18


class Graph:
    """Collects nodes; every method returns the name of a node's output, to be passed to the next."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._constants: list[Any] = []

    def input(self, name: str, shape: tuple[int | str, ...]) -> str:
        """A float32 graph input; a string in ``shape`` is a free dimension."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def constant(self, value: np.ndarray) -> str:
        """A value fixed in the graph."""
        name = f"constant{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def scalar(self, value: float) -> str:
        """A float32 number fixed in the graph."""
        return self.constant(np.array(value, np.float32))

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """One operator with one output."""
        return self.nodes(kind, *inputs, outputs=1, **attributes)[0]

    def nodes(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """One operator with several outputs."""
        names = [f"n{len(self._nodes)}_{i}" for i in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def model(self, output: str, shape: tuple[int | str, ...]) -> bytes:
        """The checked, serialised model; ``output`` leaves it under the name ``action``."""
        self._nodes.append(helper.make_node("Identity", [output], ["action"]))
        result = helper.make_tensor_value_info("action", TensorProto.FLOAT, shape)
        graph = helper.make_graph(self._nodes, "policy", self._inputs, [result], self._constants)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        checker.check_model(made)
        return made.SerializeToString()


class Value:
    """A float32 tensor of a graph, for code that is written for torch. Axes are counted from 0."""

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def _add(self, kind: str, *inputs: Any, **attributes: Any) -> Value:
        return Value(self.graph, self.graph.node(kind, *(self._name(x) for x in inputs), **attributes))

    def _name(self, x: Any) -> str:
        if isinstance(x, Value):
            return x.name
        return self.graph.constant(np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float32))

    def __add__(self, other: Any) -> Value:
        return self._add("Add", self, other)

    def __sub__(self, other: Any) -> Value:
        return self._add("Sub", self, other)

    def __rsub__(self, other: Any) -> Value:
        return self._add("Sub", other, self)

    def __mul__(self, other: Any) -> Value:
        return self._add("Mul", self, other)

    def __truediv__(self, other: Any) -> Value:
        return self._add("Div", self, other)

    def __rtruediv__(self, other: Any) -> Value:
        return self._add("Div", other, self)

    def __matmul__(self, other: Any) -> Value:
        return self._add("MatMul", self, other)

    def __neg__(self) -> Value:
        return self._add("Neg", self)

    __radd__, __rmul__ = __add__, __mul__

    def __getitem__(self, key: int | tuple[Any, ...]) -> Value:
        """``x[i]`` and ``x[:, i]``, where i is a whole number or, in the second, a slice."""
        index, axis = (key, 0) if isinstance(key, int) else (key[-1], len(key) - 1)
        if not isinstance(index, slice):
            return self._add("Gather", self, self._whole(index), axis=axis)
        start, end = self._whole([index.start or 0]), self._whole([2**31 if index.stop is None else index.stop])
        return self._add("Slice", self, start, end, self._whole([axis]))

    def _whole(self, values: int | list[int]) -> Value:
        return Value(self.graph, self.graph.constant(np.array(values, np.int64)))

    def unsqueeze(self, axis: int) -> Value:
        return self._add("Unsqueeze", self, self._whole([axis]))

    def repeat(self, *times: int) -> Value:
        return self._add("Tile", self, self._whole(list(times)))

    def reshape(self, *shape: int) -> Value:
        return self._add("Reshape", self, self._whole(list(shape)))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Value:
        if func.__name__ not in _OPERATIONS:
            raise NotImplementedError(
                f"{func} has no ONNX form here: the policy cannot be exported; add it to _OPERATIONS"
            )
        return _OPERATIONS[func.__name__](*args, **(kwargs or {}))


def _cat(parts: Sequence[Value], axis: int) -> Value:
    return parts[0]._add("Concat", *parts, axis=axis)


def _clamp(x: Value, low: float, high: float) -> Value:
    return x._add("Clip", x, low, high)


def _layer_norm(x: Value, shape: Any, weight: Value, bias: Value, eps: float) -> Value:
    return x._add("LayerNormalization", x, weight, bias, epsilon=eps)


def _addmm(bias: Value, x: Value, weight: Value) -> Value:
    return x._add("Gemm", x, weight, bias)


def _gelu(x: Value, approximate: str) -> Value:
    inner = (x + x * x * x * 0.044715) * 0.7978845608028654
    return x * 0.5 * (inner._add("Tanh", inner) + 1.0)


def _mish(x: Value, inplace: bool) -> Value:
    """x tanh(log(1 + e^x)) = x w / (w + 2) with w = e^x (e^x + 2): onnxruntime's Softplus is slow."""
    power = x._add("Exp", x._add("Min", x, 20.0))  # beyond, the factor is 1 in float32
    w = power * (power + 2.0)
    return x * (w / (w + 2.0))


def _best(q: Value, axis: int, keepdim: bool) -> Value:
    return q._add("ReduceMax", q, q._whole([axis]), keepdims=int(keepdim))


def _sum(x: Value, axis: int) -> Value:
    return x._add("ReduceSum", x, x._whole([axis]), keepdims=0)


def _unary(kind: str) -> Callable[[Value], Value]:
    return lambda x: x._add(kind, x)


_OPERATIONS: dict[str, Callable[..., Value]] = {
    **{name.lower(): _unary(name) for name in ("Tanh", "Exp", "Sqrt", "Relu", "Softplus", "Sin", "Cos")},
    **{"cat": _cat, "clamp": _clamp, "layer_norm": _layer_norm, "addmm": _addmm, "gelu": _gelu, "mish": _mish},
    **{"amax": _best, "sum": _sum, "minimum": lambda a, b: a._add("Min", a, b)},
    "elu": lambda x, alpha, inplace: x._add("Elu", x, alpha=alpha),
    "softmax": lambda x, axis: x._add("Softmax", x, axis=axis),
    "eq": lambda a, b: a._add("Cast", a._add("Equal", a, b), to=TensorProto.FLOAT),
}


def traced(
    act: Callable[..., Any], obs_dim: int, noise_shape: tuple[int, ...], action_dim: int, weights: dict[str, Any]
) -> bytes:
    """The graph of ``act(obs, noise, weights)``: inputs ``obs`` (B, O), ``noise`` (B, ...) and each of ``weights``; output ``action``."""
    graph = Graph()
    obs, noise = (Value(graph, graph.input(n, ("B", *s))) for n, s in (("obs", (obs_dim,)), ("noise", noise_shape)))
    return graph.model(act(obs, noise, _inputs(graph, weights)).name, ("B", action_dim))


def traced_alone(act: Callable[..., Any], obs_dim: int, action_dim: int, weights: dict[str, Any]) -> bytes:
    """The graph of ``act(obs, weights)``, which has no noise."""
    graph = Graph()
    obs = Value(graph, graph.input("obs", ("B", obs_dim)))
    return graph.model(act(obs, _inputs(graph, weights)).name, ("B", action_dim))


def _inputs(graph: Graph, weights: dict[str, Any]) -> dict[str, Value]:
    return {name: Value(graph, graph.input(name, tuple(value.shape))) for name, value in weights.items()}
