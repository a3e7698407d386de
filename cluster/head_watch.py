"""Whether the head of the Ray cluster answers. Without one nothing can be placed or restarted, and after a while Ray ends the driver
without a word of what to do: the run ends before that."""

from __future__ import annotations

import os
import time
from typing import Any

import ray
from grpc import StatusCode

from cluster.errors import HeadGone

ASK_S = 1.0  # between two questions
OWN_S = 5.0  # for a run's own cluster, whose head nobody restarts
SETTING = "RAY_gcs_rpc_server_reconnect_timeout_s"  # after which Ray ends a process that finds no head
RECONNECT_S = 60.0  # Ray's default of it
METHOD = "/ray.rpc.NodeInfoGcsService/CheckAlive"
BACKOFF = [("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1_000)]  # default: up to 120 s


class HeadWatch:
    """Asks the head of the cluster that this process has joined, a question at a time, and never waits for the answer.

    Through a Ray client (``ray://``) there is nothing to ask: Ray's calls raise ConnectionError when it is cut off.

    Args:
        own: whether it is the run's own cluster.
        resume: the command that goes on with the run.
    """

    def __init__(self, own: bool, resume: str) -> None:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.util.client import ray as client

        self._resume = resume
        reconnect_s = float(os.environ.get(SETTING, RECONNECT_S))
        self.limit_s = OWN_S if own else reconnect_s / 2
        self._answer_s = reconnect_s / 4  # two questions without an answer are as many as there is time for
        self._channel: Any = None
        self._answer: Any = None
        self._asked_at = 0.0
        self._gone_since: float | None = None
        if not client.is_connected():
            self.address: str = ray.get_runtime_context().gcs_address
            self._channel = init_grpc_channel(self.address, options=BACKOFF)

    def check(self) -> None:
        """Takes the answer to the last question, if it is there, and asks again; HeadGone once the head is gone for too long."""
        now = time.monotonic()
        if self._answer is not None and self._answer.done():
            code, self._answer = self._answer.code(), None
            if code not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
                self._gone_since = None
            elif self._gone_since is None:
                self._gone_since = self._asked_at
            elif now - self._gone_since >= self.limit_s:
                raise self._gone(now - self._gone_since, code.name)
        if self._channel is not None and self._answer is None and now - self._asked_at >= ASK_S:
            self._asked_at = now
            self._answer = self._channel.unary_unary(METHOD).future(b"", timeout=self._answer_s)

    def _gone(self, gone_s: float, code: str) -> HeadGone:
        return HeadGone(
            f"the head of the Ray cluster (GCS) at {self.address} has not answered for {gone_s:.0f} s ({code}), expected an answer "
            f"within {self.limit_s:.0f} s: without a head nothing can be started or restarted, so the run halts; go on with "
            f"`{self._resume}` when the cluster has a head again; a run without --address starts its own"
        )
