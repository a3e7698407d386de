"""One episode of the deterministic policy as a film, through the environment's own renderer."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import SeedSequence

from rollout_workers.acting import Actor
from rollout_workers.env import ActionBox, close_or_warn, flatten_observation
from rollout_workers.envs import make_env
from rollout_workers.evaluator import plan_streams
from rollout_workers.planning import PlanActor

PACKAGES = {"egl": "libegl1 libopengl0 libgl1", "osmesa": "libosmesa6 libgl1"}  # Debian and Ubuntu names
PROBE_TIMEOUT_S = 60.0
PLANS = 2  # spawn key of an episode's plan, as in an evaluation
_PROBE = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"


class NoRenderer(RuntimeError):
    """No picture can be drawn on this machine."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """What was filmed."""

    path: Path
    frames: int
    fps: int
    episode_return: float  # undiscounted, of the steps filmed
    ended: bool  # whether the episode ended within them


def record_video(
    env_id: str, actor: Actor | PlanActor, path: Path | str, *, seed: int, max_steps: int = 1_000
) -> Video:
    """Films one episode, reset with ``seed``, of ``actor`` without noise, at most ``max_steps`` env steps.

    A PlanActor makes the plan that it would have in an evaluation with this seed.

    ``path`` ends in .mp4 and is replaced only when the film is complete. Raises NoRenderer when no picture can be
    drawn here, with what to install. Sets MUJOCO_GL for this process when it was not set.
    """
    target = Path(path)
    if target.suffix != ".mp4":
        raise ValueError(f"{target} ends in {target.suffix!r}, expected '.mp4': nothing was filmed; name an .mp4 file")
    camera = _Camera(env_id)
    partial = target.with_name(f".{target.stem}.partial.mp4")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        video = _film(camera, actor, target, partial, seed, max_steps)
        partial.replace(target)
        return video
    finally:
        partial.unlink(missing_ok=True)
        close_or_warn(camera.env, env_id)


def find_gl() -> str:
    """The first of MuJoCo's off-screen renderers that starts here, "egl" or "osmesa"; tried in processes of their own.

    A process can load one of them only once, and a missing library may end it. Raises NoRenderer.
    """
    seen = []
    for name in PACKAGES:
        environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        try:
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            seen.append(f"{name}: no answer in {PROBE_TIMEOUT_S:g} s")
            continue
        if probe.returncode == 0:
            return name
        lines = probe.stderr.strip().splitlines() or [f"ended with code {probe.returncode}"]
        seen.append(f"{name}: {lines[-1]}")
    install = " or ".join(f"`apt-get install {packages}` (for {name})" for name, packages in PACKAGES.items())
    raise NoRenderer(
        f"MuJoCo's off-screen renderers do not start here ({'; '.join(seen)}), expected one of them to: there is no "
        f"video; on Debian or Ubuntu {install}"
    )


class _Camera:
    """An environment that can be asked for pictures."""

    def __init__(self, env_id: str) -> None:
        self._env_id = env_id
        self._gl_problem = _choose_gl()
        self.env: Any = make_env(env_id, render_mode="rgb_array")
        self.box = ActionBox(self.env.action_space, env_id)
        self.fps = int(self.env.metadata.get("render_fps", 30))

    def frame(self) -> np.ndarray:
        """The picture (height, width, 3) uint8 of the environment as it is, with even sides."""
        try:
            frame = self.env.render()
        except Exception as error:
            raise NoRenderer(
                f"{self._env_id} could not draw itself with MUJOCO_GL={os.environ.get('MUJOCO_GL')} "
                f"({type(error).__name__}: {error}), so there is no video; "
                f"{self._gl_problem or 'install what it asks for, or unset MUJOCO_GL'}"
            ) from error
        if not isinstance(frame, np.ndarray):
            raise NoRenderer(
                f"{self._env_id} drew {type(frame).__name__}, expected an array (height, width, 3): there is no "
                "video of it; choose an environment with the render mode rgb_array"
            )
        return frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]


def _film(camera: _Camera, actor: Actor | PlanActor, target: Path, partial: Path, seed: int, max_steps: int) -> Video:
    import imageio.v2

    options: dict[str, Any] = {"codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    writer: Any = imageio.v2.get_writer(partial, fps=camera.fps, **options)
    total, ended, frames, reward = 0.0, False, 1, 0.0
    with writer:
        obs, _ = camera.env.reset(seed=seed)
        writer.append_data(camera.frame())
        act = _deterministic(actor, flatten_observation(obs)[None], seed)
        while not ended and frames <= max_steps:
            action_EA = act(flatten_observation(obs)[None], np.array([reward], np.float32))
            obs, reward, terminated, truncated, _ = camera.env.step(camera.box.rescale(action_EA)[0])
            writer.append_data(camera.frame())
            total, ended, frames = total + float(reward), bool(terminated or truncated), frames + 1
    return Video(path=target, frames=frames, fps=camera.fps, episode_return=total, ended=ended)


def _deterministic(
    actor: Actor | PlanActor, obs_EO: np.ndarray, seed: int
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(obs_EO, reward_E) -> action_EA of one episode that begins with ``obs_EO``."""
    if isinstance(actor, PlanActor):
        actor.reset(1)
        actor.begin(np.arange(1), obs_EO, plan_streams([seed]))
        return actor.act
    noise = actor.no_noise(1)
    return lambda obs_EO, reward_E: actor.act(obs_EO, noise)


def _episode(actor: Actor | PlanActor, obs_1O: np.ndarray, seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Begins an episode; what gives its actions (1, A) for an observation (1, O) and what the last action brought (1,)."""
    if isinstance(actor, PlanActor):
        actor.reset(1)
        actor.begin(np.zeros(1, np.int64), obs_1O, [SeedSequence(seed, spawn_key=(PLANS,))])
        return actor.act
    noise = actor.no_noise(1)
    return lambda obs_1O, reward_1: actor.act(obs_1O, noise)


def _choose_gl() -> str:
    """Sets MUJOCO_GL for this process unless it is set; what is wrong with MuJoCo's renderers here, "" if nothing."""
    if "MUJOCO_GL" not in os.environ:
        try:
            os.environ["MUJOCO_GL"] = find_gl()
        except NoRenderer as error:  # not raised: an environment that is not MuJoCo's may still draw itself
            return str(error)
    return ""
