"""A small writer of ONNX graphs, node by node: no exporter, so what runs is what is written."""

from __future__ import annotations

from typing import Any

import numpy as np
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
