"""Weights on the wire: one flat float32 buffer with a manifest, a digest and a version.

torch is imported where tensors are touched: shards and the store pass weights on and never need its seconds and 180 MiB.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


class CorruptWeights(ValueError):
    """A weights message whose bytes do not match its digest."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """A published policy.

    ``manifest`` lists (name, shape, offset) in elements of ``flat``. (generation, version) only grows: the generation with each
    restart of the learner, the version with each publication. ``env_steps`` and ``updates`` say when it was made.
    """

    flat: np.ndarray  # (P,) float32
    manifest: tuple[tuple[str, tuple[int, ...], int], ...]
    digest: str  # blake2b-128 of flat's bytes and the manifest
    generation: int
    version: int
    env_steps: int
    updates: int

    @classmethod
    def pack(cls, tensors: dict[str, Any], *, generation: int, version: int, env_steps: int, updates: int) -> Weights:
        """Copies named tensors (or arrays), of any device, into one flat buffer in the order given: one copy, one transfer."""
        return Packing(tensors).done(generation=generation, version=version, env_steps=env_steps, updates=updates)

    @property
    def order(self) -> tuple[int, int]:
        """What decides which of two weights is newer."""
        return self.generation, self.version

    def unpack(self) -> dict[str, np.ndarray]:
        """Views into ``flat`` by name; raises CorruptWeights when the digest does not match."""
        seen = _digest(self.flat, self.manifest)
        if seen != self.digest:
            raise CorruptWeights(
                f"weights {self.order} have digest {seen}, expected {self.digest}: they were damaged on the way, are "
                "not used, and the newest good ones stay in place; fetch them again"
            )
        return {name: self.flat[at : at + _size(shape)].reshape(shape) for name, shape, at in self.manifest}


class Packing:
    """Named tensors (or arrays) on their way into one flat buffer, as they are now. On CUDA nobody waits until ``done``."""

    def __init__(self, tensors: dict[str, Any]) -> None:
        import torch

        named = {name: torch.as_tensor(value, dtype=torch.float32).detach() for name, value in tensors.items()}
        starts = itertools.accumulate((tensor.numel() for tensor in named.values()), initial=0)
        self._manifest = tuple((name, tuple(tensor.shape), at) for (name, tensor), at in zip(named.items(), starts))
        self._flat = torch.cat([tensor.reshape(-1) for tensor in named.values()])
        self._arrived: torch.cuda.Event | None = None
        if self._flat.is_cuda:
            pinned = torch.empty(self._flat.shape, pin_memory=True)
            self._flat = pinned.copy_(self._flat, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def done(self, *, generation: int, version: int, env_steps: int, updates: int) -> Weights:
        """The weights, once they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        flat = self._flat.numpy()
        return Weights(
            flat=flat,
            manifest=self._manifest,
            digest=_digest(flat, self._manifest),
            generation=generation,
            version=version,
            env_steps=env_steps,
            updates=updates,
        )


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _digest(flat: np.ndarray, manifest: tuple[tuple[str, tuple[int, ...], int], ...]) -> str:
    state = hashlib.blake2b(repr(manifest).encode(), digest_size=16)
    state.update(np.ascontiguousarray(flat).view(np.uint8).data)
    return state.hexdigest()


def shape_of(value: Any) -> str:
    """Of an array or a tensor."""
    return str(tuple(value.shape))


def misfits(
    own: Mapping[str, Any], given: Mapping[str, Any], verb: str = "has shape", describe: Callable[[Any], str] = shape_of
) -> list[str]:
    """Every entry of ``given`` that is missing, surplus, or described otherwise than ``own``'s, in words."""
    problems = [f"{name} is missing" for name in own if name not in given]
    problems += [f"{name} is not known" for name in given if name not in own]
    pairs = [(name, describe(given[name]), describe(own[name])) for name in own if name in given]
    return problems + [f"{name} {verb} {seen}, expected {mine}" for name, seen, mine in pairs if seen != mine]


def check_state(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    """Raises ValueError naming every entry of ``state`` that is missing, surplus, or of another shape or dtype than ``own``'s."""
    if problems := misfits(own, state, "is", lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}"):
        raise ValueError(
            f"this state does not fit the agent, which is unchanged: {'; '.join(problems)}. Build the agent with the "
            "configuration, dimensions and device kind that the state was made with"
        )


def load_weights(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Copies ``given`` into ``own``, both arrays or tensors; ``own``'s are float32 on the CPU.

    Raises ValueError naming every missing, surplus or misshapen entry; ``own`` is then unchanged.
    """
    if problems := misfits(own, given):
        raise ValueError(
            f"these weights do not fit the policy, which keeps the ones it has: {'; '.join(problems)}. Build the policy "
            "with the configuration and dimensions of the learner that made the weights"
        )
    for name, mine in own.items():
        np.copyto(_array(mine), _array(given[name]))


def _array(value: Any) -> np.ndarray:
    return value if isinstance(value, np.ndarray) else value.detach().cpu().numpy()
