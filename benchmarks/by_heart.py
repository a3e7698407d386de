"""One trajectory learned by heart, and whether a plan moves with the return it stands for.

Letters: T steps of one episode, B episodes, O observation dim, A action dim, n plan tokens of width d.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from algorithms.gac.agent import GAC
from algorithms.gac.config import cpu
from algorithms.interface import AgentSpec, PlanRequest
from benchmarks.ablations import plans
from benchmarks.gac import TEST
from benchmarks.markdown import over_seeds, table
from benchmarks.trained import Trained, by_data
from cluster.diagnosis import packed
from cluster.pictures.calibration import rank_correlation
from replay.dataset import Dataset

SHARES = np.linspace(0.0, 2.0, 17)  # of the best return in the data


def memorise(dataset: Dataset, indices: Sequence[int], updates: int, seed: int) -> tuple[float, float, float]:
    """Mean squared error of the actions, the same with the plan hidden, and largest error of the returns, share of their range.

    The networks learn nothing but these episodes; scales are the whole dataset's, so that errors mean what they do there.
    """
    episodes = list(dataset.episodes(indices))
    batch, summary = packed(episodes), dataset.summary()
    config = dataclasses.replace(
        cpu(), updates=updates, points=128, kl_weight=0.01, free_bits=0.0, lr=3e-3, lr_end=0.0, clip=10.0, warmup=0.02,
        obs_fourier=9, obs_fourier_dims=0, matmul="mkl",
    )  # fmt: skip
    agent = GAC(config, AgentSpec(obs_dim=dataset.obs_dim, action_dim=dataset.action_dim, seed=seed))
    agent.fit(summary)
    agent.update([batch] * updates)
    assert agent.encoder is not None
    model, errors, misses = agent.model, [], []
    hidden = torch.ones(1, dtype=torch.bool)
    with torch.inference_mode():
        z_Bnd = plans(agent, agent.encoder(batch, model).mean_Bnd, episodes)
        promised_B, _ = model.denormalise_return(*model.predict_return(z_Bnd))
        for b, episode in enumerate(episodes):
            obs, action = (torch.from_numpy(part)[None] for part in (episode.obs_TO, episode.action_TA))
            seen = (model.memory(z_Bnd[b : b + 1]), model.memory(z_Bnd[b : b + 1], hidden))
            made = (model.generate(memory, obs, action).action_BSA for memory in seen)
            errors.append([float((action_BSA - action).square().mean()) for action_BSA in made])
            misses.append(float((promised_B[b] - batch.return_B[b]).abs()) / (summary.return_max - summary.return_min))
    whole, hidden_error = np.mean(errors, 0)
    return float(whole), float(hidden_error), max(misses)


def by_heart(dataset: Dataset, updates: int, seeds: Sequence[int]) -> str:
    """The best episode alone, and it together with the median one."""
    order = np.argsort([float(episode.reward_T.sum()) for episode in dataset.episodes()])
    rows = []
    for name, indices in (("best episode", order[-1:]), ("best and median", order[[-1, len(order) // 2]])):
        found = [memorise(dataset, indices.tolist(), updates, seed) for seed in seeds]
        cells = [over_seeds([one[part] for one in found], 5) for part in range(2)]
        rows.append([name, *cells, over_seeds([100 * miss for *_, miss in found], 2) + " %"])
    head = ["learned", "mean squared action error", "with the plan hidden", "return error, share of the data's range"]
    return table(head, rows)


def monotone(runs: Sequence[Trained]) -> str:
    """Plans searched for rising returns from the same starts: does what they promise rise, and do they move one way?"""
    rows = []
    for data, group in by_data(runs).items():
        promised, moved, along = zip(*(_sweep(run) for run in group))
        rows.append([data, *(over_seeds(cells, 3) for cells in (promised, along)), over_seeds(moved, 2)])
    head = [
        "",
        "Spearman, asked and promised",
        "Spearman, asked and place on the line",
        "share of the movement on the line",
    ]
    return table(head, rows)


def _sweep(run: Trained) -> tuple[float, float, float]:
    """Rank correlations averaged over 10 starts, and how much of z's variance over targets lies on its first axis."""
    policy = run.policy("st")
    plans, promised = [], []
    for share in SHARES:
        target = float(share) * run.dataset.summary().return_max
        policy.aim = PlanRequest(mode="st", target_return=target)
        made = _plans(run, policy, target)
        plans.append(made[0])
        promised.append(made[1])
    z_QKP, promised_QK = np.stack(plans), np.stack(promised)
    ranked, along, shares = [], [], []
    for k in range(z_QKP.shape[1]):
        centred_QP = z_QKP[:, k] - z_QKP[:, k].mean(0)
        place_QQ, size_Q, _ = np.linalg.svd(centred_QP, full_matrices=False)
        ranked.append(rank_correlation(SHARES, promised_QK[:, k]) or 0.0)
        along.append(abs(rank_correlation(SHARES, place_QQ[:, 0]) or 0.0))
        shares.append(float(size_Q[0] ** 2 / np.square(size_Q).sum()))
    return float(np.mean(ranked)), float(np.mean(shares)), float(np.mean(along))


def _plans(run: Trained, policy: object, target: float) -> tuple[np.ndarray, np.ndarray]:
    """z (K, n d) and the promised returns (K,) of 10 starts, from the same draws for every target."""
    from algorithms.gac.policy import GACPolicy
    from rollout_workers.actor import seeded_streams
    from rollout_workers.envs import make_batch_env
    from rollout_workers.evaluator import plan_streams

    assert isinstance(policy, GACPolicy)
    seeds = [TEST[0] + i for i in range(10)]
    env = make_batch_env(run.spec.config.env, len(seeds), seeds[0])
    try:
        obs_EO = env.reset(seeds)
    finally:
        env.close()
    policy.load_weights(run.weights.unpack())
    policy.reset(len(seeds))
    policy.begin(np.arange(len(seeds)), obs_EO, seeded_streams(plan_streams(seeds)))
    assert policy.inferred is not None
    return policy.inferred.z_Knd.flatten(1).numpy(), policy.inferred.predicted_K.numpy()
