"""The Prometheus endpoint of a run: its newest metrics line as series, and the http_sd document that finds it.

docs/metrics.md lists every series.
"""

from __future__ import annotations

import ipaddress
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import make_wsgi_app
from prometheus_client.registry import Collector

from cluster.errors import UsageError
from cluster.metrics.catalogue import AGAIN_PREFIX, METRICS, WINDOW_SUMS, is_counter, is_resumed
from cluster.metrics.discovery import EVERYWHERE
from cluster.metrics.metric import Line
from replay.admission import Reason

MAX_CONNECTIONS = 8  # answered at once; more are refused, so that scrapers cannot pile up threads in the driver
CONNECTION_TIMEOUT_S = 5.0
_REJECTED = {f"rows_dropped_{reason}": 0.0 for reason in get_args(Reason)}  # records have only those that occurred
BY_NODE = ("node_workers_", "node_steps_per_s_")  # keys of which a record has all that there are
LAST_SCRAPE_S = 31.0  # that the end of a run waits for, after a scrape: Prometheus may come every 30 s
ENDED = {"ended": 1.0, "failed": -1.0}  # what run_ended is in these states
OF_PROMETHEUS = "HTTP_X_PROMETHEUS_SCRAPE_TIMEOUT_SECONDS"  # header of everything that scrapes regularly; nobody waits for a browser


class Exporter:
    """Serves a run's newest metrics at ``http://host:port/metrics`` and an http_sd document at ``/sd``.

    Args:
        run: value of the label ``run``, the same for every process of a run.
        host: address to listen on; "0.0.0.0" opens the endpoint to the network.
        port: TCP port; 0 for any free one, found in ``port``.
        role: value of the label ``role``: which part of the run serves these figures.
        shard: value of the label ``shard``; empty where the figures are of no single shard.
        facts: what run_info says of the run from now on.

    Raises:
        UsageError: the address cannot be listened on.
    """

    def __init__(
        self,
        run: str,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        role: str = "supervisor",
        shard: str = "",
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self._labels = {"run": run, "role": role, "shard": shard}
        self._lines = _Lines(self._labels)
        self._lines.facts = {**(facts or {}), "started_at": time.time(), "ended": 0.0}
        self._state_at = -math.inf
        self._scraped_at: dict[str, float] = {}  # by the scraper's address, monotonic clock
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._lines)
        self._metrics_app = make_wsgi_app(registry)
        self.host = host
        self._server = _listen(host, port)
        self._server.set_app(self._answer)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="exporter", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{_joined(self.host, self.port)}/metrics"

    def update(self, line: Line) -> None:
        """Takes a metrics line. Each line once: what it counts over its window (WINDOW_SUMS) is added up."""
        self._lines.take(line)

    def resume_from(self, line: Line) -> None:
        """Takes the newest line of the run's earlier part: counters that are resumed go on from what that part showed, even if the run begins
        a little earlier; all others begin from 0, and show it before they grow."""
        self._lines.resume_from(line)

    def set_state(self, state: str) -> None:
        """What the run does now: starting, running, finishing, ended or failed."""
        self._lines.facts = {**self._lines.facts, "state": state, "ended": ENDED.get(state, 0.0)}
        self._state_at = time.monotonic()

    @property
    def awaited(self) -> bool:
        """Whether a Prometheus that came within LAST_SCRAPE_S has not seen the newest state, and will if it comes again."""
        since = time.monotonic() - LAST_SCRAPE_S
        return any(since < at < self._state_at for at in list(self._scraped_at.values()))

    def close(self, deadline_s: float = 5.0) -> None:
        """Stops listening; a second call does nothing. TimeoutError when the server thread does not end in time."""
        stopper = threading.Thread(target=self._server.shutdown, daemon=True)
        if self._thread.is_alive():
            stopper.start()
            self._thread.join(deadline_s)
        self._server.server_close()
        if self._thread.is_alive():
            raise TimeoutError(
                f"the metrics endpoint {self.url} did not stop within {deadline_s} s; its thread is a daemon and ends "
                "with the process, the port is closed"
            )

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            at, page = time.monotonic(), self._metrics_app(environ, start)
            if OF_PROMETHEUS in environ:
                self._scraped_at[environ["REMOTE_ADDR"]] = at
            return page
        if path == "/sd" and environ["REQUEST_METHOD"] == "GET":
            start("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(self._discovery(environ)).encode()]
        start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Drawbridge serves GET /metrics (Prometheus text) and GET /sd (http_sd JSON), nothing else.\n"]

    def _discovery(self, environ: dict[str, Any]) -> list[dict[str, Any]]:
        """The http_sd document: one target, under the address by which the asker reached it if we listen on all."""
        target = environ.get("HTTP_HOST") if self.host in EVERYWHERE else None
        return [{"targets": [target or _joined(self.host, self.port)], "labels": {"job": "drawbridge"}}]


class _Lines(Collector):
    """Turns the newest value of every key into metric families when it is scraped."""

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels
        self._line: dict[str, Any] = {}
        self._counts: dict[str, float] = {}  # as the newest line has them, and what they fell by before
        self.facts: dict[str, Any] = {}
        self._lock = threading.Lock()

    def resume_from(self, line: Line) -> None:
        counts = {key: n for key, n in _with_falls(_numbers(line)).items() if is_counter(key) or key in WINDOW_SUMS}
        with self._lock:
            self._counts = {key: n for key, n in counts.items() if is_resumed(key)}
            self._line |= dict.fromkeys(counts, 0.0) | self._counts

    def take(self, line: Line) -> None:
        """A count that went back, as some work is lost and done again, goes on growing: a fall is a restart from 0 to Prometheus."""
        numbers = _with_falls(_numbers(line))
        with self._lock:
            for key in [key for key in numbers if is_counter(key)]:
                now = numbers.pop(key)
                if math.isfinite(now):
                    numbers[key] = self._line.get(key, 0.0) + max(0.0, now - self._counts.get(key, 0.0))
                    self._counts[key] = now
            for key in WINDOW_SUMS:
                if key in numbers:
                    added = numbers[key] if math.isfinite(numbers[key]) else 0.0
                    numbers[key] = self._line.get(key, 0.0) + max(0.0, added)
            if "rows_stored" in numbers:
                self._line = _REJECTED | self._line
            if any(key.startswith(BY_NODE) for key in numbers):  # a node that is gone shows nothing
                self._line = {key: value for key, value in self._line.items() if not key.startswith(BY_NODE)}
            self._line |= numbers
            self._line["heard_at"] = time.time()

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            line = {**self._line, **self.facts}
        for series in METRICS:
            common = {name: value for name, value in self._labels.items() if name not in series.labels}
            family: Any = CounterMetricFamily if series.kind == "counter" else GaugeMetricFamily
            metric = family(
                f"drawbridge_{series.series}", f"{series.help} ({series.unit})", labels=(*common, *series.labels)
            )
            for labels, value in series.read(line):
                if series.kind == "gauge" or math.isfinite(value):
                    metric.add_metric((*common.values(), *labels), value)
            yield metric


def _numbers(line: Line) -> dict[str, float]:
    return {key: float(value) for key, value in line.items() if isinstance(value, (int, float))}


def _with_falls(numbers: dict[str, float]) -> dict[str, float]:
    return {key: n + numbers.get(f"{AGAIN_PREFIX}{key}", 0.0) for key, n in numbers.items()}


class _Server(WSGIServer):
    """One thread a connection, at most MAX_CONNECTIONS of them; a connection beyond that is closed at once."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*args, **kwargs)

    def server_bind(self) -> None:
        """Like WSGIServer's, without its reverse name lookup, which can hang for long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:  # the scraper hung up or was too slow: its own log says so
            pass
        finally:
            self.shutdown_request(request)
            self._free.release()


class _Handler(WSGIRequestHandler):
    timeout = CONNECTION_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape every few seconds is no news."""

    def address_string(self) -> str:
        return str(self.client_address[0])


def check_can_listen(host: str, port: int) -> None:
    """UsageError unless a server could listen there now."""
    _listen(host, port).server_close()


def _listen(host: str, port: int) -> _Server:
    if not host.strip():
        raise UsageError(
            "metrics.host is empty, expected an address of this machine: an empty one would open the endpoint to every network; "
            "nothing was started; set 127.0.0.1, or 0.0.0.0 to open it on purpose"
        )
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        if host not in EVERYWHERE and _is_everywhere(str(address[0])):
            raise UsageError(
                f"metrics.host is {host!r}, expected an address of this machine: that one would open the endpoint to every network; nothing was "
                f"started; set 127.0.0.1, or one of {', '.join(EVERYWHERE)} to open it on purpose"
            )
        server: type[_Server] = type("Server", (_Server,), {"address_family": family})
        return server(address[:2], _Handler)
    except (OSError, OverflowError, ValueError) as error:
        raise UsageError(
            f"the metrics endpoint cannot listen on {_joined(host, port)} ({error}); expected a free port on an "
            "address of this machine; nothing was started; choose another metrics.port (0: any free one) or "
            "another metrics.host"
        ) from error


def _is_everywhere(address: str) -> bool:
    """Whether who listens at this IP address listens at all of the machine's."""
    found = ipaddress.ip_address(address.partition("%")[0])
    return (getattr(found, "ipv4_mapped", None) or found).is_unspecified


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
