"""GAC for acting: a plan an episode by inference, then one cached generator step an action.

Source: "Generative Actor Critic", arXiv 2512.21527; the mean action and the window are the Latent Plan Transformer's, arXiv
2402.04647; plans made anew from where one is are ours. Letters: E environments, K of them, O observation dim, A action dim,
n plan tokens of width d, H steps of history.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from algorithms.gac.config import GACConfig
from algorithms.gac.generator import Memory
from algorithms.gac.inference import Inferred, Likelihood
from algorithms.gac.model import LEARNED_LATE, GACModel
from algorithms.gac.planner import Planner
from algorithms.gac.planning import MODES
from algorithms.gac.segments import History
from algorithms.gac.target import Trigger, band_edge, decode_nan
from algorithms.interface import PlanRequest
from algorithms.weights import load_weights, misfits
from replay.schema import EpisodeMetadata

EXPLORE = MODES.index("explore")
RUNAWAY = 2.5  # a search that promises this times as far above the mean as the best return has left the data (ours)
UNKEPT = 0.5  # so has one whose promises are missed by this share of the way from the mean to the best (ours)
EXPLAINED = 32  # newest steps whose likelihood Eq. 3 counts (ours)


class GACPolicy:
    """The contract is algorithms.interface.EpisodePolicy; float32, on the CPU.

    One environment's plan and actions are the same however many others run, up to the rounding of matrix products of
    another height (see ``infer_plan``); with the same number they are bit-identical. Environments may be at different steps
    of their episodes.

    Raises ValueError with every problem of ``config`` at once.
    """

    def __init__(self, config: GACConfig, obs_dim: int, action_dim: int) -> None:
        config.check()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        self.aim = PlanRequest()
        self.model = GACModel(config, obs_dim, action_dim).eval().requires_grad_(False)
        self.planner = Planner(config, self.model)
        self.inferred: Inferred | None = None  # what the last ``begin`` found, with the trace of its ascent
        self._weights = self.model.state_dict()
        self.reset(0)

    def load_weights(self, weights: dict[str, Any]) -> None:
        """Copies arrays or tensors named as in the model's state; ValueError on names or shapes that differ.

        Running episodes keep their plans: the keys and values computed from them stay.
        """
        load_weights(self._weights, weights)
        for name in LEARNED_LATE:
            self._weights[name].copy_(decode_nan(self._weights[name]))

    def promise_limit(self, kept: float) -> float | None:
        """The mean promise beyond which plans that return ``kept`` on average are not believed: RUNAWAY times as far above the data's
        mean as the best return known, or UNKEPT of that way above ``kept``, whichever is less; None where all returns are equal."""
        mean, above = float(self.model.return_mean), float(self.model.return_high - self.model.return_mean)
        return min(mean + RUNAWAY * above, kept + UNKEPT * above) if above > 0 else None

    def reset(self, num_envs: int) -> None:
        """Forgets everything and makes room for E environments."""
        config, model = self.config, self.model
        with torch.inference_mode():
            self._memory = model.memory(torch.zeros(num_envs, config.tokens, config.token_width))
            self._cache = model.new_cache(num_envs)
            self._time_E = torch.zeros(num_envs, dtype=torch.int64)
        self._trigger = Trigger(config, num_envs, self.obs_dim)
        explains = config.replan != "none" and config.replan_from == "start"
        self._history = History(num_envs, EXPLAINED if explains else 0, self.obs_dim, self.action_dim)
        self._noise = ActionNoise(num_envs, self.action_dim, config.explore_action_std)
        self._obs0_EO = np.zeros((num_envs, self.obs_dim), np.float32)
        self._target_E = np.full(num_envs, math.nan, np.float32)
        self._mode_E = np.zeros(num_envs, np.int64)  # index into MODES
        self._seed_E = np.zeros(num_envs, np.int64)  # of the draws of plans that are made again
        self._plans_E = np.zeros(num_envs, np.int64)  # made in this episode

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Plans for K episodes in one ascent; an EpisodeMetadata each. Contract: EpisodePolicy.begin.

        Raises:
            ValueError: a mode that is none, or needs a target that is neither given nor known.
        """
        mode, target = self.planner.asked(self.aim)
        self._calibrate()
        streams = rng.spawn(len(env_K))
        self._seed_E[env_K] = [stream.integers(2**63) for stream in streams]
        target_K = torch.full((len(env_K),), target)
        self.inferred, target_K = self.planner.plan(mode, target_K, _tensor(obs_KO), streams)
        self._mode_E[env_K], self._target_E[env_K], self._plans_E[env_K] = MODES.index(mode), target_K.numpy(), 1
        self._noise.begin(env_K, self._seed_E[env_K], self._mode_E[env_K] == EXPLORE)
        self._enter(env_K, obs_KO, self.inferred)
        numbers_K = zip(target_K.tolist(), self.inferred.predicted_K.tolist(), self.inferred.variance_K.tolist())
        return [EpisodeMetadata(-1, mode, *numbers) for numbers in numbers_K]

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """The generator's mean actions, disturbed where a plan explores; one token's work each.

        Contract: EpisodePolicy.act; the reward is not looked at.
        """
        if len(obs_EO) != len(self._mode_E):
            raise ValueError(
                f"act got observations of {len(obs_EO)} environments, expected {len(self._mode_E)}: plans and observations "
                "would not belong together; call reset with the number of environments, then begin"
            )
        if self.config.replan != "none":
            self._plan_again(obs_EO)
        with torch.inference_mode():
            action_EA, ahead_EO = self.model.step(self._memory, self._cache, _tensor(obs_EO), self._time_E)
            action = self._noise.disturbed(action_EA.numpy(), self._time_E.numpy())
            self.model.observe_action(self._cache, torch.from_numpy(action))
            if self.config.replan != "none":
                self._note(obs_EO, action, ahead_EO.numpy())
            self._time_E.add_(1)
        return action

    def state(self) -> dict[str, np.ndarray]:
        """Everything of the running episodes; the weights are not among it."""
        return {name: own.copy() for name, own in self._own().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, after the weights of then.

        Raises ValueError naming every missing, surplus or misshapen entry; all episodes are then forgotten.
        """
        self.reset(len(state.get("time", ())))
        own = self._own()
        if problems := misfits(own, state):
            raise ValueError(
                f"this state does not fit the policy: {'; '.join(problems)}. No episode can go on; build the policy with the "
                "configuration and dimensions of the one that gave the state"
            )
        for name, view in own.items():
            np.copyto(view, state[name])
        self._noise.restore(self._seed_E, self._mode_E == EXPLORE, self._time_E.numpy())
        self._calibrate()

    def _enter(self, env_K: np.ndarray, obs_KO: np.ndarray, made: Inferred) -> None:
        """Episodes start, or start over, in ``env_K``: plans in force, clocks at 0."""
        with torch.inference_mode():
            self._memory.put(torch.from_numpy(env_K), self.read(made.z_Knd, env_K, obs_KO))
            self._time_E[torch.from_numpy(env_K)] = 0
        self._obs0_EO[env_K] = obs_KO
        self._trigger.begin(env_K)

    def read(self, z_Knd: torch.Tensor, env_K: np.ndarray, obs_KO: np.ndarray) -> Memory:
        """What the generator reads of plans that begin in ``env_K``."""
        return self.model.memory(z_Knd)

    def _plan_again(self, obs_EO: np.ndarray) -> None:
        fired_K = self._trigger.fired(self._normalised(obs_EO))
        for mode in np.unique(self._mode_E[fired_K]):
            self._replan(MODES[mode], fired_K[self._mode_E[fired_K] == mode], obs_EO)

    def _replan(self, mode: str, env_K: np.ndarray, obs_EO: np.ndarray) -> None:
        """The same mode and target again: from here, or from the start given the steps so far (Eq. 3)."""
        seeds = zip(self._seed_E[env_K], self._plans_E[env_K])
        streams = [np.random.default_rng([int(seed), int(count)]) for seed, count in seeds]
        self._plans_E[env_K] += 1
        target_K = torch.from_numpy(self._target_E[env_K])
        if self.config.replan_from == "here":
            made, _ = self.planner.plan(mode, target_K, _tensor(obs_EO[env_K]), streams)
            self._enter(env_K, obs_EO[env_K], made)
            return
        made, _ = self.planner.plan(mode, target_K, _tensor(self._obs0_EO[env_K]), streams, self._explains(env_K))
        with torch.inference_mode():
            self._memory.put(torch.from_numpy(env_K), self.model.memory(made.z_Knd))
        self._trigger.begin(env_K)

    def _explains(self, env_K: np.ndarray) -> Likelihood:
        """z -> log p_beta(tau_<=t | z) of the newest H steps."""
        steps = self._history.newest(env_K, self._time_E.numpy()[env_K])
        return lambda z_Knd: self.model.log_prob_trajectory(z_Knd, *steps)

    def _note(self, obs_EO: np.ndarray, action_EA: np.ndarray, ahead_EO: np.ndarray) -> None:
        self._trigger.step(self._normalised(obs_EO) + ahead_EO if self._trigger.watches else None)
        if self._history.steps:
            self._history.append(self._time_E.numpy(), obs_EO, action_EA)

    def _calibrate(self) -> None:
        if self._trigger.watches:
            self._trigger.edge = band_edge(self._weights["surprise"].numpy())
            self._trigger.precision_O = torch.exp(-self.model.next_log_variance()).numpy()

    def _normalised(self, obs_EO: np.ndarray) -> np.ndarray:
        return (obs_EO - self._weights["obs_mean_O"].numpy()) / self._weights["obs_std_O"].numpy()

    def _own(self) -> dict[str, np.ndarray]:
        """Everything that belongs to running episodes, by name, as views."""
        cache, trigger = self._cache, self._trigger
        named = {f"memory.{name}": part.numpy() for name, part in zip(self._memory._fields, self._memory)}
        named |= {"cache.key": cache.key_LEJHc.numpy(), "cache.value": cache.value_LEJHc.numpy()}
        named |= {"cache.action": cache.action_EA.numpy(), "time": self._time_E.numpy()}
        named |= {"trigger.since": trigger.since_E, "trigger.expected": trigger.expected_EO}
        named |= {
            "obs0": self._obs0_EO,
            "target": self._target_E,
            "mode": self._mode_E,
            "seed": self._seed_E,
            "plans": self._plans_E,
        }
        return named | {"history.obs": self._history.obs_EHO, "history.action": self._history.action_EHA}


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


BLOCK = 64  # steps drawn at once


class ActionNoise:
    """White Gaussian noise of a deviation of each episode's own, uniform from 0 to ``most``.

    Everything follows from an episode's seed and time, so that a state needs nothing of it.
    """

    def __init__(self, num_envs: int, action_dim: int, most: float) -> None:
        self._most = most
        self._seed_E = np.zeros(num_envs, np.int64)
        self._deviation_E = np.zeros(num_envs, np.float32)
        self._block_ESA = np.zeros((num_envs, BLOCK, action_dim), np.float32)
        self._env_E = np.arange(num_envs)

    def begin(self, env_K: np.ndarray, seed_K: np.ndarray, noisy_K: np.ndarray) -> None:
        """Episodes start in ``env_K``; ``noisy_K`` (bool): which of them are disturbed."""
        self._seed_E[env_K] = seed_K
        share_K = [np.random.default_rng([seed]).uniform() if noisy else 0.0 for seed, noisy in zip(seed_K, noisy_K)]
        self._deviation_E[env_K] = self._most * np.array(share_K, np.float32)

    def restore(self, seed_E: np.ndarray, noisy_E: np.ndarray, time_E: np.ndarray) -> None:
        """Goes on with all episodes at ``time_E`` (int64)."""
        self.begin(self._env_E, seed_E, noisy_E)
        self._draw(np.flatnonzero(self._deviation_E), time_E)

    def disturbed(self, action_EA: np.ndarray, time_E: np.ndarray) -> np.ndarray:
        """The actions of the steps at ``time_E`` with their noise, in [-1, 1]; the same array where none is disturbed."""
        noisy_E = self._deviation_E > 0
        if not noisy_E.any():
            return action_EA
        self._draw(np.flatnonzero(noisy_E & (time_E % BLOCK == 0)), time_E)
        return np.clip(action_EA + self._block_ESA[self._env_E, time_E % BLOCK], -1.0, 1.0)

    def _draw(self, env_K: np.ndarray, time_E: np.ndarray) -> None:
        for e in env_K.tolist():
            rng = np.random.default_rng([int(self._seed_E[e]), int(time_E[e]) // BLOCK, 1])
            self._block_ESA[e] = rng.normal(0.0, self._deviation_E[e], self._block_ESA.shape[1:])
