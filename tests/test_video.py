"""A video of a real environment, read back frame by frame."""

from __future__ import annotations

import os
from pathlib import Path

import imageio.v3
import numpy as np
import pytest
from linear_policy import LinearPolicy
from remembering_policy import RememberingPolicy

from rollout_workers import video
from rollout_workers.actor import Actor
from rollout_workers.evaluator import Evaluator
from rollout_workers.video import NoRenderer, find_gl, record_video


@pytest.fixture(scope="module")
def gl() -> str:
    try:
        return find_gl()
    except NoRenderer as error:
        pytest.skip(str(error))


def swimmer_actor() -> Actor:
    policy = LinearPolicy(8, 2)
    actor = Actor(policy)
    actor.load(policy.weights(0))
    return actor


def test_a_video_has_one_picture_a_step_and_its_pictures_change(
    gl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", gl)
    path = tmp_path / "videos" / "swim.mp4"
    recorded = record_video("Swimmer-v5", swimmer_actor(), path, seed=3, max_steps=12)
    frames = imageio.v3.imread(path)
    assert frames.shape[0] == recorded.frames == 13
    assert frames[0].std() > 5
    assert np.abs(frames[0].astype(int) - frames[-1]).max() > 20
    assert not recorded.ended
    assert [p.name for p in path.parent.iterdir()] == ["swim.mp4"]


def test_a_machine_without_a_renderer_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_PROBE", "raise SystemExit('libEGL.so.1 not found')")
    with pytest.raises(NoRenderer, match=r"libEGL.so.1 not found.*apt-get install libegl1"):
        find_gl()


def test_a_failed_video_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", os.environ.get("MUJOCO_GL", "egl"))
    path = tmp_path / "swim.mp4"
    path.write_bytes(b"old")
    monkeypatch.setattr(video._Camera, "frame", _no_picture)
    with pytest.raises(NoRenderer, match=r"^no picture$"):  # not as a fault of the environment
        record_video("Swimmer-v5", swimmer_actor(), path, seed=0, max_steps=2)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("swim.mp4", b"old")]


def _no_picture(*_: object) -> np.ndarray:
    raise NoRenderer("no picture")


def test_a_name_that_is_no_mp4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'\.gif', expected '\.mp4'"):
        record_video("Swimmer-v5", swimmer_actor(), tmp_path / "swim.gif", seed=0)


@pytest.mark.parametrize("kind", [LinearPolicy, RememberingPolicy])
def test_a_video_shows_the_episode_that_an_evaluation_measures(
    gl: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[LinearPolicy] | type[RememberingPolicy]
) -> None:
    monkeypatch.setenv("MUJOCO_GL", gl)
    policy = kind(4, 1)
    weights = policy.weights(2)
    actor = Actor(policy)
    actor.load(weights)
    recorded = record_video("InvertedPendulum-v5", actor, tmp_path / "pole.mp4", seed=11)
    if isinstance(policy, RememberingPolicy):
        assert [envs for envs, _, _ in policy.begun] == [[0]]
    measured = Evaluator("InvertedPendulum-v5", kind(4, 1)).evaluate(weights, episodes=1, seed=11)
    assert recorded.ended and recorded.episode_return == measured.returns[0]
    assert recorded.frames == measured.lengths[0] + 1
    assert imageio.v3.imread(recorded.path).shape[0] == recorded.frames
