"""Actions from a policy and the newest weights: one actor, whatever the policy carries through its episodes.

Letters: E environments, K of them that begin an episode, O observation dim, A action dim.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence
from numpy.random.bit_generator import ISpawnableSeedSequence

from algorithms.interface import EpisodePolicy, PlanRequest, PlanRequestError, Policy
from algorithms.weights import Weights
from replay.schema import EpisodeMetadata

BEFORE_ANY_WEIGHTS = (-1, -1)  # order of an actor without weights; every published (generation, version) is newer
NOISE_STEPS = 64  # steps of noise in one draw: a call of a generator costs as much as some tens of numbers


class NoWeights(RuntimeError):
    """The policy was asked to act before it had weights."""


class NonFiniteAction(FloatingPointError):
    """The policy returned NaN or infinity."""


def plans(policy: object) -> TypeGuard[EpisodePolicy]:
    """Whether ``policy`` carries something through an episode, so that it must know where one begins."""
    return hasattr(policy, "begin")


class Actor:
    """A policy that acts, and never goes back to older weights.

    It has the contract of an EpisodePolicy itself: ``reset``, ``begin``, ``act``. Running episodes keep their plans when new
    weights come.

    Args:
        policy: a Policy is wrapped in a StatelessPolicy.
        backend: how a Policy is computed: "onnx", "torch", or "auto": the policy's own compiled form where it has one on this
            machine, else onnx where onnxruntime imports. onnxruntime is 3 to 5 times faster than torch for the small batches of
            a worker; all agree to 1e-5.
    """

    def __init__(self, policy: Policy | EpisodePolicy, *, backend: str = "auto") -> None:
        self.stateless = None if plans(policy) else StatelessPolicy(policy, backend)  # type: ignore[arg-type]
        self.policy: EpisodePolicy = self.stateless or policy  # type: ignore[assignment]
        self.weights: Weights | None = None

    @property
    def order(self) -> tuple[int, int]:
        """(generation, version) of the weights in use; ``BEFORE_ANY_WEIGHTS`` when there are none."""
        return BEFORE_ANY_WEIGHTS if self.weights is None else self.weights.order

    def load(self, weights: Weights) -> bool:
        """Takes ``weights`` if they are newer than those in use, and says whether they were.

        Raises CorruptWeights when the digest does not match; those in use stay.
        """
        if weights.order <= self.order:
            return False
        self.replace(weights)
        return True

    def replace(self, weights: Weights) -> None:
        """Takes ``weights``, older ones too: for evaluating a checkpoint and for resuming. Raises CorruptWeights."""
        self.policy.load_weights(weights.unpack())
        self.weights = weights

    def require_weights(self) -> None:
        """Raises NoWeights when there are none."""
        if self.weights is None:
            raise NoWeights(
                "the policy was asked for actions before it was given weights: it would act on its random "
                "initialisation; load the newest published weights first"
            )

    def reset(self, num_envs: int) -> None:
        """Forgets every episode and makes room for E environments."""
        self.policy.reset(num_envs)

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: Generator) -> list[EpisodeMetadata]:
        """Begins episodes in the environments ``env_K`` int64 from ``obs_KO`` float32, in one batch.

        ``rng``: spawns one stream an environment, see ``seeded_streams``. Raises NoWeights before the first weights.
        """
        self.require_weights()
        metadata = self.policy.begin(env_K, obs_KO, rng)
        if len(metadata) != len(env_K):
            raise ValueError(
                f"the policy returned {len(metadata)} EpisodeMetadata for {len(env_K)} episodes, expected one for each: a plan "
                "could not be assigned to its episode; return them in the order of env_K"
            )
        return metadata

    def draw_noise(self, rng: Generator, steps: int) -> None:
        """Draws the exploration noise of the next ``steps`` steps, if the policy explores by noise."""
        if self.stateless:
            self.stateless.draw_noise(rng, steps)

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions float32 (E, A) in [-1, 1] for obs float32 (E, O) and the previous action's reward, float32 (E,).

        Raises NoWeights before the first weights and NonFiniteAction when an action is NaN or infinite.
        """
        if self.weights is None:
            self.require_weights()
        action_EA = self.policy.act(obs_EO, reward_E)
        flat = action_EA.reshape(-1)
        if not math.isfinite(flat.dot(flat)):
            rows = np.flatnonzero(~np.isfinite(action_EA).all(axis=1)).tolist()
            raise NonFiniteAction(
                f"policy {self.order} returned non-finite actions for environments {rows} of {len(action_EA)}, expected values "
                "in [-1, 1]: nothing was sent to an environment; these weights must not be used, load a later version"
            )
        return action_EA


class StatelessPolicy:
    """A Policy behind the contract of an EpisodePolicy: it carries nothing through an episode but a stream of noise.

    After ``reset`` and ``begin`` it acts without noise, except in the environments of ``exploring_E``, and an environment's
    actions do not depend on how many there are. After ``draw_noise`` it explores in all of them, in one batch.

    Attributes:
        exploring_E: bool, the environments whose next episodes have exploration noise; None: none.
    """

    def __init__(self, policy: Policy, backend: str = "auto") -> None:
        self.inner = policy
        self.obs_dim, self.action_dim = policy.obs_dim, policy.action_dim
        self.exploring_E: np.ndarray | None = None
        self.backend, self._engine = _make_engine(policy, backend)
        self._envs = 0
        self._noise: Iterator[np.ndarray] = iter(())  # of the next steps, (E, *noise_shape) each
        self._by_row = True  # rounding must not depend on the size of the batch

    @property
    def aim(self) -> PlanRequest:
        """Always the default: nothing is planned."""
        return PlanRequest()

    @aim.setter
    def aim(self, aim: PlanRequest) -> None:
        if aim != PlanRequest():
            raise PlanRequestError(
                f"mode {aim.mode or 'default'} and target return {aim.target_return} were requested of a policy that makes no plans, expected "
                "neither: it acts in one way only; leave mode and target return out"
            )

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Takes arrays by the names of ``Agent.policy_weights``, or raises and changes nothing."""
        self._engine.replace(weights)

    def reset(self, num_envs: int) -> None:
        """Makes room for E environments, which act without noise."""
        self._envs, self._by_row = num_envs, True
        self._noise = repeat(np.zeros((num_envs, *self.inner.noise_shape), np.float32))

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: Generator) -> list[EpisodeMetadata]:
        """Begins episodes in all environments; their noise, if they explore, is drawn from ``rng``, a stream each."""
        if self.exploring_E is not None:
            quiet_E = ~self.exploring_E
            self._noise = noise_by_step(rng.spawn(self._envs), self.inner.sample_noise, quiet_E)
        return [EpisodeMetadata(-1, "", math.nan, math.nan, math.nan)] * len(env_K)

    def draw_noise(self, rng: Generator, steps: int) -> None:
        """Draws the exploration noise of the next ``steps`` steps in one call: at E = 1 a draw a step would cost more."""
        self._by_row = False
        noise = self.inner.sample_noise(rng, steps * self._envs) if steps else np.empty(0, np.float32)
        self._noise = iter(noise.reshape(steps, self._envs, *self.inner.noise_shape))

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """See EpisodePolicy."""
        noise = next(self._noise)
        return self._act_by_row(obs_EO, noise) if self._by_row else self._engine.act(obs_EO, noise)

    def act_on(self, obs_BO: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Actions float32 (B, A) for obs (B, O) with this noise (B, *noise_shape); None: without noise."""
        if noise is None:
            noise = np.zeros((len(obs_BO), *self.inner.noise_shape), np.float32)
        return self._engine.act(obs_BO, noise)

    def state(self) -> dict[str, np.ndarray]:
        """Nothing: the noise of a step is drawn anew."""
        return {}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """See EpisodePolicy."""

    def _act_by_row(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Actions whose rounding does not depend on the number of rows.

        torch's does at any number, so it gets them one by one; onnxruntime's only for one row, which it gets twice; the compiled
        form's never.
        """
        if self.backend == "torch":
            return np.concatenate([self._engine.act(obs_EO[e : e + 1], noise[e : e + 1]) for e in range(len(obs_EO))])
        if self.backend == "onnx" and len(obs_EO) == 1:
            return self._engine.act(np.repeat(obs_EO, 2, axis=0), np.repeat(noise, 2, axis=0))[:1]
        return self._engine.act(obs_EO, noise)


class Engine(Protocol):
    """One way to compute ``Policy.act``."""

    def replace(self, arrays: dict[str, np.ndarray]) -> None:
        """Takes the weights that the next calls use."""

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """A fresh float32 (E, A)."""


@runtime_checkable
class CompiledPolicy(Protocol):
    """A Policy that can have an engine of its own."""

    def compiled(self) -> Engine | None:
        """The engine, or None where this machine has no compiler."""


class TorchEngine:
    """The policy's own module: the obviously right twin of OnnxEngine."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def replace(self, arrays: dict[str, np.ndarray]) -> None:
        self._policy.load_weights(arrays)

    def act(self, obs_EO: np.ndarray, noise: np.ndarray) -> np.ndarray:
        import torch

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


def _make_engine(policy: Policy, backend: str) -> tuple[str, Engine]:
    """The engine and its name: compiled, onnx or torch."""
    if backend not in ("auto", "onnx", "torch"):
        raise ValueError(
            f"backend is {backend!r}, expected 'auto', 'onnx' or 'torch': nothing can act; choose one of them"
        )
    if backend == "auto":
        made = policy.compiled() if isinstance(policy, CompiledPolicy) else None
        if made is not None:
            return "compiled", made
        backend = "onnx" if importlib.util.find_spec("onnxruntime") else "torch"
    return backend, OnnxEngine(policy) if backend == "onnx" else TorchEngine(policy)


def noise_by_step(
    rngs: Sequence[Generator], draw: Callable[[Generator, int], np.ndarray], quiet_E: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Rows of noise (E, ...) for one step after the other; an environment's rows depend on its own generator alone.

    Args:
        rngs: one for each of E environments; used by nobody else from here on.
        draw: (rng, steps) -> array (steps, ...), the rows of one environment.
        quiet_E: bool, environments whose rows are zeros.
    """
    while True:
        block = np.stack([draw(rng, NOISE_STEPS) for rng in rngs], axis=1)
        if quiet_E is not None:
            block[:, quiet_E] = 0.0
        yield from block


def seeded_streams(seeds: Sequence[SeedSequence]) -> Generator:
    """A generator whose ``spawn(K)`` gives K generators, the k-th of which follows from ``seeds[k]`` alone.

    For ``EpisodePolicy.begin``, which spawns one stream an environment in order; spawning again gives new ones.
    """
    return Generator(PCG64(_Streams(seeds)))  # type: ignore[arg-type]  # numpy's stub asks for the class, numpy for the interface


class _Streams(ISpawnableSeedSequence):
    """The seeds of K streams, as numpy's source of spawned generators."""

    def __init__(self, seeds: Sequence[SeedSequence]) -> None:
        self._seeds = list(seeds)

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        """The state of the generator itself, which is not used: the first stream's."""
        return (self._seeds[0] if self._seeds else SeedSequence(0)).generate_state(n_words, dtype)

    def spawn(self, n_children: int) -> list[SeedSequence]:  # type: ignore[override]
        """The next seed of each stream."""
        if n_children != len(self._seeds):
            raise ValueError(
                f"{n_children} streams were spawned, expected {len(self._seeds)}, one for each episode that begins: a "
                "plan would depend on the other episodes; spawn one an environment, in the order of env_K"
            )
        return [seed.spawn(1)[0] for seed in self._seeds]
