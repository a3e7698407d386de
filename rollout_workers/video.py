"""A video of one episode of the deterministic policy, through the environment's own renderer."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from rollout_workers.actor import Actor
from rollout_workers.env_ids import DM_CONTROL
from rollout_workers.envs import make_env
from rollout_workers.episodes import EpisodeGroup, run_episodes
from rollout_workers.evaluator import BrokenEpisodes, plan_streams
from rollout_workers.gym_vector import SyncEnvs, VectorBatchEnv
from rollout_workers.renderer import NoRenderer, choose_gl


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """A recorded episode."""

    path: Path
    frames: int
    fps: int
    episode_return: float  # undiscounted, of the steps recorded
    ended: bool  # whether the episode ended within them


def record_video(env_id: str, actor: Actor, path: Path | str, *, seed: int, max_steps: int = 1_000) -> Video:
    """Records the episode that an evaluation with this seed measures, at most ``max_steps`` env steps of it.

    ``path`` ends in .mp4 and is replaced only when the video is complete. Raises NoRenderer when no picture can be
    drawn here, with what to install. Sets MUJOCO_GL for this process when it was not set.
    """
    target = Path(path)
    check_mp4(target)
    gl_problem = choose_gl()
    camera = _Camera(make_env(env_id, render_mode="rgb_array"), env_id, gl_problem)
    env = VectorBatchEnv(SyncEnvs([lambda: camera], env_id), env_id=env_id)
    partial = target.with_name(f".{target.stem}.partial.mp4")

    def stop(group: EpisodeGroup, *_: object) -> None:
        if camera.failure is not None:
            raise camera.failure
        if group.length_E[0] >= max_steps:
            group.running_E[:] = False

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _writer(partial, camera.fps) as camera.writer:
            group = run_episodes(env, actor, [seed], plan_streams([seed]), after_step=stop)
        if group.errors:
            raise BrokenEpisodes(f"{env_id}: {group.errors[0]}, so there is no video; see what the policy makes of it")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        env.close()
    return Video(
        path=target,
        frames=camera.frames,
        fps=camera.fps,
        episode_return=float(group.return_E[0]),
        ended=camera.ended,
    )


def check_mp4(path: Path) -> None:
    """ValueError for a path that no video is written to."""
    if path.suffix != ".mp4":
        raise ValueError(f"{path} ends in {path.suffix!r}, expected '.mp4': nothing was recorded; name an .mp4 file")


class _Camera(gym.Wrapper):
    """Writes a picture of its first episode after the reset and after every step."""

    def __init__(self, env: gym.Env, env_id: str, gl_problem: str) -> None:
        super().__init__(env)
        self._env_id, self._gl_problem = env_id, gl_problem
        self.fps = int(env.metadata.get("render_fps") or 30)
        if env_id.startswith(DM_CONTROL):  # shimmy gives the milliseconds of a step there
            self.fps = round(1_000 / self.fps)
        self._draws = "rgb_array" in (env.metadata.get("render_modes") or ())
        self.writer: Any = None
        self.frames = 0
        self.failure: Exception | None = None  # raised in a step it would count as the environment's
        self.ended = False  # an environment is reset when its episode ends: the next one is not recorded

    def reset(self, **words: Any) -> Any:
        """See Gymnasium."""
        found = super().reset(**words)
        if not self.frames:
            self._write()
        return found

    def step(self, action: Any) -> Any:
        """See Gymnasium."""
        found = super().step(action)
        self._write()
        self.ended = self.ended or bool(found[2] or found[3])
        return found

    def _write(self) -> None:
        if self.ended or self.failure is not None:
            return
        try:
            self.writer.append_data(self.frame())
        except (NoRenderer, OSError) as error:
            self.failure = error
        except Exception as error:
            self.failure = NoRenderer(
                f"{self._env_id} drew a picture that the video does not take ({error}), expected all of one size and type: there is no video "
                "of it; return such from render()"
            )
        else:
            self.frames += 1

    def frame(self) -> np.ndarray:
        """The picture (height, width, 3) uint8 of the environment as it is, with even sides."""
        try:
            frame: Any = self.render()
        except Exception as error:
            if not self._draws:
                raise self._no_picture(f"raised {type(error).__name__} in render() ({error})") from error
            if isinstance(error, gym.error.DependencyNotInstalled | ImportError):
                raise NoRenderer(
                    f"{self._env_id} could not draw itself, because it lacks a package ({' '.join(str(error).split())}): there is no "
                    "video of it; install that package"
                ) from error
            raise NoRenderer(
                f"{self._env_id} could not draw itself with MUJOCO_GL={os.environ.get('MUJOCO_GL')} "
                f"({type(error).__name__}: {error}), so there is no video; "
                f"{self._gl_problem or 'install what it asks for, or unset MUJOCO_GL'}"
            ) from error
        if not isinstance(frame, np.ndarray):
            raise self._no_picture(f"drew {type(frame).__name__}")
        if frame.ndim != 3 or frame.shape[2] not in (3, 4):
            raise self._no_picture(f"drew an array of shape {frame.shape}")
        even: np.ndarray = frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2]
        return even

    def _no_picture(self, seen: str) -> NoRenderer:
        """For an environment that has no picture, or another kind of it."""
        modes = (
            "" if self._draws else ", in the render mode rgb_array, which its metadata['render_modes'] does not list"
        )
        return NoRenderer(
            f"{self._env_id} {seen}, expected an array (height, width, 3){modes}: there is no video of it; return "
            "that from render()"
        )


def _writer(path: Path, fps: int) -> Any:
    import imageio.v2

    options: dict[str, Any] = {"codec": "libx264", "macro_block_size": 2, "ffmpeg_log_level": "error"}
    return imageio.v2.get_writer(path, fps=fps, **options)
