"""How far the two forms of batch renormalisation are apart, by a feature's variance: ``python benchmarks/renorm_forms.py``.

The running statistics of the made-up feature lag behind the batch: its mean by half a standard deviation, and its standard deviation
by a quarter. Constants are preset paper's, after the warm-up. Exact: nothing is drawn.
"""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import torch

from algorithms import batch_renorm
from algorithms.batch_renorm import Renorm
from algorithms.interface import Solo

MEAN_LAG, STD_LAG = 0.5, 1.25  # batch mean - running mean, batch standard deviation / running one; in running ones


def outputs(form: str, variance: float) -> torch.Tensor:
    """Outputs of a feature at 101 evenly spaced places within two standard deviations, in float64."""
    place = torch.linspace(-2, 2, 101, dtype=torch.float64)
    std = variance**0.5
    x_TMI = (MEAN_LAG * std + STD_LAG * std * place / place.std(correction=0)).reshape(1, -1, 1)
    zero, one = (torch.full((1, 1), value, dtype=torch.float64) for value in (0.0, 1.0))
    constants = Renorm(decay=0.99, eps=1e-3, r_max=3.0, d_max=5.0, warmup=0, form=form)
    y_TMI, _ = batch_renorm.forward(x_TMI, one, zero, zero, one * variance, torch.tensor(True), constants, Solo())
    return y_TMI.flatten()


def main() -> None:
    print("| running variance | spread, ioffe | spread, crossq | mean, ioffe | mean, crossq | difference |")
    print("|---|---|---|---|---|---|")
    for variance in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        ioffe, crossq = (outputs(form, variance) for form in ("ioffe", "crossq"))
        difference = float((ioffe - crossq).square().mean().sqrt() / ioffe.square().mean().sqrt())
        cells = [f"{t:.3f}" for y in zip(*((y.std(correction=0), y.mean()) for y in (ioffe, crossq))) for t in y]
        print(f"| {variance:g} | {' | '.join(cells)} | {difference:.1%} |")


if __name__ == "__main__":
    main()
