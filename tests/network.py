"""A second host: a network namespace of its own, joined to this one by a pair of virtual interfaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Host:
    """Another host, its address, and the one at which it sees this host."""

    name: str
    address: str
    address_of_ours: str

    def words(self, *words: str) -> list[str]:
        """``words`` as a command that runs over there."""
        return ["ip", "netns", "exec", self.name, *words]

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        """No packet goes between the hosts for the time of the block."""
        link = self.name.replace("dbt", "dba")
        _ip("link", "set", link, "down")
        try:
            assert not _connects(self), "the hosts still reach each other"
            yield
        finally:
            _ip("link", "set", link, "up")

    @contextlib.contextmanager
    def closed(self, port: int) -> Iterator[None]:
        """That host does not reach ``port`` of any other, for the time of the block."""
        rule = ("ipproto", "tcp", "dport", str(port), "unreachable")
        _ip("-n", self.name, "rule", "add", *rule)
        try:
            yield
        finally:
            _ip("-n", self.name, "rule", "del", *rule)


@contextlib.contextmanager
def second_host() -> Iterator[Host]:
    """Root alone may make one: for others, and where the kernel forbids it, the test is skipped."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a second network namespace takes root and iproute2")
    number = os.getpid()
    name, ours, theirs = f"dbt{number}", f"dba{number}", f"dbb{number}"
    net = f"198.18.{number >> 6 & 255}.{(number & 63) << 2}"  # RFC 2544: for tests, never routed
    stem, last = net.rsplit(".", 1)
    address, there = f"{stem}.{int(last) + 1}", f"{stem}.{int(last) + 2}"
    try:
        try:
            _ip("netns", "add", name)
            _ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no second network namespace here: {error.stderr.strip()}")
        _ip("addr", "add", f"{address}/30", "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", name, "addr", "add", f"{there}/30", "dev", theirs)
        _ip("-n", name, "link", "set", theirs, "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield Host(name, there, address)
    finally:
        for words in (("link", "del", ours), ("netns", "del", name)):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(*words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=30)


REACH = """
import socket, sys
for word in sys.argv[3:]:
    try:
        socket.create_connection((sys.argv[1], int(word)), timeout=float(sys.argv[2])).close()
        print(word)
    except OSError:
        pass
"""


def reached(host: Host, ports: list[int]) -> list[int]:
    """Those of ``ports`` that accept a connection from ``host``; one that is known to be open is tried too."""
    with socket.create_server((host.address_of_ours, 0)) as known:
        port = known.getsockname()[1]
        result = _tried(host, [port, *ports], 5.0)
    assert port in result, "the other host does not reach this one at all"
    return [found for found in result if found != port]


def _connects(host: Host) -> bool:
    """Whether ``host`` reaches a port that is open here, within a second."""
    with socket.create_server((host.address_of_ours, 0)) as known:
        return bool(_tried(host, [known.getsockname()[1]], 1.0))


def _tried(host: Host, ports: list[int], timeout_s: float) -> list[int]:
    words = host.words("python3", "-c", REACH, host.address_of_ours, str(timeout_s), *map(str, ports))
    result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    return [int(word) for word in result.split()]
