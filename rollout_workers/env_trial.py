"""One reset and one step of an environment before a run starts: what no worker could use is found here."""

from __future__ import annotations

import threading

import numpy as np

from rollout_workers.batch_env import EnvError
from rollout_workers.envs import make_batch_env


def try_env(env_id: str, fast: bool, deadline_s: float) -> None:
    """Resets and steps one environment as a worker does, with an action in the middle of its box.

    Args:
        fast: whether the batched path is taken where there is one.
        deadline_s: for both together; an environment that hangs is left to its own thread.

    Raises:
        EnvError: it raised, hung, or returned what cannot be stored.
    """
    raised: list[BaseException] = []

    def trial() -> None:
        try:
            _trial(env_id, fast)
        except BaseException as error:  # also SystemExit, which would end a worker
            raised.append(error)

    thread = threading.Thread(target=trial, name="env-trial", daemon=True)
    thread.start()
    thread.join(deadline_s)
    if thread.is_alive():
        raise EnvError(
            f"{env_id} did not finish one reset and one step within worker.step_timeout_s {deadline_s:g} s: every worker would be taken for "
            "a hung one; see what it waits for, or raise worker.step_timeout_s"
        )
    if raised and isinstance(raised[0], EnvError):
        raise raised[0]
    if raised:
        error = raised[0]
        raise EnvError(
            f"{env_id} raised {type(error).__name__} in its first reset or step ({error}), expected Gymnasium's reset(seed=, options=) -> "
            "(observation, info) and step(action) -> (observation, reward, terminated, truncated, info): no worker could run it; correct "
            "the environment, or wrap it"
        ) from error


def _trial(env_id: str, fast: bool) -> None:
    env = make_batch_env(env_id, 1, 0, fast)
    try:
        env.reset()
        result = env.step(np.zeros((1, env.action_dim), np.float32))
        if not np.isfinite(result.reward_E).all():
            raise EnvError(
                f"{env_id} returned a reward in its first step that is no finite number (None counts as none), expected one: no row of "
                "it could be stored; return a float from step()"
            )
    finally:
        env.close()
