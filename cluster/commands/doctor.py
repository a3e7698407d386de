"""``drawbridge doctor``: whether this machine, or a cluster, is fit for a run."""

from __future__ import annotations

import argparse
import dataclasses
import socket
from pathlib import Path
from typing import Any

from cluster.commands.arguments import add_command, location
from cluster.errors import UsageError

PORTS = {6379: "Ray's head", 8265: "Ray's dashboard", 10001: "Ray clients", 9464: "deploy/'s metrics endpoint"}
JOB_BYTES = 100 << 20  # that Ray's job server takes; beyond it answers 413


def add_doctor(commands: Any) -> None:
    doctor = add_command(
        commands, "doctor", _doctor, "whether this machine, or every node of a cluster, is fit for a run"
    )
    doctor.add_argument(
        "--address", help="Ray cluster to look at, host:port (default: RAY_ADDRESS, else this machine alone)"
    )
    doctor.add_argument(
        "--run-dir", type=location, default=Path("runs"), help="where run directories are to be (default: runs)"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from cluster.connection import cluster_address, connect
    from cluster.doctor import (
        NODES_S,
        Answer,
        Check,
        Facts,
        Question,
        ask_nodes,
        gather_facts,
        judge,
        marked,
        node_checks,
    )

    address = cluster_address(arguments.address)
    found: list[Check] = [_auth(address), _tree()]

    def look(question: Question) -> tuple[Facts, list[Answer]]:
        question = dataclasses.replace(question, torch=True)
        here = gather_facts(question)
        if not address or found[0].state == "fail":
            return here, []
        connect(address, cpus=0, object_store_bytes=0)
        return here, ask_nodes(question, NODES_S)

    try:
        with marked(arguments.run_dir) as question:
            here, answers = look(question)
    except OSError as error:
        fix = "put --run-dir where this user can write, with room for files"
        found.append(Check("fail", "run directory", "this machine", str(error), fix))
        here, answers = look(Question())
    found += [*judge(here, here, "this machine"), *([] if address else [_ports()]), *node_checks(answers, here)]
    print(table(found))
    return 1 if any(check.state == "fail" for check in found) else 0


def _auth(address: str) -> Any:
    """Whether the cluster asks for a token, and takes ours."""
    from cluster.doctor import Check

    if not address:
        return Check("ok", "auth", "this machine", "a run's own cluster listens on 127.0.0.1 and has a fresh token")
    from cluster.connection import asks_for_token, check_reachable

    try:
        check_reachable(address)
    except UsageError as error:
        return Check(
            "fail", "auth", address, str(error), "as the message says; nothing else of the cluster was looked at"
        )
    if not asks_for_token(address):
        fix = "start its head and nodes with RAY_AUTH_MODE=token (docs/deploy.md, Who may use the cluster)"
        return Check("warn", "auth", address, "no token is asked for: whoever reaches it runs code on every node", fix)
    return Check("ok", "auth", address, "a token is asked for, and ours is taken")


def _tree() -> Any:
    """What Ray would upload from this tree, for ``--address`` and for ``ray job submit --working-dir .``."""
    from cluster.connection import shipped_files
    from cluster.doctor import Check
    from replay.task import ROOT

    sizes = shipped_files()
    total = sum(sizes.values())
    words = f"{total / 2**20:,.1f} MiB in {len(sizes):,} files go to a cluster with a job"
    if total < JOB_BYTES:
        return Check("ok", "tree", str(ROOT), words)
    largest = ", ".join(
        f"{path} ({size / 2**20:,.0f} MiB)" for path, size in sorted(sizes.items(), key=lambda item: -item[1])[:3]
    )
    fix = f"add what a run does not need to .rayignore, or move it out of the tree; the largest: {largest}"
    return Check(
        "warn",
        "tree",
        str(ROOT),
        f"{words}; Ray refuses a job of more than {JOB_BYTES >> 20} MiB (zipped) with error 413",
        fix,
    )


def _ports() -> Any:
    """Whether a head could be started here with Ray's usual ports."""
    from cluster.doctor import Check

    taken = []
    for port, use in PORTS.items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                taken.append(f"{port} ({use})")
    if taken:
        return Check(
            "warn",
            "ports",
            "this machine",
            f"taken: {', '.join(taken)}",
            "use that cluster (--address), or other ports",
        )
    return Check("ok", "ports", "this machine", f"free: {', '.join(map(str, PORTS))}")


def table(found: list[Any]) -> str:
    """A line for each check, a second one with what to do; nodes of which the same is true share a line."""
    places: dict[tuple[str, ...], list[str]] = {}
    for check in found:
        places.setdefault((check.state, check.name, check.seen, check.fix), []).append(check.where)
    rows = [("STATE", "CHECK", "WHERE", "SEEN", "")]
    for (state, name, seen, fix), where in places.items():
        rows.append(
            (state, name, where[0] if len(where) == 1 else f"{len(where)} machines: {', '.join(where[:3])}", seen, fix)
        )
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for *columns, seen, fix in rows:
        lines.append("  ".join([*(text.ljust(width) for text, width in zip(columns, widths)), seen]))
        lines += [f"{'':{widths[0]}}  -> {fix}"] if fix else []
    counts = [f"{sum(check.state == state for check in found)} {state}" for state in ("fail", "warn", "ok")]
    return "\n".join([*lines, ", ".join(counts)])
