"""The update that all agents share: one gradient, one all-reduce, one guarded step of Adam, sums of metrics on the device.

An agent gives a ``Loss``; its ``Trainer`` descends it. Nothing here looks at a device value from the host, so a GPU is never
waited for and an update can be part of a CUDA graph: a non-finite update is undone by arithmetic.
"""

from __future__ import annotations

import abc
import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from algorithms import runtime
from algorithms.interface import AgentSpec, Collective
from algorithms.runtime import keep_freed_memory
from algorithms.weights import check_state

GENERATOR_BYTES = (16, 5056)  # of the state of a generator on CUDA (seed and offset) and on the CPU (Mersenne twister)
LEAST_WEIGHT = 1e-12  # what a sum is divided by where no row has weight; that update is skipped


class Loss(NamedTuple):
    """What one update descends. All are 0-d, of this learner's rows; the trainer takes their means over the learners."""

    value: torch.Tensor  # with gradient
    temperature: torch.Tensor | None = None  # descended too; no part of the value that is guarded and reported
    weight: torch.Tensor | None = None  # where given, ``value`` is a sum that is divided by this
    shared: tuple[torch.Tensor, ...] = ()  # further scalars to average with the gradient


class Step(NamedTuple):
    """What one update did, as means over the learners; 0-d but for ``shared``."""

    loss: torch.Tensor
    norm: torch.Tensor  # of the gradient, before clipping
    shared: torch.Tensor  # (S,)
    nonfinite: torch.Tensor  # 1.0 where loss or norm is not finite, else 0.0
    skipped: torch.Tensor  # 1.0 where no parameter changed (not finite, or no weight), else 0.0
    unchanged: torch.Tensor  # bool, the same


class Trainer:
    """Parameters with one gradient, the optimisers that move them, and the metrics of their updates.

    Args:
        parameters: with one extra entry for the loss, one for its weight where it has one, one for each shared scalar.
        adams: each over a part of ``parameters``; their ``lr`` may be set before each step.
        metrics: names of what ``record`` takes, in its order.
        clip: the gradient's norm is at most this.
        clip_eps: added to the norm that a gradient is clipped by (torch.nn.utils.clip_grad_norm_: 1e-6).
    """

    def __init__(
        self,
        parameters: FlatParameters,
        adams: Sequence[FlatAdam],
        collective: Collective,
        metrics: tuple[str, ...],
        *,
        clip: float | None = None,
        clip_eps: float = 0.0,
    ) -> None:
        self.parameters, self.adams, self.collective, self.metrics = parameters, adams, collective, metrics
        self.clip, self.clip_eps = clip, clip_eps
        # Sums over the steps that were not skipped, and their number; then the number of non-finite steps.
        self.sums = torch.zeros(len(metrics) + 2, device=parameters.value.device)
        self._one = torch.ones((), device=parameters.value.device)

    def descend(self, loss: Loss) -> Step:
        """One step of every optimiser on the learners' mean gradient, or none where it or the loss is not finite."""
        roots = (loss.value,) if loss.temperature is None else (loss.value, loss.temperature)
        ones, leaves = [self._one] * len(roots), self.parameters.leaves
        grads = torch.autograd.grad(roots, leaves, ones, allow_unused=True, materialize_grads=True)
        torch.cat([grad.reshape(-1) for grad in grads], out=self.parameters.gradient)
        return self.step(loss)

    @torch.no_grad()
    def step(self, loss: Loss) -> Step:
        """``descend`` where the whole gradient of ``loss`` is in ``parameters.gradient`` already."""
        flat = self.parameters
        scalars = (loss.value, *loss.shared) if loss.weight is None else (loss.value, loss.weight, *loss.shared)
        torch.stack(scalars, out=flat.extra)
        self.collective.mean_(flat.grad)
        means = flat.extra.clone()
        value, shared, empty = means[0], means[1:], None
        if loss.weight is not None:
            empty, weight, shared = shared[0] == 0, shared[0].clamp_min(LEAST_WEIGHT), shared[1:]
            flat.gradient.div_(weight)
            value = value / weight
        norm = torch.linalg.vector_norm(flat.gradient)
        nonfinite = (norm + value).mul_(0.0).nan_to_num_(nan=1.0)  # 0 times what is not finite is NaN
        skipped = nonfinite if empty is None else torch.maximum(nonfinite, empty.float())
        if self.clip is not None:
            flat.gradient.mul_((self.clip / (norm + self.clip_eps)).clamp(max=1.0))
        for adam in self.adams:
            adam.step(skipped)
        return Step(value, norm, shared, nonfinite, skipped, skipped > 0)

    @torch.no_grad()
    def record(self, step: Step, values: Sequence[torch.Tensor]) -> None:
        """Adds the metrics (0-d) of a step to the sums, unless it was skipped, and counts it where it was not finite."""
        entries = torch.stack([*values, self._one, step.nonfinite])
        entries[:-1].masked_fill_(step.unchanged, 0.0)
        self.sums.add_(entries)


class TrainedAgent(abc.ABC):
    """What all agents share: where they compute, their noise, their metrics, and their state by name.

    Subclasses set ``trainers`` and name their ``tensors``.
    """

    trainers: tuple[Trainer, ...]

    def __init__(self, spec: AgentSpec, library: str) -> None:
        self.obs_dim, self.action_dim = spec.obs_dim, spec.action_dim
        self.device, self.collective = torch.device(spec.device), spec.collective
        self.matmul = runtime.choose(library)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.generator = torch.Generator(self.device).manual_seed(spec.seed)
        self.updates = 0  # tried, skipped ones included; a host counter, because schedules follow it

    @abc.abstractmethod
    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor on the device that a bit-exact resume needs, by name; not copies."""

    def own(self, noise: torch.Tensor) -> torch.Tensor:
        """This learner's share of noise for all learners' rows (world * rows, ...).

        Every rank draws all of it and keeps its own part, so that the generators stay equal and two learners of B/2 rows
        compute what one learner of B rows does.
        """
        world = self.collective.world_size
        return noise.view(world, len(noise) // world, *noise.shape[1:])[self.collective.rank]

    def normal(self, rows: int, *shape: int) -> torch.Tensor:
        """This learner's standard normal noise (rows, *shape)."""
        size = (self.collective.world_size * rows, *shape)
        return self.own(torch.randn(size, generator=self.generator, device=self.device))

    def uniform(self, rows: int, *shape: int) -> torch.Tensor:
        """This learner's noise (rows, *shape), uniform on [0, 1)."""
        size = (self.collective.world_size * rows, *shape)
        return self.own(torch.rand(size, generator=self.generator, device=self.device))

    def read_metrics(self) -> dict[str, torch.Tensor]:
        """Means over the learners and over the updates since the last call, skipped ones left out (NaN where there is none).

        ``nonfinite`` is the number of non-finite updates.
        """
        sums = torch.cat([trainer.sums for trainer in self.trainers])
        self.collective.mean_(sums)
        metrics: dict[str, torch.Tensor] = {}
        nonfinite = torch.zeros((), device=self.device)
        for trainer, part in zip(self.trainers, sums.split([len(trainer.sums) for trainer in self.trainers])):
            metrics |= dict(zip(trainer.metrics, (part[:-2] / part[-2]).unbind()))
            nonfinite = nonfinite + part[-1]
            trainer.sums.zero_()
        return metrics | {"nonfinite": nonfinite}

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of everything that a bit-exact resume needs, by name."""
        named = {name: tensor.detach().clone() for name, tensor in self.tensors().items()}
        return named | {"generator": self.generator.get_state(), "updates": torch.tensor(self.updates)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Takes what ``state`` gave, in place; raises ValueError naming every missing, surplus or misshapen entry.

        The state of a generator fits only the kind of device that it was made on. On another one the noise goes on from a seed that
        follows from it.
        """
        own, given = self.state(), state.get("generator", torch.empty(0)).cpu()
        foreign = (
            given.dtype == torch.uint8 and given.numel() in GENERATOR_BYTES and given.shape != own["generator"].shape
        )
        check_state(own, state | {"generator": own["generator"]} if foreign else state)
        for name, tensor in self.tensors().items():
            tensor.detach().copy_(state[name])
        if foreign:
            digest = hashlib.blake2b(given.numpy().tobytes(), digest_size=7).digest()
            self.generator.manual_seed(int.from_bytes(digest, "big"))
        else:
            self.generator.set_state(given)
        self.updates = int(state["updates"])


class FlatParameters:
    """Named leaf tensors that are views of ``value`` (n,); their ``.grad``, by name ``grads``, are views of ``grad`` (n + extra,).

    ``gradient`` (n,) is the parameters' part of ``grad``. The ``extra`` last entries of ``grad`` belong to no parameter: they
    carry scalars, such as the loss, through the all-reduce of the gradient. ``leaves`` are what a loss is differentiated by, in
    the order of ``gradient``.
    """

    def __init__(self, initial: dict[str, torch.Tensor], device: torch.device, *, extra: int = 0) -> None:
        self.value = torch.cat([tensor.reshape(-1) for tensor in initial.values()]).to(device, torch.float32)
        self.size = self.value.numel()
        self.grad = torch.zeros(self.size + extra, device=device)
        self.gradient, self.extra = self.grad[: self.size], self.grad[self.size :]
        self.named: dict[str, torch.Tensor] = {}
        self.grads: dict[str, torch.Tensor] = {}
        offset = 0
        for name, tensor in initial.items():
            span = slice(offset, offset + tensor.numel())
            leaf = self.value[span].view(tensor.shape).detach().requires_grad_()
            leaf.grad = self.grads[name] = self.grad[span].view(tensor.shape)
            self.named[name] = leaf
            offset = span.stop
        self.leaves = list(self.named.values())


class FlatAdam:
    """Adam (Kingma & Ba, 2015; bias-corrected, eps outside the root) on one flat buffer, with decoupled weight decay.

    The same numbers as torch.optim.Adam and optax.adam; where ``weight_decay`` is not 0 those of torch.optim.AdamW (Loshchilov
    & Hutter, 2019). ``lr`` may be set before each step: a schedule is the caller's. ``step`` counts on the device; a step with
    ``skip`` = 1 changes nothing, and needs no look at the device to know. Where ``clip`` is given, each entry of the gradient is
    held in [-clip, clip].
    """

    def __init__(
        self,
        value: torch.Tensor,
        grad: torch.Tensor,
        *,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        clip: float | None = None,
    ) -> None:
        self.value, self.grad, self.lr, self.beta1, self.beta2 = value, grad, lr, beta1, beta2
        self.weight_decay, self.eps, self.clip = weight_decay, eps, clip
        self.m = torch.zeros_like(value)
        self.v = torch.zeros_like(value)
        self.count = torch.zeros((), device=value.device)

    def step(self, skip: torch.Tensor) -> None:
        """One step, or none where ``skip`` (0-d float32, 0 or 1) is 1."""
        self.count.add_(1.0 - skip)
        if self.clip is not None:
            self.grad.clamp_(-self.clip, self.clip)
        torch._fused_adamw_(
            [self.value],
            [self.grad],
            [self.m],
            [self.v],
            [],
            [self.count],
            lr=self.lr,
            beta1=self.beta1,
            beta2=self.beta2,
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )

    def state(self) -> dict[str, torch.Tensor]:
        """The moments (n,) and the step count, by name."""
        return {"m": self.m, "v": self.v, "count": self.count}


def lecun_normal(shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """A (..., fan_in, fan_out) float32 weight: normal of std 1/sqrt(fan_in), cut at two standard deviations.

    Drawn wider by 1/.8796, so that the std after the cut is the one named (jax.nn.initializers.lecun_normal).
    """
    weight = torch.empty(shape)
    torch.nn.init.trunc_normal_(weight, std=1.0, a=-2.0, b=2.0, generator=draw)
    return weight * (1.0 / (math.sqrt(shape[-2]) * 0.87962566103423978))


def xavier_uniform(shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    """A (..., fan_in, fan_out) float32 weight, uniform on +- sqrt(6 / (fan_in + fan_out))."""
    bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
    return torch.rand(shape, generator=draw) * (2 * bound) - bound
