"""Behaviour cloning, of all episodes or of the best: the policy that answers an observation as the data did.

Letters: B episodes, P points of each, E environments, O, A.
The loss is the mean squared error (a Gaussian of fixed variance), so where the data does several things the policy
does their mean. %BC (Chen et al., 2021, section 5.1) imitates the episodes whose return reaches a percentile.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch

from algorithms import runtime
from algorithms.fourier import features, featurise
from algorithms.imitation.agent import ImitationAgent, ImitationPolicy, draw_points
from algorithms.imitation.config import CloningConfig
from algorithms.interface import AgentSpec, PlanRequest, PlanRequestError
from algorithms.trainer import Loss, lecun_normal
from replay.schema import DataSummary, EpisodeMetadata, Trajectories

NOWHERE = float("nan")


class BehaviourCloning(ImitationAgent):
    """The learner of bc and, with ``percent`` under 100, of percent-bc; contract: algorithms.interface.EpisodeAgent.

    An episode below the threshold keeps its P points in the batch, with weight 0, and the error's mean is over the points
    that have weight. So the shape of an update never depends on the data and learners of any number compute the same;
    about ``percent`` of a batch's B P points count (metric ``imitated``). Episodes that tie with the threshold all count.

    Raises ValueError with every problem of ``config`` at once.
    """

    def __init__(self, config: CloningConfig, spec: AgentSpec) -> None:
        config.check()
        self.config = config
        data = _no_data(spec.obs_dim) | {"least_return": torch.full((), -torch.finfo(torch.float32).max)}
        super().__init__(config, spec, _initial(config, spec.obs_dim, spec.action_dim, spec.seed), data)

    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        if self.config.percent == 100:
            return {}  # episodes that come later and are worse than all of the dataset count too
        quantiles = summary.return_quantiles
        least = np.interp(100 - self.config.percent, np.linspace(0, 100, len(quantiles)), quantiles)
        # Returns arrive rounded to float32: the last episode above the threshold must not fall under it.
        return {"least_return": least - 1e-6 * max(abs(summary.return_min), abs(summary.return_max))}

    def losses(self, batch: Trajectories) -> Loss:
        """sum_bp w_b (1/A) |pi(s_bp) - a_bp|^2 over sum_bp w_b; w_b is 1 for an episode to imitate, else 0."""
        points = draw_points(batch, self.uniform(len(batch), self.config.points), self.obs_dim, self.action_dim)
        weight_B = (batch.return_B >= self.data["least_return"]).float()
        weight_BP = weight_B[:, None].expand(-1, self.config.points)
        obs_RO = points.obs_BPO.flatten(0, 1)
        predicted_RA = cloned(obs_RO, self.parameters.named, self.data, self.config, self.obs_dim)
        total = action_error(predicted_RA, points.action_BPA.flatten(0, 1), weight_BP.flatten())
        return Loss(total, weight=weight_BP.sum(), shared=(weight_BP.sum() / weight_BP.numel(),))


class PercentCloning(BehaviourCloning):
    """Behaviour cloning under the name that its ``PercentCloningConfig`` goes by."""


class CloningPolicy(ImitationPolicy[CloningConfig]):
    """A cloned policy for acting; contract: algorithms.interface.EpisodePolicy. It carries nothing through an episode.

    Actions of one environment are the same beside any number of others up to float32 rounding of matrix products.
    """

    def __init__(self, config: CloningConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self._weights = _initial(config, obs_dim, action_dim, 0) | _no_data(obs_dim) | {"least_return": torch.zeros(())}

    def reset(self, num_envs: int) -> None:
        """Nothing to forget."""

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Metadata without a target; raises PlanRequestError if one, or a mode, is requested."""
        if self.aim != PlanRequest():
            raise PlanRequestError(
                f"behaviour cloning was asked for {_in_words(self.aim)}, expected neither a mode nor a target: it repeats what the "
                "data does and can aim at nothing; drop them, or take dt or gac"
            )
        return [
            EpisodeMetadata(episode=-1, mode="", target=NOWHERE, predicted=NOWHERE, variance=NOWHERE) for _ in env_K
        ]

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions (E, A), float32, in [-1, 1]; the mean of what the data does."""
        with torch.inference_mode(), runtime.library(self._matmul):
            return self.act_on(torch.from_numpy(np.asarray(obs_EO, np.float32))).numpy()

    def act_on(self, obs_BO: torch.Tensor) -> torch.Tensor:
        """Actions (B, A) of the same function in torch alone."""
        return cloned(obs_BO, self._weights, self._weights, self.config, self.obs_dim)

    def onnx_model(self) -> bytes:
        """The serialised graph of ``act_on``; inputs ``obs`` and the weights."""
        from algorithms.onnx_graph import traced_alone  # onnx is slow to import, and learners never need it

        used = {name: tensor for name, tensor in self._weights.items() if name != "least_return"}
        act = lambda obs, given: cloned(obs, given, given, self.config, self.obs_dim)  # noqa: E731
        return traced_alone(act, self.obs_dim, self.action_dim, used)

    def state(self) -> dict[str, np.ndarray]:
        """Empty: the next actions depend on the observations alone."""
        return {}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave; raises ValueError for anything else."""
        if state:
            raise ValueError(f"a cloned policy was given state {sorted(state)}, expected none: it is another policy's")


def cloned(
    obs_RO: torch.Tensor,
    parameters: dict[str, torch.Tensor],
    data: dict[str, torch.Tensor],
    config: CloningConfig,
    obs_dim: int,
) -> torch.Tensor:
    """Actions (R, A) for raw observations."""
    seen_RX = featurise(obs_RO, data, config.obs_fourier, config.obs_fourier_dims, obs_dim)
    return predict(parameters, seen_RX, config.layers)


def _in_words(aim: PlanRequest) -> str:
    asked = [f"mode {aim.mode}"] if aim.mode else []
    return " and ".join(asked + ([] if aim.target_return is None else [f"the return {aim.target_return:g}"]))


def _initial(config: CloningConfig, obs_dim: int, action_dim: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    seen = features(config.obs_fourier, config.obs_fourier_dims, obs_dim)
    return initial_parameters(seen, action_dim, layers=config.layers, width=config.width, draw=draw)


def _no_data(obs_dim: int) -> dict[str, torch.Tensor]:
    return {"obs_mean": torch.zeros(obs_dim), "obs_std": torch.ones(obs_dim)}


def initial_parameters(
    obs_dim: int, action_dim: int, *, layers: int, width: int, draw: torch.Generator
) -> dict[str, torch.Tensor]:
    """``linear{l}.weight`` (in, out) LeCun-normal and ``linear{l}.bias`` (out,) zero, for each hidden layer and the last."""
    initial: dict[str, torch.Tensor] = {}
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise([obs_dim, *[width] * layers, action_dim])):
        initial[f"linear{l}.weight"] = lecun_normal((fan_in, fan_out), draw)
        initial[f"linear{l}.bias"] = torch.zeros(fan_out)
    return initial


def uniform_parameters(sizes: Sequence[int], draw: torch.Generator) -> dict[str, torch.Tensor]:
    """The same names; weights and biases are uniform on +- 1 / sqrt(in), as torch.nn.Linear's."""
    initial: dict[str, torch.Tensor] = {}
    for l, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        bound = fan_in**-0.5
        initial[f"linear{l}.weight"] = (2 * torch.rand((fan_in, fan_out), generator=draw) - 1) * bound
        initial[f"linear{l}.bias"] = (2 * torch.rand(fan_out, generator=draw) - 1) * bound
    return initial


def predict(parameters: dict[str, torch.Tensor], obs_RO: torch.Tensor, layers: int) -> torch.Tensor:
    """Actions (R, A) in [-1, 1] for normalised observations (R, O)."""
    return torch.tanh(logits(parameters, obs_RO, layers))


def logits(
    parameters: dict[str, torch.Tensor],
    x: torch.Tensor,
    layers: int,
    bend: Callable[[torch.Tensor], torch.Tensor] = torch.relu,
) -> torch.Tensor:
    """The last layer's outputs (R, out) for inputs (R, in)."""
    for l in range(layers + 1):
        x = torch.addmm(parameters[f"linear{l}.bias"], x, parameters[f"linear{l}.weight"])
        x = bend(x) if l < layers else x
    return x


def action_error(predicted_XA: torch.Tensor, action_XA: torch.Tensor, weight_X: torch.Tensor) -> torch.Tensor:
    """sum_x w_x (1/A) |a^_x - a_x|^2, X any leading shape: twice a unit Gaussian's negative log-likelihood, but for a
    constant, a coordinate. A SUM, to be divided by sum_x w_x over all learners, so that they weigh steps alike.

    Where the weight is 0 neither value nor gradient depends on the two actions, not even on a NaN among them.
    """
    difference_XA = torch.where(weight_X[..., None] > 0, predicted_XA - action_XA, 0.0)
    return (difference_XA.square().mean(-1) * weight_X).sum()
