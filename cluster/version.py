"""Which tree this is, and with which packages it runs: config.json and the metrics say so."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import tomllib

from replay.task import ROOT

PACKAGES = ("ray", "torch", "gymnasium", "mujoco", "minari", "numpy", "pyarrow", "onnxruntime", "safetensors")


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def tree_version() -> str:
    """Of this tree, whatever is installed."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])


def git_hash() -> str:
    """The commit of this tree, with "+" when it has changes; "unknown" outside a repository."""
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def _git(*words: str) -> str:
    result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=10, check=True)
    return result.stdout.strip()
