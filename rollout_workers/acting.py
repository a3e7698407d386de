"""Actions from a policy and the newest weights, through onnxruntime or through torch.

Letters: E environments of the batch, O observation dim, A action dim.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from algorithms.interface import Policy
from algorithms.weights import Weights

BEFORE_ANY_WEIGHTS = (-1, -1)  # order of an actor that was given none; every published (epoch, version) is newer


class NoWeights(RuntimeError):
    """The policy was asked to act before it had weights."""


class NonFiniteAction(FloatingPointError):
    """The policy gave NaN or infinity."""


class Engine(Protocol):
    """One way to compute ``Policy.act``."""

    def replace(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the weights that the next calls use."""

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """A fresh float32 (E, A)."""


class NewestWeights:
    """The weights that something acts with; they never go back by themselves.

    Args:
        install: takes the arrays by name into what computes actions, or raises and changes nothing.
    """

    def __init__(self, install: Callable[[dict[str, np.ndarray]], None]) -> None:
        self.weights: Weights | None = None
        self._install = install

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, version) of the weights in use; ``BEFORE_ANY_WEIGHTS`` when there are none."""
        return BEFORE_ANY_WEIGHTS if self.weights is None else self.weights.order

    def load(self, weights: Weights) -> bool:
        """Takes ``weights`` when they are newer than those in use, and says whether they were.

        Raises CorruptWeights when the digest does not match; those in use stay.
        """
        if weights.order <= self.order:
            return False
        self.replace(weights)
        return True

    def replace(self, weights: Weights) -> None:
        """Takes ``weights``, older ones too: for evaluating a checkpoint and for resuming. Raises CorruptWeights."""
        self._install(weights.unpack())
        self.weights = weights

    def require_weights(self) -> None:
        """Raises NoWeights when there are none."""
        if self.weights is None:
            raise NoWeights(
                "the policy was asked for actions before it was given weights: it would act on its random "
                "initialisation; load the newest published weights first"
            )

    def finite(self, action_EA: np.ndarray) -> np.ndarray:
        """``action_EA`` (E, A) itself; raises NonFiniteAction when one is NaN or infinite."""
        flat = action_EA.reshape(-1)
        if not math.isfinite(flat.dot(flat)):
            raise NonFiniteAction(self._nonfinite_message(action_EA))
        return action_EA

    def _nonfinite_message(self, action_EA: np.ndarray) -> str:
        rows = np.flatnonzero(~np.isfinite(action_EA).all(axis=1)).tolist()
        return (
            f"policy {self.order} gave non-finite actions for environments {rows} of {len(action_EA)}, expected values "
            "in [-1, 1]: nothing was sent to an environment; these weights must not be used, load a later version"
        )


class Actor(NewestWeights):
    """A policy that acts, and never goes back to older weights.

    Args:
        policy: what to compute; its module is used by the torch engine, its ONNX graph by the other one.
        backend: "onnx", "torch", or "auto": onnx where onnxruntime imports. onnxruntime is 3 to 5 times
            faster for the small batches of a worker; the two agree to 1e-5.
    """

    def __init__(self, policy: Policy, *, backend: str = "auto") -> None:
        self.policy = policy
        self.backend = _resolve(backend)
        self._engine: Engine = OnnxEngine(policy) if self.backend == "onnx" else TorchEngine(policy)
        super().__init__(self._engine.replace)

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions float32 (E, A) in [-1, 1] for obs float32 (E, O) and noise float32 (E, *noise_shape).

        Raises NoWeights before the first weights and NonFiniteAction when an action is NaN or infinite.
        """
        self.require_weights()
        return self.finite(self._engine.act(obs_EO, noise))

    def no_noise(self, batch: int) -> np.ndarray:
        """The noise (batch, *noise_shape) of the deterministic policy: zeros."""
        return np.zeros((batch, *self.policy.noise_shape), np.float32)


class TorchEngine:
    """The policy's own module: the obviously right twin of OnnxEngine."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def replace(self, arrays: dict[str, np.ndarray]) -> None:
        self._policy.load_weights(arrays)

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self._policy.act(torch.from_numpy(obs_EO), torch.from_numpy(noise)).numpy()


class OnnxEngine:
    """One onnxruntime session for every version of the weights.

    Weights are graph inputs that are bound once a version; obs, noise and action are buffers bound once a batch
    size. A call then copies in, runs and copies out: as fast as weights frozen into the graph (33 us against 31 us
    for a bridge of 6 steps of width 64), with no session to rebuild (3 ms) at each new version.
    """

    def __init__(self, policy: Policy) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._to_value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._session = onnxruntime.InferenceSession(policy.onnx_model(), options, providers=["CPUExecutionProvider"])
        inputs = {entry.name: entry.shape for entry in self._session.get_inputs()}
        self._weight_shapes = {name: tuple(shape) for name, shape in inputs.items() if name not in ("obs", "noise")}
        self._dims = policy.obs_dim, policy.action_dim, policy.noise_shape
        self._weights: dict[str, Any] = {}
        self._batch = -1

    def replace(self, arrays: dict[str, np.ndarray]) -> None:
        found = {name: array.shape for name, array in arrays.items()}
        if found != self._weight_shapes:
            wrong = sorted(
                n for n in found.keys() | self._weight_shapes.keys() if found.get(n) != self._weight_shapes.get(n)
            )
            name = wrong[0]
            raise ValueError(
                f"weights do not fit the policy: {name!r} has shape {found.get(name, 'absent')}, expected "
                f"{self._weight_shapes.get(name, 'no such entry')} ({len(wrong)} entries differ): the old ones stay in "
                "place; use weights of the same algorithm, preset and environment"
            )
        # Copies: the session reads this memory in every call, whatever becomes of the message it came in.
        self._weights = {name: self._to_value(np.array(array, np.float32)) for name, array in arrays.items()}
        self._batch = -1

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        if len(obs_EO) != self._batch:
            self._bind(len(obs_EO))
        self._obs_EO[:] = obs_EO
        self._noise[:] = noise
        self._session.run_with_iobinding(self._binding)
        return self._action_EA.copy()

    def _bind(self, batch: int) -> None:
        obs_dim, action_dim, noise_shape = self._dims
        self._obs_EO = np.empty((batch, obs_dim), np.float32)
        self._noise = np.empty((batch, *noise_shape), np.float32)
        self._action_EA = np.empty((batch, action_dim), np.float32)
        # The values share the arrays' memory: they are kept here as long as the binding that points to them.
        self._values = {"obs": self._to_value(self._obs_EO), "noise": self._to_value(self._noise)} | self._weights
        self._binding = self._session.io_binding()
        for name, value in self._values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._output = self._to_value(self._action_EA)
        self._binding.bind_ortvalue_output("action", self._output)
        self._batch = batch


def _resolve(backend: str) -> str:
    if backend not in ("auto", "onnx", "torch"):
        raise ValueError(
            f"backend is {backend!r}, expected 'auto', 'onnx' or 'torch': nothing can act; choose one of them"
        )
    if backend != "auto":
        return backend
    return "onnx" if importlib.util.find_spec("onnxruntime") else "torch"
