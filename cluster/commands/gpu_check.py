"""``drawbridge gpu-check``: whether updates on this machine's GPU are what they are on the CPU, and how fast they are."""

from __future__ import annotations

import argparse
import time
from typing import Any

from cluster.commands.arguments import add_command
from cluster.errors import RunError, UsageError


def add_gpu_check(commands: Any) -> None:
    add_command(commands, "gpu-check", _gpu_check, "prove updates on this machine's GPU against the CPU")


def _gpu_check(arguments: argparse.Namespace) -> int:
    from cluster.checks import cuda_devices  # reads every part of a run

    if not cuda_devices():
        raise UsageError(
            "this machine has no CUDA device that torch can use, expected one: nothing was checked; run gpu-check where there is a GPU, "
            "with a torch that is built for CUDA"
        )
    import torch

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")
    return run_checks("cuda")


def run_checks(device: str, sizes: Any = None) -> int:
    """Prints one line a check; RunError names those that failed."""
    from learners.gpu_check import CHECKS, Bench

    failed, start = [], time.monotonic()
    for name, check in CHECKS.items():
        began = time.monotonic()
        try:
            verdict, seen = "ok", check(Bench(device, sizes))
        except Exception as error:  # whatever it is, the other checks still tell something
            verdict, seen = "FAILED", f"{type(error).__name__}: {error}"
            failed.append(name)
        print(f"{verdict:6}  {name:40}  {time.monotonic() - began:6.1f} s  {seen}", flush=True)
    print(f"{len(CHECKS)} checks in {time.monotonic() - start:.0f} s")
    if failed:
        raise RunError(
            f"{len(failed)} of {len(CHECKS)} checks failed ({'; '.join(failed)}), expected none: updates on this GPU cannot be trusted; "
            "train with --device cpu, or with --set learner.cuda_graph=false if only checks of the graph failed"
        )
    return 0
