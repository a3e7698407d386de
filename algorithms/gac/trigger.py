"""When a running plan is made again: never, on a schedule, or when its own predictions fail.

The paper names the manual trigger of replanning as open ("Generative Actor Critic", arXiv 2512.21527). The trigger here is
ours: each step the generator says where the environment will be h steps on; the error of what it said h steps ago is held
against the distribution that the same error has on the data. Predictions of two steps in a row share all but one step of
their way, so their errors are nearly the same, whether the plan is followed well or badly; a push is a jump from one to the
other. Hence ``replan_signal=jump`` (default): a plan that the data would not have made drifts off slowly and often, and as a
level that alone looks like one surprise after another. Letters: E environments, K of them, O observation dim,
h horizon of the prediction.
"""

from __future__ import annotations

import numpy as np

from algorithms.gac.planning import PlanningConfig


def surprise(error_NO: np.ndarray, precision_O: np.ndarray) -> np.ndarray:
    """Mean over O of squared errors of z-scored observations, each by its own precision, (N,) float32."""
    return (np.square(error_NO) * precision_O).mean(-1, dtype=np.float32)


def band_edge(config: PlanningConfig, quantiles: np.ndarray) -> float:
    """The error above which a step is outside the band; ``quantiles`` (101,): percentiles of the errors on the data.

    Raises ValueError while the model has not been calibrated: no error would be a surprise and none expected.
    """
    if not np.isfinite(quantiles).all():
        raise ValueError(
            "replan=surprise needs a calibrated model, and this one's surprise quantiles are unknown: nothing could be "
            "told from the ordinary; train it (or replan=scheduled, replan=none)"
        )
    return float(quantiles[config.replan_quantile] * config.replan_margin)


class Trigger:
    """Watches E environments, each at its own step; ``fired`` says whose plan is to be made again now.

    ``edge`` and ``precision_O`` are the model's and set by who has it.
    """

    def __init__(self, config: PlanningConfig, num_envs: int, obs_dim: int, horizon: int) -> None:
        self.config, self.horizon, self.edge = config, horizon, np.inf
        self.precision_O = np.ones(obs_dim, np.float32)  # of the predictions, one over their variance
        self.since_E = np.zeros(num_envs, np.int64)  # steps since the plan in force was made
        self.outside_E = np.zeros(num_envs, np.int64)  # steps in a row outside the band
        self.expected_EhO = np.zeros((num_envs, horizon, obs_dim), np.float32)  # ring: what was said about since % h
        self.error_EO = np.zeros((num_envs, obs_dim), np.float32)  # of the last step
        self._env_E = np.arange(num_envs)

    @property
    def watches(self) -> bool:
        """Whether predictions are needed."""
        return self.config.replan == "surprise"

    def begin(self, env_K: np.ndarray) -> None:
        """A new plan is in force in ``env_K``: what was expected under the old one counts no more."""
        self.since_E[env_K] = 0
        self.outside_E[env_K] = 0

    def fired(self, obs_EO: np.ndarray) -> np.ndarray:
        """The environments (K,) int64 to plan again, given the normalised observations of now.

        To be called once a step, before ``step``.
        """
        if self.config.replan == "scheduled":
            return np.flatnonzero(self.since_E >= self.config.replan_every)
        if not self.watches:
            return self._env_E[:0]
        error_EO = self.expected_EhO[self._env_E, self.since_E % self.horizon] - obs_EO
        jumps = self.config.replan_signal == "jump" and self.horizon > 1
        seen_EO, ripe = (error_EO - self.error_EO, self.horizon + 1) if jumps else (error_EO, self.horizon)
        self.error_EO[:] = error_EO
        outside_E = (surprise(seen_EO, self.precision_O) > self.edge) & (self.since_E >= ripe)
        self.outside_E[:] = np.where(outside_E, self.outside_E + 1, 0)
        ripe_E = (self.outside_E >= self.config.replan_patience) & (self.since_E >= self.config.replan_rest)
        return np.flatnonzero(ripe_E)

    def step(self, expected_EO: np.ndarray | None) -> None:
        """One step is taken; ``expected_EO`` is what the plans say of the normalised observation h steps from now."""
        if self.watches and expected_EO is not None:
            self.expected_EhO[self._env_E, self.since_E % self.horizon] = expected_EO
        self.since_E += 1
