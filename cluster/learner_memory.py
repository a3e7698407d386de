"""What learners take of memory for the batches of one block and for one update: roughly, from the settings alone."""

from __future__ import annotations

from algorithms import ALGORITHMS
from cluster.graph import RunSpec

# float32 numbers that one update keeps for each unit of a layer and each step of an item; measured: gac 20 to 23, dt 23, cql 14, iql
# and bc 6; softgac, sac and flac 24, qvpo 96
_KEPT = {"episodes": 24, "transitions": 96}
_WIDTHS = ("width", "critic_width", "actor_width", "behaviour_width", "bridge_width")
_LAYERS = ("layers", "critic_layers", "actor_layers", "behaviour_layers")
LARGE_BYTES = 2**30  # of an update, beyond which it matters where it is made
TOKENS = 3  # of a step in a decision transformer


def learner_bytes(spec: RunSpec) -> int:
    """Bytes of the batches of all learners, and of an update on one of them where it is made on a CPU."""
    return _batch_bytes(spec) + _update_bytes(spec)


def _batch_bytes(spec: RunSpec) -> int:
    """Of the blocks in use: one that is learned from, one on its way, and those fetched ahead."""
    config = spec.config
    blocks = 2 + (config.learner.prefetch_blocks if config.backend == "ray" else 0)
    row = (
        spec.layout.width
        if ALGORITHMS[spec.config.algorithm].items == "transitions"
        else spec.obs_dim + spec.action_dim + 1
    )
    rows = blocks * config.learner.updates_per_call * config.learner.batch_size * _length(spec)
    return int(4 * rows * row)


def _update_bytes(spec: RunSpec) -> int:
    agent, learner = spec.config.agent, spec.config.learner
    if context := getattr(agent, "context", 0):
        steps: float = TOKENS * context
    else:
        steps = getattr(agent, "points", 0) or _length(spec)
    width = max(getattr(agent, name, 0) for name in _WIDTHS)
    layers = max(1, *(getattr(agent, name, 0) for name in _LAYERS))
    needed = int(4 * _KEPT[ALGORITHMS[spec.config.algorithm].items] * learner.batch_size * steps * width * layers)
    return 0 if _on_gpu(learner.device, needed) else needed


def _on_gpu(device: str, needed: int) -> bool:
    """Whether an update is made in a GPU's memory; looking imports torch, which is left out where it matters little."""
    if device != "auto" or needed < LARGE_BYTES:
        return device == "cuda"
    import torch

    return torch.cuda.is_available()


def _length(spec: RunSpec) -> float:
    """Steps of an item: 1 of a transition; the dataset's mean, or else the time limit, of an episode."""
    if ALGORITHMS[spec.config.algorithm].items == "transitions":
        return 1.0
    if spec.dataset is not None:
        return spec.dataset.total_steps / spec.dataset.total_episodes
    from rollout_workers.env_ids import find_env

    return float(find_env(spec.config.env).max_episode_steps or spec.config.worker.chunk_steps)
