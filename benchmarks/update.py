"""Gradient steps (critic updates) per CPU-second of one core: ``python benchmarks/update.py [--preset cpu|paper]``.

Every update trains both critics on 256 rows; actor and temperature follow every second one. Run with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import sys
import time
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import torch

from algorithms import ALGORITHMS


def rate(agent: Any, rows_UBD: torch.Tensor, repeats: int) -> list[float]:
    """Updates per CPU-second of each repeat, after one call to warm up."""
    agent.update(rows_UBD)
    rates = []
    for _ in range(repeats):
        start = time.process_time()
        agent.update(rows_UBD)
        rates.append(rows_UBD.shape[0] / (time.process_time() - start))
    return rates


def critic_update_flop(config: Any, obs_dim: int, action_dim: int, batch: int) -> float:
    """Floating-point operations of the matrix products of one critic update (2 a multiply-add)."""
    width, layers = config.critic_width, config.critic_layers
    hidden = (layers - 1) * width * width
    first, last = (obs_dim + action_dim) * width, width * config.atoms
    forward = 2 * batch * (first + hidden + last)
    backward = 2 * batch * (first + 2 * hidden) + batch * 2 * last  # the first layer has no input gradient
    return 2.0 * 2 * (forward + backward)  # twin critics, 2 operations a multiply-add


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=("cpu", "paper"), default="cpu")
    parser.add_argument("--algorithm", choices=(*ALGORITHMS, "all"), default="all")
    parser.add_argument("--batch", type=int, default=256, help="rows of a batch")
    parser.add_argument("--obs", type=int, default=17, help="observation dim (HalfCheetah: 17)")
    parser.add_argument("--action", type=int, default=6, help="action dim (HalfCheetah: 6)")
    parser.add_argument("--repeats", type=int, default=9, help="calls measured; the median is printed")
    parser.add_argument("--updates", type=int, default=0, help="updates a call (default 64; 2 for paper)")
    parser.add_argument("--matmul", choices=("auto", "mkl", "onednn"), default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)
    updates = args.updates or (64 if args.preset == "cpu" else 2)
    names = list(ALGORITHMS) if args.algorithm == "all" else [args.algorithm]
    for name in names:
        config = ALGORITHMS[name].presets[args.preset]()
        config = type(config)(**{**vars(config), "matmul": args.matmul})
        agent: Any = ALGORITHMS[name].make_agent(config, args.obs, args.action, seed=0)
        rows = torch.randn(updates, args.batch, 2 * args.obs + args.action + 2)
        rows[..., args.obs + args.action + 1] = 1.0
        rates = rate(agent, rows, args.repeats)
        gflop = critic_update_flop(config, args.obs, args.action, args.batch) / 1e9
        print(
            f"{name:8s} {args.preset:6s} {statistics.median(rates):8.2f} updates/CPU-s "
            f"(lowest {min(rates):.2f}, highest {max(rates):.2f}; {gflop:.2f} GFLOP a critic update; {agent.matmul})",
            flush=True,
        )


if __name__ == "__main__":
    main()
