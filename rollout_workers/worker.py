"""A rollout worker: acts, steps, records; one call gives one chunk.

Letters: E environments, T steps of a chunk, O observation dim, A action dim.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from algorithms import progress
from algorithms.interface import EpisodePolicy, PlanRequest, Policy
from algorithms.weights import Weights
from replay.messages import Chunk, RowTotals
from replay.schema import RowLayout
from rollout_workers.actor import Actor, plans
from rollout_workers.config import WorkerConfig
from rollout_workers.env import BatchEnv
from rollout_workers.envs import make_batch_env
from rollout_workers.episodes import UNLIMITED_STEPS, RunningEpisodes
from rollout_workers.recorder import REASONS, REST_OF_EPISODE, Recorder, merge_stats

EMPTY_CHUNKS = 10  # chunks without a single finite row before the worker gives up

# prefixes of the parts' entries in a worker's state
_ENV, _RECORDER, _WEIGHTS, _PLANS = "env.", "recorder.", "weights.", "plans."


class RolloutWorker:
    """E environments, one policy, and no knowledge of where it runs or who takes its chunks.

    An EpisodePolicy begins episodes before their first action, with the weights at hand then, all of one step in one batch;
    their metadata travels in ``Chunk.metadata``.

    Args:
        config: ``envs_per_worker`` is E, ``chunk_steps`` is T.
        env_id: Gymnasium id; make_batch_env says which are possible.
        policy: the acting side of the algorithm, or a callable that makes it.
        worker, incarnation: who this is. A restarted worker is a new incarnation: its random streams, seeded
            with SeedSequence([seed, worker, incarnation]), repeat nothing of the one it replaces.
        seed: the run's.
        random_steps: env steps of this worker with uniform actions in [-1, 1] before the policy acts, rounded up to
            whole steps of the E environments; 0 with an EpisodePolicy.
        aim: requested of an EpisodePolicy; None: what it is set to.
        make_env: (env_id, num_envs, seed, fast) -> BatchEnv.
    """

    def __init__(
        self,
        *,
        config: WorkerConfig,
        env_id: str,
        policy: Policy | EpisodePolicy | Callable[[], Policy | EpisodePolicy],
        worker: int,
        incarnation: int,
        seed: int,
        random_steps: int,
        aim: PlanRequest | None = None,
        make_env: Callable[[str, int, int, bool], BatchEnv] = make_batch_env,
    ) -> None:
        given: Any = policy
        acting = given if hasattr(given, "sample_noise") or plans(given) else given()
        env_stream, noise_stream = np.random.SeedSequence([seed, worker, incarnation]).spawn(2)
        self._rng = np.random.Generator(np.random.PCG64(noise_stream))
        self._envs, self._steps = config.envs_per_worker, config.chunk_steps
        self._random_steps = random_steps
        self._env = make_env(env_id, self._envs, int(env_stream.generate_state(1)[0]), config.fast_envs)
        _check_policy(acting, self._env, env_id)
        self._actor = Actor(acting, backend=config.backend)
        if random_steps and not self._actor.stateless:
            raise ValueError(
                f"{random_steps} random steps with a policy that carries a plan through its episodes, expected 0: random "
                "warm-up steps cannot be combined with a policy that plans per episode; set worker.random_steps to 0"
            )
        if aim is not None:
            self._actor.policy.aim = aim
        self._recorder = Recorder(
            envs=self._envs,
            steps=self._steps,
            layout=RowLayout(obs_dim=self._env.obs_dim, action_dim=self._env.action_dim),
            worker=worker,
            incarnation=incarnation,
        )
        self._episodes = RunningEpisodes(
            self._actor, self._envs, [seed, worker, incarnation], self._recorder.add_metadata
        )
        self._longest = self._env.max_episode_steps or UNLIMITED_STEPS
        self._obs_EO = self._env.reset()
        self._recorder.start(self._obs_EO)
        self.env_steps = 0  # actions given to environments over this incarnation's life
        self._pending: dict[str, float] = {}  # stats for the next chunk to carry
        self._recorded = self._acknowledged = 0  # rows since this object was made
        self._dropped: Counter[str] = Counter()

    @property
    def policy_order(self) -> tuple[int, int]:
        """(generation, version) of the weights in use; (-1, -1) before the first."""
        return self._actor.order

    @property
    def needs_weights(self) -> bool:
        """Whether the next ``collect`` would ask a policy that has no weights yet."""
        return self._actor.weights is None and self._random_left() < self._steps

    def load_weights(self, weights: Weights) -> bool:
        """Takes newer weights and says whether they were; older ones are ignored. Raises CorruptWeights."""
        return self._actor.load(weights)

    def restart_episodes(self) -> int:
        """Ends the running episodes of a policy that plans, so that the next ones have plans of the weights at hand.

        Called between two chunks, after the shard made this worker wait for a stage of learning: running episodes follow
        plans of weights from before it. Their rows stay recorded and stored; the shard counts them as lost, and the next
        chunk counts them in ``unfinished_rows`` and ``unfinished_episodes``. Ours [C].

        Returns:
            how many episodes were ended; 0 for a policy without plans.
        """
        if not len(planned := self._episodes.planned):
            return 0
        self._obs_EO = self._env.force_reset(planned.tolist())
        self._end_unfinished(planned)
        return len(planned)

    def note_wait(self, seconds: float) -> None:
        """Counts time spent waiting for a shard, in the next chunk's ``push_wait_s``."""
        merge_stats(self._pending, {"push_wait_s": seconds})

    def note_stored(self, chunk: Chunk) -> None:
        """Counts the rows of a chunk that a shard confirmed as stored, in ``totals``."""
        self._acknowledged += len(chunk.rows_ND)

    def totals(self) -> RowTotals:
        """Rows since this worker was made, those of an unfinished chunk included. Any thread may call it."""
        return self._totals(self._recorded + self._recorder.unfinished_rows)

    def _totals(self, recorded: int) -> RowTotals:
        return RowTotals(recorded, self._acknowledged, tuple(dict(self._dropped).items()) if self._dropped else ())

    def note_rejected(self, chunk: Chunk, reason: str) -> None:
        """Counts the rows of a chunk that is dropped for good: in ``totals``, and in ``dropped_<reason>`` of the next chunk.

        ``reason`` is the shard's, "name: message"; the name is what counts. The refused chunk's own stats go with it
        again, because they were lost with the rows.
        """
        name = reason.split(":")[0]
        merge_stats(self._pending, chunk.stats)
        merge_stats(self._pending, {f"dropped_{name}": float(len(chunk.rows_ND))})
        self._dropped[name] += len(chunk.rows_ND)

    def note_corrupt_weights(self) -> None:
        """Counts a weights message that was damaged on the way, in the next chunk's ``corrupt_weights``."""
        merge_stats(self._pending, {"corrupt_weights": 1.0})

    def collect(self) -> Chunk:
        """T steps of all E environments with the weights at hand; at least one row.

        The chunk's stats are the recorder's and: ``random_rows``, ``env_s``, ``act_s``, ``record_s``, ``push_wait_s``,
        and ``corrupt_weights``, ``unfinished_rows`` and ``unfinished_episodes`` when there were any. With an EpisodePolicy
        also ``plan_s``, which ``act_s`` does not contain, and metadata_stats of the chunk's episodes.
        Raises NoWeights when the random steps are over and no weights have come, and FloatingPointError when
        the environments give nothing but NaN and infinity: for EMPTY_CHUNKS, or for as long as an episode may be left out.
        """
        most = empty = 0
        while empty <= most:
            with np.errstate(over="ignore", invalid="ignore"):  # the recorder rejects what is not finite
                chunk = self._collect()
            if len(chunk.rows_ND):
                return chunk
            merge_stats(self._pending, chunk.stats)
            empty += 1
            left_out = self._longest if chunk.stats[f"dropped_{REST_OF_EPISODE}"] else 0
            most = EMPTY_CHUNKS - 1 + -(-left_out // self._steps)
        reasons = {name: count for name, count in self._pending.items() if name.startswith("dropped_") and count}
        shown = ", ".join(f"{count:,.0f} {name.removeprefix('dropped_')}" for name, count in reasons.items())
        raise FloatingPointError(
            f"every row of {empty} chunks was refused ({empty * self._steps * self._envs:,} env steps: {shown}), "
            "expected finite observations and rewards: this worker has nothing to send and stops; check the environment"
        )

    def _collect(self) -> Chunk:
        if self.needs_weights:  # before the first step, so that the chunk can be begun again
            self._actor.require_weights()
        random = min(self._random_left(), self._steps)
        action_TEA = self._rng.uniform(-1.0, 1.0, (random, self._envs, self._env.action_dim)).astype(np.float32)
        self._actor.draw_noise(self._rng, self._steps - random)
        act, step, record, note = self._episodes.act, self._env.step, self._recorder.record, self._episodes.note
        obs_EO, act_s, env_s, record_s = self._obs_EO, 0.0, 0.0, 0.0
        now = perf_counter()
        for t in range(self._steps):
            action_EA = action_TEA[t] if t < random else act(obs_EO)
            acted = perf_counter()
            result = step(action_EA)
            stepped = perf_counter()
            progress.mark()
            refused = record(action_EA, result)
            obs_EO = result.obs_EO if refused is None else self._restart(refused)
            note(result, refused)
            recorded = perf_counter()
            act_s += acted - now
            env_s += stepped - acted
            record_s += recorded - stepped
            now = recorded
        self._obs_EO = obs_EO
        self.env_steps += self._steps * self._envs
        return self._take(random, {"act_s": act_s, "env_s": env_s, "record_s": record_s})

    def close(self) -> None:
        """Frees the environments."""
        self._env.close()

    def state(self) -> dict[str, np.ndarray]:
        """Everything that the next chunks depend on, the weights in use included. Random streams are JSON (uint8)."""
        weights = self._actor.weights
        return {
            "env_steps": np.array(self.env_steps, np.int64),
            "rng": _to_bytes(self._rng.bit_generator.state),
            **{_ENV + name: value for name, value in self._env.state().items()},
            **{_RECORDER + name: value for name, value in self._recorder.state().items()},
            **{_PLANS + name: value for name, value in self._episodes.state().items()},
            **({} if weights is None else {_WEIGHTS + name: value for name, value in _weights_state(weights).items()}),
        }

    def load_state(self, state: dict[str, np.ndarray]) -> dict[int, str]:
        """Takes what ``state`` gave to a worker of the same settings: the next chunks are bit-identical.

        Returns:
            The environments whose running episode ended here because replaying it did not lead to the saved observation,
            with the reason: their next rows are a new episode's. Empty for environments that follow from seed and actions.
        """
        missing = sorted({"env_steps", "rng"} - state.keys())
        if missing:
            raise ValueError(
                f"worker state has no {missing}, expected what RolloutWorker.state gives: nothing was restored; it is "
                "of another program or was damaged, use an older checkpoint"
            )
        self._recorder.load_state(_part(state, _RECORDER))
        self._obs_EO = self._env.load_state(_part(state, _ENV))
        self._rng.bit_generator.state = json.loads(state["rng"].tobytes())
        self.env_steps = int(state["env_steps"])
        weights = _part(state, _WEIGHTS)
        if weights:
            self._actor.replace(_weights_from_state(weights))
        self._episodes.load_state(_part(state, _PLANS))  # after the weights: running plans are of those they began with
        if self._env.not_replayed:
            self._end_unfinished(np.array(sorted(self._env.not_replayed)))
        return dict(self._env.not_replayed)

    def _end_unfinished(self, env_K: np.ndarray) -> None:
        """Records that the episodes of these environments, which were reset between two chunks, have no end."""
        rows = self._recorder.restart_episodes(env_K, self._obs_EO)
        self._episodes.restart(env_K)
        merge_stats(self._pending, {"unfinished_rows": float(rows), "unfinished_episodes": float(len(env_K))})

    def _random_left(self) -> int:
        """Steps of all E environments that are still to be made with random actions."""
        return max(0, -(-(self._random_steps - self.env_steps) // self._envs))

    def _restart(self, refused: np.ndarray) -> np.ndarray:
        obs_EO = self._env.force_reset(refused.tolist())
        self._recorder.restart(refused, obs_EO)
        return obs_EO

    def _take(self, random: int, timings: dict[str, float]) -> Chunk:
        generation, version = max(
            self.policy_order, (0, 0)
        )  # random actions before the first weights count as the first policy's
        chunk = self._recorder.take(generation=generation, version=version)
        self._recorded += int(chunk.stats["recorded_rows"])
        for name in REASONS:
            if refused := int(chunk.stats[f"dropped_{name}"]):
                self._dropped[name] += refused
        planned = self._episodes.take_stats(chunk.metadata)
        timings["act_s"] -= planned.get("plan_s", 0.0)
        made = {"random_rows": float(random * self._envs), "push_wait_s": 0.0}
        for stats in (timings, planned, made, self._pending):
            merge_stats(chunk.stats, stats)
        self._pending = {}
        return dataclasses.replace(chunk, totals=self._totals(self._recorded))


def _check_policy(policy: Policy | EpisodePolicy, env: BatchEnv, env_id: str) -> None:
    seen, expected = (policy.obs_dim, policy.action_dim), (env.obs_dim, env.action_dim)
    if seen != expected:
        raise ValueError(
            f"the policy has (obs_dim, action_dim) = {seen}, {env_id} has {expected}: it cannot act there; make the "
            "policy with the dimensions that env_spec gives for this environment"
        )


def _part(state: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _weights_state(weights: Weights) -> dict[str, np.ndarray]:
    counters = [weights.generation, weights.version, weights.env_steps, weights.updates]
    head = {"manifest": weights.manifest, "digest": weights.digest, "counters": counters}
    return {"flat": weights.flat, "head": _to_bytes(head)}


def _weights_from_state(state: dict[str, np.ndarray]) -> Weights:
    head = json.loads(state["head"].tobytes())
    generation, version, env_steps, updates = head["counters"]
    return Weights(
        flat=state["flat"],
        manifest=tuple((name, tuple(shape), offset) for name, shape, offset in head["manifest"]),
        digest=head["digest"],
        generation=generation,
        version=version,
        env_steps=env_steps,
        updates=updates,
    )


def _to_bytes(value: Any) -> np.ndarray:
    return np.frombuffer(json.dumps(value).encode(), np.uint8).copy()
