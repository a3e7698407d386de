"""Draws docs/toy.png, the three-mode toy at several budgets: ``python benchmarks/toy.py [--out FILE]``."""

from __future__ import annotations

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from algorithms.softgac.toy import mode_shares, toy_q, train_toy

PICTURE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "toy.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=PICTURE)
    parser.add_argument("--updates", type=int, default=1000, help="actor updates of each panel")
    parser.add_argument("--rho", type=float, nargs="+", default=[0.05, 0.14, 0.22], help="budgets, one panel each")
    args = parser.parse_args()
    torch.set_num_threads(1)
    line = torch.linspace(-1, 1, 121)
    x, y = torch.meshgrid(line, line, indexing="xy")
    q = toy_q(torch.stack([x, y], -1))
    figure, axes = plt.subplots(1, len(args.rho), figsize=(4 * len(args.rho), 4.3), squeeze=False)
    for axis, rho in zip(axes[0], args.rho):
        action = train_toy(rho, updates=args.updates)
        axis.contourf(x, y, q, levels=14, cmap="Blues")
        axis.scatter(*action[:1500].T, s=3, color="#d1495b", alpha=0.5, linewidths=0)
        shares = ", ".join(f"{share:.0%}" for share in mode_shares(action))
        axis.set(title=f"rho = {rho:g}    near each mode: {shares}", xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
        axis.title.set_fontsize(9)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
