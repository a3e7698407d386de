"""GAC's model p(tau, y, z | s_0) = p_alpha(z | s_0) p_beta(tau | z) p_gamma(y | z), and the data's scales.

Letters: B trajectories, S steps, n tokens, d their width, E environments, O, A. Source: arXiv 2512.21527 [P]; tags as
in config.py. The posterior and every KL live in z0 space, where the prior is N(0, I): z = plan(z0, s_0).
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import nn

from algorithms.fourier import append_fourier, fourier_dims, octaves
from algorithms.gac.config import GACConfig
from algorithms.gac.generator import Cache, Generated, Generator, Memory, perceptron
from algorithms.gac.losses import gaussian_log_prob
from algorithms.gac.prior import PRIORS
from algorithms.gac.segments import Rows
from replay.schema import DataSummary

LEAST_LOG_STD = -3.0  # of actions and displacements: densities stay bounded where the data is deterministic
PERCENTILES = 101
RETURN_WIDTH = 100  # hidden units of the return head [LPT]
LOG_VARIANCE_RANGE = (-6.0, 3.0)  # of a learned return variance

LEARNED_LATE = ("explore_target", "surprise")  # buffers that are NaN before they are known


class GACModel(nn.Module):
    """The three conditionals as differentiable functions of z, on observations and returns in environment units.

    Float32 in and out. Buffers, 0-d where no letter says more: obs_mean_O, obs_std_O; return_mean, return_std, return_low,
    data_high of the dataset's returns; return_high, the highest of all episodes; return_spread, deviation of the returns that are
    learned from now, in return_std; horizon, steps of the longest episode in the data; explore_target (environment units) and
    surprise (101, percentiles of ``prediction_errors``), NaN before they are known.
    """

    obs_mean_O: torch.Tensor
    obs_std_O: torch.Tensor
    return_mean: torch.Tensor
    return_std: torch.Tensor
    return_low: torch.Tensor
    return_high: torch.Tensor
    data_high: torch.Tensor
    return_spread: torch.Tensor
    horizon: torch.Tensor
    explore_target: torch.Tensor
    surprise: torch.Tensor
    frequencies: torch.Tensor

    def __init__(self, config: GACConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        config.check()
        self.config, self.obs_dim, self.action_dim = config, obs_dim, action_dim
        for name, value in (("obs_mean_O", torch.zeros(obs_dim)), ("obs_std_O", torch.ones(obs_dim))):
            self.register_buffer(name, value)
        for name, number in (
            ("return_mean", 0.0),
            ("return_std", 1.0),
            ("return_low", -1.0),
            ("return_high", 1.0),
            ("data_high", 1.0),
            ("return_spread", 1.0),
            ("horizon", 1.0),
        ):
            self.register_buffer(name, torch.tensor(number))
        self.register_buffer("explore_target", torch.tensor(math.nan))
        self.register_buffer("surprise", torch.full((PERCENTILES,), math.nan))
        leading = fourier_dims(config.obs_fourier, config.obs_fourier_dims, obs_dim)
        features = obs_dim + 2 * config.obs_fourier * leading
        self.register_buffer("frequencies", octaves(config.obs_fourier), persistent=False)
        self.prior = None if config.prior == "standard" else PRIORS[config.prior](config, obs_dim)
        outputs = 1 if config.return_variance else 2
        inputs = config.return_count * config.token_width
        self.return_head = perceptron(inputs, RETURN_WIDTH, outputs, config.return_layers)
        self.leading, self.features = leading, features
        self.generator = Generator(config, features, obs_dim, action_dim)
        if not config.action_std:
            self.action_log_std_A = nn.Parameter(torch.full((action_dim,), -0.7))
        self.next_log_std_O = nn.Parameter(torch.zeros(obs_dim))

    @torch.no_grad()
    def fit(self, summary: DataSummary) -> None:
        """Takes the data's means, deviations and ranges into the buffers."""
        self.obs_mean_O.copy_(torch.as_tensor(summary.obs_mean_O))
        self.obs_std_O.copy_(torch.as_tensor(summary.obs_std_O))
        self.return_mean.fill_(summary.return_mean)
        self.return_std.fill_(summary.return_std)
        self.return_spread.fill_(1.0)
        self.return_low.fill_(summary.return_min)
        self.return_high.fill_(summary.return_max)
        self.data_high.fill_(summary.return_max)
        self.horizon.fill_(float(summary.max_length))

    @property
    def extrapolates(self) -> bool:
        """Whether promises go on beyond the dataset's best return: straight lines do, what attention does there nobody has learned."""
        return self.config.plan_reading == "linear"

    def region(self) -> contextlib.AbstractContextManager[object]:
        """bf16 autocast where the configuration asks for it and the parameters are on a GPU; nothing elsewhere."""
        if self.config.autocast and self.obs_mean_O.is_cuda:
            return torch.autocast("cuda", dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def normalise_obs(self, obs: torch.Tensor) -> torch.Tensor:
        """(..., O) in environment units to z-scores of the data."""
        return (obs - self.obs_mean_O) / self.obs_std_O

    def normalise_return(self, y: torch.Tensor) -> torch.Tensor:
        """Returns in environment units to z-scores of the data."""
        return (y - self.return_mean) / self.return_std

    def denormalise_return(self, mean: torch.Tensor, variance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of a return from z-scores to environment units."""
        return mean * self.return_std + self.return_mean, variance * self.return_std.square()

    def best_known(self) -> torch.Tensor:
        """Z-score (0-d) of the best return of dataset and stages, beyond which no promise counts [C]; infinite where promises go
        on beyond the dataset and no stage has gathered more than it."""
        known = (self.return_high > self.data_high) | (not self.extrapolates)
        return torch.where(known, self.normalise_return(self.return_high), math.inf)

    def return_unit(self) -> torch.Tensor:
        """What a search counts returns in (0-d, of z-scores): how far the best known is above the dataset's mean, at least a
        deviation of the returns learned from; that deviation where promises go on beyond the dataset [C]."""
        return self.return_spread if self.extrapolates else self.best_known().maximum(self.return_spread)

    def featurise(self, obs: torch.Tensor) -> torch.Tensor:
        """Features (..., X) of observations in environment units: z-scores, and Fourier features of the leading coordinates [C]."""
        return append_fourier(self.normalise_obs(obs), obs, self.leading, self.frequencies)

    def plan(self, z0_Bnd: torch.Tensor, obs0_BO: torch.Tensor) -> torch.Tensor:
        """z (B, n, d) = T_alpha(z0, s_0) of prior.py [P, L]; obs0_BO in environment units.

        The prior sees no Fourier features: a dataset has one s_0 an episode, and it memorises them [C].
        """
        if self.prior is None:
            return z0_Bnd
        with self.region():
            return self.prior(z0_Bnd, self.normalise_obs(obs0_BO))

    def predict_return(self, z_Bnd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance (B,) of the z-scored return p_gamma(y | z).

        A fixed variance is one of the returns that are learned from now: it grows with their spread.
        """
        with self.region():
            out_Bo = self.return_head(z_Bnd[:, : self.config.return_count].flatten(1)).float()
        mean_B = out_Bo[:, 0]
        if not self.config.return_variance:
            return mean_B, out_Bo[:, 1].clamp(*LOG_VARIANCE_RANGE)
        log_variance_B = torch.full_like(mean_B, math.log(self.config.return_variance))
        return mean_B, log_variance_B + 2 * self.return_spread.log()

    def memory(self, z_Bnd: torch.Tensor, hidden_B: torch.Tensor | None = None) -> Memory:
        """What the generator reads of the plans, computed once a plan.

        With linear reading that is also the return that a plan promises, without gradient: actions are explained by what
        the return head says of a plan, and never bend what it says. ``hidden_B`` (bool) with linear reading: of these
        plans the promise is read and nothing else.
        """
        with self.region():
            promised_B = self.predict_return(z_Bnd)[0].detach() if self.generator.linear else None
            if hidden_B is not None:
                z_Bnd = torch.where(hidden_B[:, None, None], 0.0, z_Bnd)
            return self.generator.memory(z_Bnd[:, self.config.return_tokens :], promised_B)

    def generate(
        self,
        memory: Memory,
        obs_BSO: torch.Tensor,
        action_BSA: torch.Tensor,
        padding_BS: torch.Tensor | None = None,
    ) -> Generated:
        """Teacher-forced means of actions and displacements, from a causal window of consecutive steps.

        Args:
            memory: of the B plans.
            obs_BSO: in environment units.
            action_BSA: the actions taken; a step's own is not seen by its outputs.
            padding_BS: bool, True where there is no step; None: all are real.
        """
        with self.region():
            made = self.generator.fold(memory, self.featurise(obs_BSO), action_BSA, Rows(padding_RS=padding_BS))
        return Generated(made.action_BSA.float(), made.next_obs_BSO.float())

    def generate_rows(self, memory: Memory, obs_RSO: torch.Tensor, action_RSA: torch.Tensor, rows: Rows) -> Generated:
        """``generate`` for rows that belong together as ``rows`` says."""
        with self.region():
            made = self.generator(memory, self.featurise(obs_RSO), action_RSA, rows)
        return Generated(made.action_BSA.float(), made.next_obs_BSO.float())

    def new_cache(self, envs: int) -> Cache:
        """For ``step`` in ``envs`` environments; an episode that begins anew, at time 0, needs no clearing."""
        return Cache(self.config, envs, self.action_dim, self.obs_mean_O)

    def step(
        self, memory: Memory, cache: Cache, obs_EO: torch.Tensor, time_E: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean actions (E, A) and displacements (E, O), equal to ``generate`` on the whole episode to rounding.

        Args:
            memory: of the E plans.
            cache: of ``new_cache``; changed in place. Call ``observe_action`` between two steps.
            obs_EO: in environment units.
            time_E: int64, 0 at an episode's first step, one more with each call.
        """
        with self.region():
            made = self.generator.step(memory, cache, self.featurise(obs_EO), time_E)
        return made.action_BSA[:, 0].float(), made.next_obs_BSO[:, 0].float()

    def observe_action(self, cache: Cache, action_EA: torch.Tensor) -> None:
        """Stores the action in the cache; it becomes a token together with the next state."""
        cache.action_EA.copy_(action_EA)

    def action_log_variance(self) -> torch.Tensor:
        """(A,), or (1,) where the deviation is fixed."""
        if self.config.action_std:
            return self.obs_mean_O.new_full((1,), 2 * math.log(self.config.action_std))
        return 2 * self.action_log_std_A.clamp(min=LEAST_LOG_STD)

    def next_log_variance(self) -> torch.Tensor:
        """(O,) of the displacement in data deviations."""
        return 2 * self.next_log_std_O.clamp(min=LEAST_LOG_STD)

    def displacement(self, obs: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """What the next-state head predicts: (later - obs) in data deviations, (..., O)."""
        return (later - obs) / self.obs_std_O

    def prediction_errors(self, predicted: torch.Tensor, obs: torch.Tensor, later: torch.Tensor) -> torch.Tensor:
        """How far a displacement lies from its prediction (...): mean over O of the squared standardised error.

        ``later`` is the observation after ``obs``, both in environment units.
        """
        error = self.displacement(obs, later) - predicted
        return (error.square() * (-self.next_log_variance()).exp()).mean(-1)

    def log_prob_trajectory(
        self,
        z_Bnd: torch.Tensor,
        obs_BSO: torch.Tensor,
        action_BSA: torch.Tensor,
        padding_BS: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """log p_beta(tau | z) (B,) of consecutive steps: actions, and displacements within them by their weight."""
        made = self.generate(self.memory(z_Bnd), obs_BSO, action_BSA, padding_BS)
        real_BS = obs_BSO.new_ones(obs_BSO.shape[:2]) if padding_BS is None else (~padding_BS).float()
        total_BS = gaussian_log_prob(action_BSA, made.action_BSA, self.action_log_variance()).sum(-1) * real_BS
        if not self.config.next_state_weight:
            return total_BS.sum(1)
        moved = self.displacement(obs_BSO[:, :-1], obs_BSO[:, 1:])
        log_prob = gaussian_log_prob(moved, made.next_obs_BSO[:, :-1], self.next_log_variance()).sum(-1)
        return total_BS.sum(1) + self.config.next_state_weight * (log_prob * real_BS[:, 1:]).sum(1)
