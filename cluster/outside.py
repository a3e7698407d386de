"""What of a run directory reaches out of it: settings that this command must name again, and links.

A run directory, like every file of settings, may come from anybody. What its settings have computed, and which data it reads, is taken
as it is. Settings with which the run connects, listens, writes or sends anything outside of its directory are taken if the command
names them again; so is an environment that names code or a file (``rollout_workers.env_ids``).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from cluster.config import RunConfig, flatten, to_json
from cluster.errors import UsageError


class Reach(NamedTuple):
    """How a setting reaches out."""

    out: Callable[[str], bool]  # whether this value does
    what: str  # follows from it
    flag: str  # to which the command line takes the value


def _joins(address: str) -> bool:
    return address not in ("", "local")


def _opens(host: str) -> bool:
    """Whether others than this machine may reach an endpoint there."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"


REACHES = {
    "ray.address": Reach(_joins, "that cluster runs code here and is shown your token", "--address "),
    "metrics.host": Reach(_opens, "others can read the metrics", "--set metrics.host="),
    "metrics.targets_dir": Reach(bool, "a file is written there", "--set metrics.targets_dir="),
    "metrics.logger": Reach(bool, "settings and metrics are sent to your account there", "--set metrics.logger="),
}


def check_named(config: RunConfig, settings: Mapping[str, str], source: Path | str) -> None:
    """UsageError if settings of ``config`` reach out and nobody who may has asked for it.

    RAY_ADDRESS asks for the cluster of its address, as the command line would.

    Args:
        settings: those that the command names, by dotted key.
        source: the file that all others come from.
    """
    if found := unnamed(config, settings):
        seen = "; ".join(f"{key} is {value!r} ({REACHES[key].what})" for key, value in found.items())
        flags = " ".join(_flag(key, value) for key, value in found.items())
        raise UsageError(
            f"{source} has settings that reach out of the run directory: {seen}; expected the command line to name them, because a file may come "
            f"from anybody: nothing was started; if you trust it, repeat the command with {flags}, or give other values"
        )


def unnamed(config: RunConfig, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of ``config`` that reach out and are neither among ``settings`` nor asked for by RAY_ADDRESS."""
    found = {key: value for key, (value, _) in flatten(config).items() if key in REACHES and REACHES[key].out(value)}
    if config.backend == "inline" or config.ray.address == os.environ.get("RAY_ADDRESS"):
        found.pop("ray.address", None)
    return {key: value for key, value in found.items() if key not in settings}


def named_again(config: RunConfig | Mapping[str, Any]) -> str:
    """The flags with which a command on a run of these settings names again what reaches out; of a config.json nothing is trusted."""
    data = to_json(config) if isinstance(config, RunConfig) else config
    found = ""
    for key, reach in REACHES.items():
        part, leaf = key.split(".")
        if key == "ray.address" and data.get("backend") == "inline":  # it joins no cluster
            continue
        value = data[part].get(leaf) if isinstance(data.get(part), Mapping) else None
        found += f" {_flag(key, value)}" if isinstance(value, str) and reach.out(value) else ""
    return found


def _flag(key: str, value: str) -> str:
    return f"{REACHES[key].flag}{shlex.quote(value)}"


def check_links(folder: Path) -> None:
    """UsageError if a link below run directory ``folder`` leads out of it: a run would write over what is there."""
    for link in _links(folder):
        target = Path(os.path.realpath(link))
        if not target.is_relative_to(folder):
            raise UsageError(
                f"{link} is a link to {target}, expected no link out of a run directory, because that may come from anybody and a run writes "
                "over its files: nothing was started or changed; remove the link; to keep a run elsewhere, give --run-dir, or let the "
                "whole run directory be a link"
            )


def _links(folder: Path) -> Iterator[Path]:
    """All links below ``folder``, but for those that Weights & Biases makes to its own logs; none is followed."""
    left = [folder]
    while left:
        with (
            contextlib.suppress(OSError),
            os.scandir(left.pop()) as entries,
        ):  # a file system's own folder, or one that just went
            for entry in entries:
                if entry.is_symlink():
                    yield Path(entry.path)
                elif entry.is_dir(follow_symlinks=False) and entry.name != "wandb":
                    left.append(Path(entry.path))
