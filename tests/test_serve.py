"""``deploy/serve_policy.py``: a run's policy over HTTP, from Ray Serve on a cluster of the test's own."""

from __future__ import annotations

import json
import socket
import types
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import train_inline

from cluster.connection import connect, disconnect
from drawbridge import load

pytestmark = pytest.mark.cluster


@pytest.fixture
def serving() -> Any:
    pytest.importorskip("ray.serve", reason="the extra serve is not installed", exc_type=ImportError)
    import deploy.serve_policy

    return deploy.serve_policy


@pytest.fixture
def address(serving: Any, tmp_path: Path) -> Iterator[str]:
    """Where the policy of ``tmp_path``/run is served."""
    from ray import serve

    assert train_inline(tmp_path / "run", "Pendulum-v1", 200) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = connect(None, cpus=2, object_store_bytes=80 * 2**20)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(serving.app({"run": str(tmp_path / "run")}))
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        disconnect(own)


def answered(address: str, body: Any) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(address, data=json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_served_policy_answers_observations_as_the_loaded_one_and_says_what_else_is_wrong(
    address: str, tmp_path: Path
) -> None:
    obs_BO = np.array([[0.5, -0.5, 1.0], [-1.0, 0.0, -2.0]])
    action_BA = load(tmp_path / "run")(obs_BO)
    status, result = answered(address, {"obs": obs_BO.tolist()})
    assert status == 200 and result["action"] == action_BA.tolist()
    assert answered(address, {"obs": obs_BO[0].tolist()})[1]["action"] == pytest.approx(action_BA[0].tolist())
    for body, words in (({"obs": [1.0]}, "expected (3,) or (batch, 3)"), ([1.0], 'expected {"obs": ...}')):
        status, result = answered(address, body)
        assert status == 400 and words in result["error"]


def test_a_policy_that_remembers_is_not_served(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "load", lambda run: types.SimpleNamespace(remembers=True, algorithm="gac"))
    with pytest.raises(ValueError, match="runs/umaze is a run of gac, which carries something through each episode"):
        serving.Policy.func_or_class("runs/umaze")
