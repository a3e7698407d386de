"""The decision transformer: what to do next, given what was done and how much return is still asked for.

Letters: B episodes, G windows, K steps of the context, E environments, O, A.
Source: Chen et al. (2021), "Decision Transformer: Reinforcement Learning via Sequence Modeling". The return-to-go is the
REAL one, from the rewards of each step, in training and in acting. Ours: returns are scaled by the largest of the
dataset (theirs by a constant an environment), and the default target is the dataset's best return.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from algorithms import runtime
from algorithms.fourier import features, featurise
from algorithms.imitation.agent import History, ImitationAgent, ImitationPolicy, draw_segments
from algorithms.imitation.causal_transformer import Window, head_outputs, initial_parameters
from algorithms.imitation.cloning import action_error
from algorithms.imitation.config import TransformerConfig
from algorithms.interface import AgentSpec, real_target, refuse_mode
from algorithms.trainer import Loss
from algorithms.weights import misfits
from replay.schema import DataSummary, EpisodeMetadata, Trajectories


class DecisionTransformer(ImitationAgent):
    """The learner of dt; contract: algorithms.interface.EpisodeAgent.

    Raises ValueError with every problem of ``config`` at once.
    """

    heads = 1  # outputs of the network for each number of an action

    def __init__(self, config: TransformerConfig, spec: AgentSpec) -> None:
        config.check()
        self.config, self.sums = config, config.rewards == "sum"
        initial = _initial(config, spec.obs_dim, spec.action_dim, spec.seed, self.heads)
        super().__init__(config, spec, initial, _no_data(spec.obs_dim))

    def _statistics(self, summary: DataSummary) -> dict[str, object]:
        config = self.config
        if summary.max_length > config.max_steps:
            raise ValueError(
                f"the dataset's longest episode has {summary.max_length} steps, expected at most max_steps "
                f"({config.max_steps}): later steps would look alike to the policy; set max_steps={summary.max_length}"
            )
        quantiles = summary.return_quantiles
        target = np.interp(config.target_percentile, np.linspace(0, 100, len(quantiles)), quantiles)
        scale = max(abs(summary.return_min), abs(summary.return_max), 1e-6)
        return {"return_scale": scale, "return_target": target}

    def losses(self, batch: Trajectories) -> Loss:
        """sum_gk w_gk (1/A) |pi(window_g)_k - a_gk|^2 over sum_gk w_gk; w is 1 for a step, 0 for padding."""
        out_GKA, action_GKA, weight_GK = self.outputs(batch)
        total = action_error(torch.tanh(out_GKA), action_GKA, weight_GK)
        return Loss(total, weight=weight_GK.sum(), shared=(weight_GK.sum() / weight_GK.numel(),))

    def outputs(self, batch: Trajectories) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the network gives for drawn windows (G, K, heads A), the actions (G, K, A), and 1 for a step, 0 for padding."""
        config, data = self.config, self.data
        noise_BP = self.uniform(len(batch), config.segments)
        drawn = draw_segments(batch, noise_BP, config.context, self.obs_dim, self.action_dim)
        window = Window(
            to_go_BS=drawn.to_go_GK / data["return_scale"],
            obs_BSX=seen(drawn.obs_GKO, data, config),
            action_BSA=drawn.action_GKA,
            time_BS=drawn.time_GK.clamp_max(config.max_steps - 1),
        )
        drop = self._drop if config.dropout else None
        out_GKA = head_outputs(self.parameters.named, window, layers=config.layers, heads=config.heads, drop=drop)
        return out_GKA, drawn.action_GKA, drawn.valid_GK.float()

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        share = self.config.dropout
        return x * (self.uniform(*x.shape) >= share) * (1.0 / (1.0 - share))


class DecisionTransformerPolicy(ImitationPolicy[TransformerConfig]):
    """A decision transformer for acting; contract: algorithms.interface.EpisodePolicy.

    ``aim.target_return`` is what an episode is asked for; None: the percentile of the dataset's returns that the configuration names. A
    target beyond the data is taken as it is: what the policy then does is extrapolation.

    Each step evaluates the window of the last K steps anew, batched over the environments. That is what the network was
    trained on. Keys and values kept from earlier steps would not be: past the first K steps those of the second block
    on would still have seen what the window has forgotten.
    Actions of one environment are the same beside any number of others up to float32 rounding of matrix products.
    """

    needs_reward = True  # without it the return still to come would stay what it was
    heads = DecisionTransformer.heads

    def __init__(self, config: TransformerConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self._weights = _initial(config, obs_dim, action_dim, 0, self.heads) | _no_data(obs_dim)
        self.reset(0)

    def reset(self, num_envs: int) -> None:
        """Forgets all windows; every environment must ``begin`` before the next ``act``."""
        self._history = History.empty(num_envs, self.config.context, self.obs_dim, self.action_dim)

    def begin(self, env_K: np.ndarray, obs_KO: np.ndarray, rng: np.random.Generator) -> list[EpisodeMetadata]:
        """Metadata with the requested return; nothing is drawn. Raises PlanRequestError for a request that cannot be met."""
        target = self._target()
        self._history.begin(env_K, target)
        nan = float("nan")
        return [EpisodeMetadata(episode=-1, mode="", target=target, predicted=nan, variance=nan) for _ in env_K]

    def act(self, obs_EO: np.ndarray, reward_E: np.ndarray) -> np.ndarray:
        """Actions (E, A), float32, in [-1, 1]. Raises RuntimeError where an environment has not begun."""
        history = self._history
        if len(obs_EO) != len(history.length_E) or (history.length_E < 0).any():
            waiting = np.flatnonzero(history.length_E < 0).tolist()
            raise RuntimeError(
                f"act got {len(obs_EO)} observations for {len(history.length_E)} environments, of which {waiting} have "
                "not begun: there is no return to ask for; call reset with their number, and begin for each"
            )
        history.observe(obs_EO, np.zeros_like(reward_E) if self.config.rewards == "sum" else reward_E)
        config = self.config
        with torch.inference_mode(), runtime.library(self._matmul):
            out = head_outputs(self._weights, self._window(), layers=config.layers, heads=config.heads, drop=None)
            action_EA = self._action(out[torch.arange(len(obs_EO)), torch.from_numpy(history.length_E) - 1]).numpy()
        history.acted(action_EA)
        return action_EA

    def _action(self, out_EA: torch.Tensor) -> torch.Tensor:
        """Actions (E, A) from what the network gives for each environment's newest step."""
        return torch.tanh(out_EA)

    def state(self) -> dict[str, np.ndarray]:
        """The windows of all environments, by name, as copies."""
        return {field.name: getattr(self._history, field.name).copy() for field in dataclasses.fields(History)}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Takes what ``state`` gave, for any number of environments; raises ValueError for anything else."""
        own = History.empty(len(state.get("length_E", ())), self.config.context, self.obs_dim, self.action_dim)
        expected = {field.name: getattr(own, field.name) for field in dataclasses.fields(History)}
        if problems := misfits(expected, state, "is", lambda array: f"{array.dtype} {array.shape}"):
            raise ValueError(
                f"this state does not fit the decision transformer: {'; '.join(problems)}. Its episodes cannot go on from it; "
                "build the policy with the configuration that the state was made with"
            )
        self._history = History(**{name: array.copy() for name, array in state.items()})

    def _target(self) -> float:
        refuse_mode("a decision transformer", self.aim.mode)
        return self._requested()

    def _requested(self) -> float:
        """The target return that was given, or the dataset's. Raises PlanRequestError where it is no number to ask for."""
        given = self.aim.target_return
        return float(self._weights["return_target"]) if given is None else real_target(float(given))

    def _window(self) -> Window:
        """All K entries, also while an episode is shorter: one shape for every step, and for any company of others."""
        history, weights = self._history, self._weights
        return Window(
            to_go_BS=torch.from_numpy(history.to_go_EK.astype(np.float32)) / weights["return_scale"],
            obs_BSX=seen(torch.from_numpy(history.obs_EKO), weights, self.config),
            action_BSA=torch.from_numpy(history.action_EKA),
            time_BS=torch.from_numpy(history.time_EK().clip(0, self.config.max_steps - 1)),
        )


def _initial(
    config: TransformerConfig, obs_dim: int, action_dim: int, seed: int, heads: int
) -> dict[str, torch.Tensor]:
    return initial_parameters(
        features(config.obs_fourier, config.obs_fourier_dims, obs_dim),
        action_dim,
        width=config.width,
        layers=config.layers,
        max_steps=config.max_steps,
        draw=torch.Generator().manual_seed(seed),
        outputs=heads * action_dim,
    )


def seen(obs_XO: torch.Tensor, data: dict[str, torch.Tensor], config: TransformerConfig) -> torch.Tensor:
    """Features of raw observations with any leading shape."""
    flat_RO = obs_XO.flatten(0, -2)
    made_RX = featurise(flat_RO, data, config.obs_fourier, config.obs_fourier_dims, flat_RO.shape[1])
    return made_RX.unflatten(0, obs_XO.shape[:-1])


def _no_data(obs_dim: int) -> dict[str, torch.Tensor]:
    ones = {name: torch.ones(()) for name in ("return_scale", "return_target")}
    return {"obs_mean": torch.zeros(obs_dim), "obs_std": torch.ones(obs_dim), **ones}
