"""Groups of whole episodes, run side by side to their ends and kept.

Letters: E environments (one an episode), O observation dim, A action dim.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from replay.stored_episode import StoredEpisode
from rollout_workers.env import BatchEnv, EnvError, find_env
from rollout_workers.envs import make_batch_env

SIDE_BY_SIDE = 64

Act = Callable[[np.ndarray], np.ndarray]  # observations float32 (E, O) to actions float32 (E, A) in [-1, 1]
Begin = Callable[[range], Act]  # the episodes with these numbers begin


class EpisodeRuns:
    """Runs groups of episodes in one kind of environment, which is made once for groups of one size.

    EnvError for an environment without a time limit.
    """

    def __init__(self, env_id: str, fast: bool = True) -> None:
        self._env_id, self._fast = env_id, fast
        self._env: BatchEnv | None = None
        if find_env(env_id).max_episode_steps is None:
            raise EnvError(
                f"{env_id} has no time limit, expected one: an episode might never end, so none was begun; register the "
                "environment with max_episode_steps"
            )

    def run(self, seeds: list[int], act: Act) -> list[StoredEpisode | None]:
        """One episode from each seed, in their order (``index`` is 0); None for one that met a NaN or an infinity."""
        env = self._open(len(seeds))
        obs_EO = env.reset(seeds)
        steps: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        found: list[StoredEpisode | None] = [None] * len(seeds)
        running_E = np.isfinite(obs_EO).all(axis=1)
        while running_E.any():
            action_EA = act(np.nan_to_num(obs_EO, nan=0.0, posinf=0.0, neginf=0.0))
            step = env.step(action_EA)
            steps.append((obs_EO, action_EA, step.reward_E))
            broken_E = ~(np.isfinite(step.next_obs_EO).all(axis=1) & np.isfinite(step.reward_E))
            ended_E = running_E & ~broken_E & (step.terminated_E | step.truncated_E)
            running_E &= ~(broken_E | ended_E)
            for e in np.flatnonzero(ended_E).tolist():
                found[e] = StoredEpisode(
                    index=0,
                    obs_TO=np.stack([obs[e] for obs, _, _ in steps]),
                    action_TA=np.stack([action[e] for _, action, _ in steps]),
                    reward_T=np.array([reward[e] for _, _, reward in steps], np.float64),
                    terminated=bool(step.terminated_E[e]),
                    truncated=bool(step.truncated_E[e]),
                    next_obs_O=step.next_obs_EO[e].copy(),
                )
            obs_EO = step.obs_EO
        return found

    def mean_return(self, begin: Begin, seed: int, episodes: int) -> float:
        """Mean undiscounted return over the episodes from seed, seed + 1, ...; those that broke are left out."""
        returns: list[float] = []
        try:
            for first in range(0, episodes, SIDE_BY_SIDE):
                numbers = range(first, min(first + SIDE_BY_SIDE, episodes))
                group = self.run([seed + i for i in numbers], begin(numbers))
                returns += [float(episode.reward_T.sum()) for episode in group if episode is not None]
        finally:
            self.close()
        if not returns:
            raise EnvError(
                f"none of {episodes} episodes of {self._env_id} ended without a NaN or an infinity, expected one: there "
                "is no mean return; look at the environment and at who acts in it"
            )
        return float(np.mean(returns))

    def close(self) -> None:
        """Frees the environments."""
        if self._env is not None:
            self._env.close()
            self._env = None

    def _open(self, num_envs: int) -> BatchEnv:
        if self._env is None or self._env.num_envs != num_envs:
            self.close()
            self._env = make_batch_env(self._env_id, num_envs, 0, self._fast)
        return self._env
