"""A video of a real environment, read back frame by frame."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import imageio.v3
import numpy as np
import pytest
from broken_envs import Walk
from linear_policy import LinearPolicy
from remembering_policy import RememberingPolicy
from tiny_runs import train_inline

from cluster.cli import main
from rollout_workers import renderer, video
from rollout_workers.actor import Actor
from rollout_workers.env import EnvError
from rollout_workers.envs import make_env
from rollout_workers.evaluator import Evaluator
from rollout_workers.renderer import NoRenderer, find_gl
from rollout_workers.video import record_video

UNLISTED = pytest.mark.filterwarnings("ignore:.*not in the possible render_modes")  # Gymnasium's, beside our error


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
    monkeypatch.setattr(renderer, "_PROBE", "raise SystemExit('libEGL.so.1 not found')")
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


class Undrawn(Walk):
    """Takes the argument and draws nothing; ``picture``: what render() returns."""

    picture: Any = NotImplementedError

    def __init__(self, **_: Any) -> None:
        super().__init__()

    def render(self) -> Any:
        if Undrawn.picture is NotImplementedError:
            raise NotImplementedError
        return Undrawn.picture(self.steps)


def lacks_pygame(steps: int) -> Any:
    raise gym.error.DependencyNotInstalled('pygame is not installed, run `pip install "gymnasium[classic-control]"`')


class Drawn(Undrawn):
    metadata = {"render_modes": ["rgb_array"], "render_fps": None}  # noqa: RUF012


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No search for a renderer of MuJoCo's, of which these environments need none."""
    monkeypatch.setenv("MUJOCO_GL", "egl")
    for kind in (Undrawn, Drawn):
        gym.register(f"{kind.__name__}-v0", kind, max_episode_steps=5)
    yield
    Undrawn.picture = NotImplementedError
    for kind in (Undrawn, Drawn):
        gym.registry.pop(f"{kind.__name__}-v0")


@UNLISTED
@pytest.mark.parametrize(
    ("kind", "picture", "expected"),
    [
        (
            Undrawn,
            NotImplementedError,
            r"raised NotImplementedError in render\(\).* in the render mode rgb_array, which",
        ),
        (Undrawn, lambda steps: None, r"drew NoneType, expected an array \(height, width, 3\), in the render mode rgb"),
        (
            Drawn,
            lambda steps: np.zeros((32, 32)),
            r"drew an array of shape \(32, 32\), expected .*3\): there is no video",
        ),
        (
            Drawn,
            lambda steps: np.zeros((16 + 2 * steps, 16, 3), np.uint8),
            "drew a picture that the video does not take",
        ),
        (Drawn, lacks_pygame, r"it lacks a package \(pygame is not installed.*\): .*install that package"),
    ],
    ids=["no render", "nothing", "grey", "another size", "no pygame"],
)
def test_an_environment_that_gives_no_picture_is_told_what_to_give(
    kind: type[Undrawn], picture: Any, expected: str, no_probe: None, tmp_path: Path
) -> None:
    Undrawn.picture = staticmethod(picture)
    actor = Actor(LinearPolicy(2, 1))
    actor.load(LinearPolicy(2, 1).weights(0))
    with pytest.raises(NoRenderer, match=expected) as caught:
        record_video(f"{kind.__name__}-v0", actor, tmp_path / "walk.mp4", seed=0)
    assert "MUJOCO_GL" not in str(caught.value) and not list(tmp_path.iterdir())


@UNLISTED
def test_an_environment_without_a_render_mode_is_told_to_take_one() -> None:
    with pytest.raises(EnvError, match=r"takes no render_mode .*it cannot be drawn; give its __init__ that argument"):
        make_env("Walk-v0", render_mode="rgb_array")


@UNLISTED
def test_the_score_is_printed_where_there_is_no_video(
    no_probe: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, video_path = str(tmp_path / "run"), str(tmp_path / "walk.mp4")
    assert train_inline(tmp_path / "run", "Undrawn-v0", 80) == 0
    capsys.readouterr()
    assert main(["evaluate", run, "--episodes", "2", "--video", video_path]) == 1
    out, err = capsys.readouterr()
    assert "over 2 deterministic episodes" in out and "video:" not in out
    assert err.splitlines()[-1].startswith("drawbridge: error: Undrawn-v0 raised NotImplementedError in render()")
    assert "Traceback" not in err and not Path(video_path).exists()
    assert main(["evaluate", run, "--episodes", "2", "--video", video_path, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert len(found["returns"]) == 2 and "there is no video of it" in found["no_video"]
    assert main(["evaluate", run, "--episodes", "2", "--video", str(tmp_path / "walk.gif")]) == 2
    out, err = capsys.readouterr()
    assert "expected '.mp4'" in err and "evaluating" not in err and not out  # before an hour of episodes
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", run, "--episodes", "2", "--video", str(tmp_path / "file" / "new" / "walk.mp4")])
    out, err = capsys.readouterr()
    assert f"{tmp_path / 'file' / 'new'} is no folder" in err and "evaluating" not in err and not out
    Undrawn.picture = staticmethod(lambda steps: np.zeros((16, 16, 3), np.uint8))  # whatever its metadata say
    assert main(["evaluate", run, "--episodes", "2", "--video", video_path]) == 0
    assert f"video: {video_path}" in capsys.readouterr().out and Path(video_path).exists()


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
