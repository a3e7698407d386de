"""From what a user asks for to plans: the mode's default target, its settlement, and exploration's floor.

Source: "Generative Actor Critic", arXiv 2512.21527 (modes of its author's log); the floor and the settlement are ours.
Letters: K environments, O observation dim, n plan tokens of width d.
"""

from __future__ import annotations

import math
import warnings

import numpy as np
import torch

from algorithms.gac.config import GACConfig
from algorithms.gac.inference import Inferred, Likelihood, draw_noise, infer_plan, noise_draws
from algorithms.gac.losses import mode_weights
from algorithms.gac.model import GACModel
from algorithms.gac.target import settle_target
from algorithms.interface import PlanRequest, PlanRequestError

EXPLOITATION = ("kl", "st")  # the modes up to whose better prediction exploring plans ask (ours)
BEYOND = 2.0  # times as far above the dataset's mean as its best return: what st asks for where promises go on beyond that (ours)


class Planner:
    """A model, asked for plans by name. An odd target causes one warning."""

    def __init__(self, config: GACConfig, model: GACModel) -> None:
        self.config, self.model = config, model
        self._told = ""

    def asked(self, aim: PlanRequest) -> tuple[str, float]:
        """The mode and the target return of an aim, in environment units; NaN where the mode asks for none.

        Raises:
            PlanRequestError: a target that is not finite, none where the mode needs one and has no default, or one where it asks for none.
            ValueError: an unknown mode.
        """
        mode = aim.mode or self.config.infer_mode
        if not mode_weights(self.config, mode).targeted:
            if aim.target_return is not None:
                raise PlanRequestError(
                    f"mode {mode} was given the target return {aim.target_return:g}, expected none: it asks for no return and would "
                    "not heed it; take mode st, or leave the target out"
                )
            return mode, math.nan
        wanted = self._default(mode) if aim.target_return is None else aim.target_return
        if aim.target_return is None and math.isnan(wanted):
            raise PlanRequestError(
                f"mode {mode} needs a target return and none was given, nor is there a default: nothing can be planned for; "
                "give one in the environment's own units"
                ", or train until the data's returns are known"
            )
        if mode == "explore":  # beyond the data on purpose: delta_y bounds it
            return mode, settle_target(wanted, math.nan, math.nan)[0]
        if aim.target_return is None:
            return mode, wanted
        target, message = settle_target(wanted, *self._seen())
        if message and message != self._told:
            warnings.warn(message, stacklevel=3)
            self._told = message
        return mode, target

    def plan(
        self,
        mode: str,
        target_K: torch.Tensor,
        obs_KO: torch.Tensor,
        streams: list[np.random.Generator],
        likelihood: Likelihood | None = None,
    ) -> tuple[Inferred, torch.Tensor]:
        """Plans of K environments, each from its own stream, and the targets (K,) they were made for.

        Exploring, each asks for a return of its own, from y+ to ``explore_reach`` times as far above it as the better of two
        exploitations predicts from its start, near ones more often than far ones: which promise is kept is known only when it was
        tried.
        """
        if mode == "explore" and self.config.explore_reach:
            assert target_K is not None
            best_K = torch.full_like(target_K, self._default("st"))
            found = [self._infer(name, best_K, obs_KO, streams, likelihood).predicted_K for name in EXPLOITATION]
            exploited_K = torch.stack(found).amax(0)
            share_K = torch.tensor([rng.uniform() for rng in streams], dtype=torch.float32)
            further_K = (1.0 + self.config.explore_reach) ** share_K - 1.0
            target_K = target_K + further_K * (exploited_K - target_K).clamp(min=0.0)
        return self._infer(mode, target_K, obs_KO, streams, likelihood), target_K

    def _infer(
        self,
        mode: str,
        target_K: torch.Tensor | None,
        obs_KO: torch.Tensor,
        streams: list[np.random.Generator],
        likelihood: Likelihood | None,
    ) -> Inferred:
        config = self.config
        draws = noise_draws(mode_weights(config, mode))
        noise_DKnd = draw_noise(streams, draws, config.tokens, config.token_width)
        return infer_plan(self.model, obs_KO, mode, target_K, config, noise_DKnd, likelihood=likelihood)

    def _default(self, mode: str) -> float:
        if mode == "explore":
            return float(self.model.explore_target)
        model, mean = self.model, float(self.model.return_mean)
        reach = BEYOND if model.extrapolates else 1.0
        return max(mean + reach * (float(model.data_high) - mean), float(model.return_high))

    def _seen(self) -> tuple[float, float]:
        return float(self.model.return_low), float(self.model.return_high)
