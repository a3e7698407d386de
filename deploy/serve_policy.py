"""Serves the deterministic policy of a run over HTTP with Ray Serve; in the folder of the project, with the extra ``serve``:

    serve run deploy.serve_policy:app run=/shared/runs/hopper
    curl --data '{"obs": [[0.5, -0.5, 1.0]]}' http://127.0.0.1:8000

``obs`` is an observation or a batch of them, and so is the answer's ``action``. docs/policies.md says more.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import JSONResponse

from drawbridge import load


@serve.deployment
class Policy:
    """One copy of the policy. Ray Serve starts as many as it is asked for; requests go to any of them."""

    def __init__(self, run: str) -> None:
        self.policy = load(run)
        if self.policy.remembers:
            raise ValueError(
                f"{run} is a run of {self.policy.algorithm}, which carries something through each episode, expected a policy of single "
                "observations: the episodes of several clients would mix; let each client load it"
            )

    async def __call__(self, request: Request) -> JSONResponse:
        """The actions for what was sent; 400 and the reason for what is no observation."""
        try:
            sent: Any = await request.json()
            if not isinstance(sent, dict) or "obs" not in sent:
                raise ValueError('the request has no "obs", expected {"obs": ...}: no action was taken')
            return JSONResponse({"action": self.policy(sent["obs"]).tolist()})
        except (ValueError, TypeError) as error:
            return JSONResponse({"error": str(error)}, status_code=400)


def app(arguments: dict[str, str]) -> Application:
    """What ``serve run`` starts; ``run`` is the run directory, which every node must see."""
    return Policy.bind(arguments["run"])
