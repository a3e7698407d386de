"""Which library computes float32 matrix products on the CPU.

On AMD processors MKL stays on its AVX2 code, at about 40 % of the core's peak; oneDNN does not. torch sends float32
products to oneDNN when its matmul precision is "bf16", which only ALLOWS bfloat16: without AMX units oneDNN computes
in float32. Where it would really round to bfloat16, a probe product shows it, and auto stays with MKL.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import torch

FLOAT32_ERROR = 1e-5  # largest error of a float32 product below, relative to its entries; bfloat16 gives about 1e-2


def choose(setting: str) -> str:
    """The library for ``setting`` auto | mkl | onednn: "mkl" or "onednn", the same in every process of a machine.

    auto takes oneDNN on an AMD processor with AVX-512 if a probe keeps float32's accuracy. Raises ValueError for
    another setting, and for onednn where torch was built without it.
    """
    if setting not in ("auto", "mkl", "onednn"):
        raise ValueError(f"matmul is {setting!r}, expected auto, mkl or onednn: no library was chosen; take auto")
    if setting == "onednn" and not torch.backends.mkldnn.is_available():
        raise ValueError("matmul is onednn, but this torch was built without oneDNN: take auto or mkl")
    if setting != "auto":
        return setting
    fits = torch.backends.mkldnn.is_available() and "AVX512" in torch.backends.cpu.get_cpu_capability() and _is_amd()
    return "onednn" if fits and onednn_error() < FLOAT32_ERROR else "mkl"


@contextlib.contextmanager
def library(choice: str, precision: str = "float32") -> Iterator[None]:
    """Float32 products inside the block use ``choice`` ("mkl" or "onednn") on the CPU, and on CUDA the tensor cores' TF32 unless
    ``precision`` is float32; what was set before comes back after it."""
    cpu: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    cuda: Any = torch.backends.cuda.matmul
    before = cpu.fp32_precision, cuda.fp32_precision
    cpu.fp32_precision = "bf16" if choice == "onednn" else "none"
    cuda.fp32_precision = "ieee" if precision == "float32" else "tf32"
    try:
        yield
    finally:
        cpu.fp32_precision, cuda.fp32_precision = before


@functools.cache
def onednn_error() -> float:
    """Largest error of a (256, 256) product by oneDNN against float64, relative to the largest entry."""
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=draw) for _ in range(2))
    exact = left.double() @ right.double()
    with library("onednn"):
        seen = left @ right
    return float((seen - exact).abs().max() / exact.abs().max())


@functools.cache
def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 1 << 30  # blocks below this come from the heap, and the heap's free end stays up to this size


@functools.cache
def keep_freed_memory() -> bool:
    """Sets glibc's thresholds for the whole process, once; False, and no change, where there is no mallopt."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) & bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
