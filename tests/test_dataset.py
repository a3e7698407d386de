"""Datasets: what is written is what is read, damage costs episodes and is counted, and metadata never runs code."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import multiprocessing
import os
import shutil
import signal
import sys
import textwrap
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay import dataset_import, dataset_writer
from replay.dataset import (
    Dataset,
    DatasetError,
    StoredEpisode,
    check_against,
    list_datasets,
    open_dataset,
    summarise,
    write_dataset,
)
from replay.dataset_import import import_dataset

BOX = gym.spaces.Box
ENV = "FixedGoal/PointMaze_UMaze-v3"
ID = "drawbridge/test-v0"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for datasets."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


def episode(seed: int, steps: int = 7, obs_dim: int = 4, action_dim: int = 2) -> StoredEpisode:
    rng = np.random.default_rng(seed)
    return StoredEpisode(
        index=seed,
        obs_TO=rng.standard_normal((steps, obs_dim)).astype(np.float32),
        action_TA=rng.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
        reward_T=rng.standard_normal(steps),
        terminated=seed % 3 == 0,
        truncated=seed % 3 == 1,
        next_obs_O=rng.standard_normal(obs_dim).astype(np.float32),
    )


def write(episodes: Any, dataset_id: str = ID, bound: float = 1.0, **about: Any) -> Dataset:
    fields = {"env_id": ENV, "action_low_A": np.full(2, -bound), "action_high_A": np.full(2, bound)} | about
    return write_dataset(dataset_id, episodes, **fields)


def minari_dataset(root: Path, episodes: list[dict[str, Any]], data_format: str = "hdf5", **spaces: gym.Space) -> Path:
    """A dataset as Minari itself writes it."""
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    data = root / "elsewhere" / "any-v3" / "data"
    data.mkdir(parents=True)
    obs = spaces.get("observation_space", BOX(-np.inf, np.inf, (3,), np.float64))
    action = spaces.get("action_space", BOX(-2, 2, (1,), np.float32))
    storage = MinariStorage.new(data, obs, action, EnvSpec("Elsewhere-v3"), data_format)
    storage.update_episodes(EpisodeBuffer(**fields) for fields in episodes)
    storage.update_metadata({"dataset_id": "elsewhere/any-v3", "minari_version": "0.5.4"})
    return data


def raw(steps: int = 4, **changes: Any) -> dict[str, Any]:
    fields = {
        "observations": np.arange(3.0 * (steps + 1)).reshape(-1, 3),
        "actions": np.linspace(-2, 2, steps, dtype=np.float32)[:, None],
        "rewards": np.arange(float(steps)),
        "terminations": np.zeros(steps, bool),
        "truncations": np.arange(steps) == steps - 1,
    }
    return fields | changes


def edit_metadata(data: Path, **changes: Any) -> None:
    metadata = json.loads((data / "metadata.json").read_text()) | changes
    (data / "metadata.json").write_text(json.dumps({k: v for k, v in metadata.items() if v is not None}))


def assert_same(one: StoredEpisode, other: StoredEpisode, tolerance: float = 0.0) -> None:
    for left, right in zip(one[1:], other[1:]):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


def test_what_is_written_is_read_back_bit_for_bit_and_by_plain_minari(root: Path) -> None:
    import minari

    written = [episode(seed, steps=2 + seed) for seed in range(5)]
    dataset = write(iter(written), random_return=-1.0, expert_return=3.0, expert="planner", description={"noise": 0.5})
    for index, (before, after) in enumerate(zip(written, dataset.episodes(), strict=True)):
        assert after.index == index and after.obs_TO.dtype == after.action_TA.dtype == np.float32
        assert_same(before, after)
    assert (dataset.env_id, dataset.expert, dataset.description) == (ENV, "planner", {"noise": 0.5})
    assert (dataset.total_episodes, dataset.total_steps, dataset.obs_dim, dataset.action_dim) == (5, 20, 4, 2)
    assert dataset.normalised(1.0) == 50.0
    plain = minari.load_dataset(ID)
    assert plain.total_steps == 20 and plain.spec.env_spec.id == ENV
    np.testing.assert_array_equal(plain[3].observations[-1], written[3].next_obs_O)
    assert minari.get_normalized_score(plain, np.array(1.0)) == 0.5
    assert list(minari.list_local_datasets()) == [ID] == [row.id for row in list_datasets()]
    assert minari.namespace.list_local_namespaces() == ["drawbridge"]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    bound=st.floats(0.1, 50),
    order=st.permutations(range(4)),
)
def test_actions_survive_any_box_and_episodes_come_in_the_order_asked(
    lengths: list[int], bound: float, order: list[int]
) -> None:
    written = [episode(seed, steps) for seed, steps in enumerate(lengths)]
    dataset = write(written, bound=bound, force=True)
    asked = [index for index in order if index < len(lengths)]
    for index, after in zip(asked, dataset.episodes(asked), strict=True):
        assert after.index == index
        assert_same(written[index], after, 1e-6)


@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_every_format_of_minari_is_read_dicts_flattened_and_actions_rescaled(root: Path, data_format: str) -> None:
    space = gym.spaces.Dict({"z": BOX(-9, 9, (2,)), "a": gym.spaces.Dict({"m": BOX(-9, 9, (1, 2))})})
    obs = {"z": np.arange(10.0).reshape(5, 2), "a": {"m": -np.arange(10.0).reshape(5, 1, 2)}}
    obs = {"z": obs["z"].astype(np.float32), "a": {"m": obs["a"]["m"].astype(np.float32)}}
    infos = {"success": np.zeros(5)}
    data = minari_dataset(root, [raw(observations=obs, infos=infos)] * 2, data_format, observation_space=space)
    dataset = open_dataset(data.parent)
    assert (dataset.obs_dim, dataset.action_dim, dataset.env_id) == (4, 1, "Elsewhere-v3")
    *_, second = dataset.episodes()
    flat_NO = np.concatenate([obs["a"]["m"].reshape(5, 2), obs["z"]], axis=1)
    np.testing.assert_array_equal(second.obs_TO, flat_NO[:-1])
    np.testing.assert_array_equal(second.next_obs_O, flat_NO[-1])
    np.testing.assert_allclose(second.action_TA[:, 0], np.linspace(-1, 1, 4), atol=1e-6)
    assert second.truncated and not second.terminated and second.reward_T.tolist() == [0, 1, 2, 3]


def test_actions_outside_their_box_are_clipped_and_counted(root: Path) -> None:
    dataset = open_dataset(minari_dataset(root, [raw(actions=np.float32([[0], [3], [-2], [-9]]))]))
    (found,) = dataset.episodes()
    assert found.action_TA[:, 0].tolist() == [0, 1, -1, -1] and dataset.clipped_steps == 2


REFUSED = {
    "observation not finite": raw(observations=np.full((5, 3), np.nan)),
    "action not finite": raw(actions=np.full((4, 1), np.inf, np.float32)),
    "reward not finite": raw(rewards=np.array([0, np.nan, 0, 0])),
    "wrong shape": raw(observations=np.zeros((4, 3))),
    "ends before its last step": raw(terminations=np.array([False, True, False, False])),
}


def test_unfit_episodes_are_refused_one_by_one_and_counted_by_reason(root: Path) -> None:
    episodes = [raw(), *REFUSED.values(), raw(observations=np.full((5, 3), 1e300)), raw()]
    dataset = open_dataset(minari_dataset(root, episodes))
    for _ in range(2):  # reading again counts nothing twice
        assert [found.index for found in dataset.episodes()] == [0, 7]
        expected = {reason: [index] for index, reason in enumerate(REFUSED, 1)}
        expected["observation not finite"].append(6)  # too large for float32
        assert dataset.refused == expected
    assert dataset.summary().episodes == 2


def test_an_episode_of_no_steps_is_too_short(root: Path) -> None:
    data = minari_dataset(root, [raw(), raw()])
    with h5py.File(data / "main_data.hdf5", "a") as file:
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            file[f"episode_0/{name}"].resize(0, axis=0)
        file["episode_0"].attrs["total_steps"] = 0
    dataset = open_dataset(data)
    assert [found.index for found in dataset.episodes()] == [1] and dataset.refused == {"too short": [0]}


def test_damaged_episodes_are_refused_and_the_others_read(root: Path) -> None:
    data = minari_dataset(root, [raw() for _ in range(6)])
    edit_metadata(data, total_episodes=7)
    with h5py.File(data / "main_data.hdf5", "a") as file:
        del file["episode_1/rewards"]
        for name in ("rewards", "terminations", "truncations", "actions"):
            file[f"episode_2/{name}"].resize(2, axis=0)
        file["episode_2/observations"].resize(3, axis=0)
        del file["episode_3/rewards"]
        file["episode_3/rewards"] = [b"no", b"num", b"ber", b"s"]
        del file["episode_4"]
    dataset = open_dataset(data)
    assert [found.index for found in dataset.episodes()] == [0, 5]
    assert dataset.refused == {"unreadable": [1, 3, 4, 6], "incomplete": [2]}


def test_damaged_arrow_files_cost_their_episodes_alone(root: Path) -> None:
    data = minari_dataset(root, [raw() for _ in range(4)], "arrow")
    part = next((data / "2").glob("*.arrow"))
    part.write_bytes(part.read_bytes()[:300])
    next((data / "1").glob("*.arrow")).unlink()
    dataset = open_dataset(data)
    assert [found.index for found in dataset.episodes()] == [0, 3] and dataset.refused == {"unreadable": [1, 2]}


def test_an_episode_of_one_step_is_read_unless_more_are_asked_for(root: Path) -> None:
    data = minari_dataset(root, [raw(1), raw()])
    assert [len(found.reward_T) for found in open_dataset(data).episodes()] == [1, 4]
    longer = open_dataset(data, shortest=2)
    assert [len(found.reward_T) for found in longer.episodes()] == [4] and longer.refused == {"too short": [0]}
    assert [len(found.reward_T) for found in write([episode(0, steps=1)]).episodes()] == [1]


def test_files_of_minari_0_4_are_named_as_such(root: Path) -> None:
    """They have their metadata in the HDF5 file: as Minari 0.4.3 writes them, which cannot be installed beside 0.5."""
    data = minari_dataset(root, [raw()])
    with h5py.File(data / "main_data.hdf5", "a") as file:
        file.attrs.update({"dataset_id": "elsewhere/any-v3", "minari_version": "~=0.4", "total_episodes": 1})
    (data / "metadata.json").unlink()
    for read in (
        lambda: open_dataset(data),
        lambda: open_dataset(data.parent),
        lambda: import_dataset(str(data.parent)),
    ):
        with pytest.raises(
            DatasetError,
            match=r"is of Minari ~=0.4 .*expected a metadata.json as Minari 0.5 .*nothing was read; import",
        ):
            read()


def test_a_cut_off_file_is_one_clear_error(root: Path) -> None:
    data = minari_dataset(root, [raw(60) for _ in range(20)])
    path = data / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DatasetError, match="cut off or damaged"):
        open_dataset(data)


def test_a_dataset_without_one_fit_episode_is_an_error(root: Path) -> None:
    dataset = open_dataset(minari_dataset(root, [REFUSED["wrong shape"], REFUSED["reward not finite"]]))
    with pytest.raises(DatasetError, match=r"every episode .* was refused \(1 wrong shape, 1 reward not finite\)"):
        dataset.summary()


def test_an_empty_dataset_is_an_error(root: Path) -> None:
    with pytest.raises(DatasetError, match="has no episodes"):
        open_dataset(minari_dataset(root, []))
    with pytest.raises(DatasetError, match="no episode of any steps"):
        write([episode(0, steps=0)])
    assert [row.id for row in list_datasets()] == ["elsewhere/any-v3"]


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ({"action_space": gym.spaces.Discrete(3)}, "continuous actions"),
        ({"observation_space": gym.spaces.Discrete(3)}, "no vectors of floats"),
        ({"observation_space": gym.spaces.Dict({"a": gym.spaces.Text(4)})}, r"any-v3 \['a'\].*no vectors"),
        ({"action_space": BOX(-np.inf, np.inf, (1,))}, "unbounded"),
        ({"action_space": BOX(0, 9, (1,), np.int64)}, "continuous actions"),
    ],
)
def test_spaces_that_no_policy_here_can_use_are_an_error(
    root: Path, spaces: dict[str, gym.Space], message: str
) -> None:
    data = minari_dataset(root, [], **spaces)
    edit_metadata(data, total_episodes=1)
    with pytest.raises(DatasetError, match=message):
        open_dataset(data)


def test_metadata_that_names_code_runs_none(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The poisoned metadata does make plain Minari run the code: the trap works, and is not sprung here."""
    trace = tmp_path / "trace"
    (tmp_path / "poison_maker.py").write_text(
        f"open({str(trace)!r}, 'a').write('imported')\n"
        f"def build(**kwargs):\n    open({str(trace)!r}, 'a').write('built')\n    raise RuntimeError('built')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    data = minari_dataset(root, [raw()])
    spec = EnvSpec("Poison-v0", entry_point="poison_maker:build").to_json()
    edit_metadata(data, env_spec=spec, eval_env_spec=spec, observation_space=None, action_space=None)
    shutil.copytree(data, tmp_path / "copy")
    for read in (lambda: open_dataset(data), lambda: import_dataset(str(tmp_path / "copy"), force=True)):
        with pytest.raises(DatasetError, match=r"no observation_space in its metadata.*'Poison-v0'"):
            read()
    assert not trace.exists() and "poison_maker" not in sys.modules
    edit_metadata(
        data,
        observation_space=json.dumps(
            {"type": "Box", "dtype": "float64", "shape": [3], "low": [-9] * 3, "high": [9] * 3}
        ),
    )
    with pytest.raises(DatasetError, match="no action_space"):
        open_dataset(data)
    edit_metadata(
        data, action_space=json.dumps({"type": "Box", "dtype": "float32", "shape": [1], "low": [-2], "high": [2]})
    )
    dataset = open_dataset(data)
    assert (
        dataset.env_id == "Poison-v0"
        and len(list(dataset.episodes())) == 1
        and list_datasets()[0].env_id == "Poison-v0"
    )
    assert not trace.exists() and "poison_maker" not in sys.modules
    edit_metadata(data, observation_space=None)
    import minari

    with pytest.raises(RuntimeError, match="built"):
        minari.load_dataset("elsewhere/any-v3")
    assert trace.read_text() == "importedbuilt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observation_space": "os.system"}, "cannot be read"),
        ({"observation_space": json.dumps({"type": "Evil"})}, "cannot be read"),
        ({"data_format": "pickle"}, "expected one of hdf5, arrow, parquet"),
        ({"total_episodes": -1}, "total_episodes = -1"),
        ({"total_steps": "9"}, "total_steps = '9'"),
        ({"dataset_id": None}, "dataset_id = None"),
        ({"dataset_id": "\ud800"}, "cannot be read"),
        ({"total_episodes": 10**12}, "1,000,000,000,000 episodes by its metadata and 1 in its files"),
    ],
)
def test_metadata_that_makes_no_sense_is_an_error(root: Path, changes: dict[str, Any], message: str) -> None:
    data = minari_dataset(root, [raw()])
    edit_metadata(data, **changes)
    with pytest.raises(DatasetError, match=message):
        open_dataset(data)


def test_a_dataset_that_is_not_there_and_an_index_outside_say_so() -> None:
    with pytest.raises(DatasetError, match="dataset list"):
        open_dataset("drawbridge/none-v0")
    with pytest.raises(DatasetError, match="expected 0 to 0"):
        list(write([episode(0)]).episodes([1]))


@pytest.mark.parametrize("dataset_id", ["no-version", "../up-v0", "/abs-v0", "a b-v0", "a//b-v0", ""])
def test_an_id_that_is_none_is_an_error(dataset_id: str, root: Path) -> None:
    with pytest.raises(DatasetError, match="is no dataset id"):
        write([episode(0)], dataset_id)
    assert not root.exists()


def test_without_h5py_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    write([episode(0)])
    monkeypatch.setitem(sys.modules, "h5py", None)
    monkeypatch.delitem(sys.modules, "minari.dataset._storages.hdf5_storage", raising=False)
    for use in (lambda: open_dataset(ID), lambda: write([episode(0)], "drawbridge/other-v0")):
        with pytest.raises(DatasetError, match="pip install h5py"):
            use()


def test_a_dataset_of_other_shapes_or_another_action_box_names_both_sides() -> None:
    dataset = write([episode(0)])
    one_2 = np.ones(2)
    check_against(dataset, ENV, 4, -one_2, one_2)
    with pytest.raises(
        DatasetError, match=rf"is of {ENV} .*observations of 4, actions of 2 .*observations of 11, actions of 3"
    ):
        check_against(dataset, "Hopper-v5", 11, -np.ones(3), np.ones(3))
    with pytest.raises(
        DatasetError, match=r"actions from \[-1.0, -1.0\] to \[1.0, 1.0\], expected .*-1.0\] to \[1.0, 3.0\] as in A-v0"
    ):
        check_against(dataset, "A-v0", 4, -one_2, np.array([1.0, 3.0]))


def test_the_summary_of_one_pass_is_that_of_all_the_data_at_once() -> None:
    """The twin: everything in memory, numpy's own statistics. A large mean shows sums of squares that cancel."""
    episodes = [episode(seed, steps=2 + 3 * seed) for seed in range(6)]
    episodes = [one._replace(obs_TO=one.obs_TO + 1000) for one in episodes]
    summary = summarise(iter(episodes))
    obs_NO = np.concatenate([one.obs_TO for one in episodes]).astype(np.float64)
    action_NA = np.concatenate([one.action_TA for one in episodes]).astype(np.float64)
    returns = [one.reward_T.sum() for one in episodes]
    np.testing.assert_allclose(summary.obs_mean_O, obs_NO.mean(0), rtol=1e-12)
    np.testing.assert_allclose(summary.obs_std_O, obs_NO.std(0), rtol=1e-9)
    np.testing.assert_allclose(summary.action_mean_A, action_NA.mean(0), atol=1e-12)
    np.testing.assert_allclose(summary.action_std_A, action_NA.std(0), rtol=1e-9)
    assert summary.return_mean == pytest.approx(np.mean(returns)) and summary.return_std == pytest.approx(
        np.std(returns)
    )
    assert (summary.return_min, summary.return_max) == (min(returns), max(returns))
    assert len(summary.return_quantiles) == 101 and summary.return_quantiles[50] == pytest.approx(np.median(returns))
    assert (summary.max_length, summary.episodes, summary.steps) == (17, 6, len(obs_NO))


def test_constant_data_has_the_least_spread_not_none() -> None:
    still = episode(0)._replace(obs_TO=np.ones((7, 4), np.float32), action_TA=np.zeros((7, 2), np.float32))
    summary = summarise([still, still])
    assert summary.obs_std_O.tolist() == [1e-3] * 4 and summary.action_std_A.tolist() == [1e-3] * 2
    assert summary.return_std == 1e-6


def test_episodes_stream_through_writer_and_reader_one_at_a_time() -> None:
    alive = [0]

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive[0] -= 1

    def stream() -> Iterator[StoredEpisode]:
        for seed in range(30):
            one = episode(seed)
            alive[0] += 1
            yield one._replace(reward_T=one.reward_T.view(Counted))
            assert alive[0] <= 3

    assert write(stream()).total_episodes == 30


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_writer_that_fails_leaves_nothing_and_an_older_dataset_as_it_was(root: Path, failure: type) -> None:
    def stream() -> Iterator[StoredEpisode]:
        yield episode(0)
        raise failure("in the middle")

    with pytest.raises(failure):
        write(stream())
    assert not list_datasets()
    write([episode(5)])
    with pytest.raises(failure):
        write(stream(), force=True)
    assert_same(next(open_dataset(ID).episodes()), episode(5))
    assert not [path for path in (root / dataset_writer.STAGING).iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (episode(1)._replace(reward_T=np.full(7, np.nan)), "reward_T has values that are not finite"),
        (episode(1, obs_dim=5), r"obs_TO has the shape \(7, 5\), expected \(7, 4\)"),
        (episode(1)._replace(action_TA=np.full((7, 2), 1.5, np.float32)), r"expected \[-1, 1\]"),
    ],
)
def test_an_unfit_episode_is_not_written(bad: StoredEpisode, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        write([episode(0), bad])
    assert not list_datasets()


def test_an_existing_id_is_left_alone_unless_forced(root: Path) -> None:
    write([episode(0)])
    asked = []
    with pytest.raises(DatasetError, match="--force"):
        write(asked.append(seed) or episode(seed) for seed in range(2))
    assert not asked, "it is said before anything is collected"
    assert write([episode(1), episode(2)], force=True).total_episodes == 2
    (root / "drawbridge" / "space-v0").mkdir()
    with pytest.raises(DatasetError, match="is no dataset"):
        write([episode(0)], "drawbridge/space-v0", force=True)


def test_a_dataset_that_was_moved_aside_when_its_writer_was_killed_comes_back(root: Path) -> None:
    write([episode(5)])
    (root / ID).rename(root / dataset_writer.STAGING / "drawbridge--test-v0.old")
    with pytest.raises(DatasetError, match="--force"):
        write([episode(0)])
    assert_same(next(open_dataset(ID).episodes()), episode(5))
    assert write([episode(0)], force=True).total_episodes == 1
    assert not [path for path in (root / dataset_writer.STAGING).iterdir() if path.is_dir()]


def endless(pipe: Any) -> None:
    def stream() -> Iterator[StoredEpisode]:
        for seed in range(10**9):
            if seed == 3:
                pipe.send("writing")
            if seed > 3:
                signal.pause()
            yield episode(seed)

    write(stream())


def test_a_folder_that_cannot_be_written_is_named_before_a_single_episode_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "datasets"))
    with pytest.raises(DatasetError, match=r"cannot be written to.*nothing was written.*set MINARI_DATASETS_PATH"):
        dataset_writer.check_can_write(ID, force=False)


def test_a_killed_writer_leaves_no_dataset_and_nobody_writes_beside_it(root: Path) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    writer = context.Process(target=endless, args=(there,))
    writer.start()
    try:
        assert here.poll(60) and here.recv() == "writing"
        with pytest.raises(DatasetError, match="another process is writing"):  # before a single episode is made
            dataset_writer.check_can_write(ID, force=False)
        with pytest.raises(DatasetError, match="another process is writing"):
            write([episode(0)])
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.join(60)
    assert not list_datasets() and not (root / ID).exists()
    assert (root / dataset_writer.STAGING / "drawbridge--test-v0").is_dir()
    assert write([episode(0)]).total_episodes == 1
    assert not (root / dataset_writer.STAGING / "drawbridge--test-v0").exists()


@pytest.mark.parametrize(
    ("dataset_id", "env_id", "value", "score"),
    [
        ("d4rl/maze2d-medium-v1", "PointMaze_Medium-v3", 145.26, 50.0),
        ("mujoco/hopper/medium-v0", "Hopper-v5", -20.272305, 0.0),
        ("mujoco/halfcheetah/medium-v0", "module:HalfCheetah-v5", 12135.0, 100.0),
        ("other/walker2d-v0", "Walker2d-v4", 4592.3, 100.0),
        ("other/ant-v0", "Ant-v5", 0.0, None),
        ("d4rl/maze2d-medium-v1-cut-v0", "PointMaze_Medium-v3", 1.0, None),
    ],
)
def test_a_dataset_without_references_is_scored_by_d4rls_where_they_are_of_its_task(
    dataset_id: str, env_id: str, value: float, score: float | None
) -> None:
    about = {"env_id": env_id, "action_low_A": -np.ones(2), "action_high_A": np.ones(2)}
    made = write_dataset(dataset_id, [episode(0)], **about)
    assert made.normalised(value) == (score if score is None else pytest.approx(score))
    assert made.expert.startswith("D4RL's expert of") == (score is not None)
    own = write_dataset(
        dataset_id, [episode(0)], **about, random_return=0.0, expert_return=10.0, expert="us", force=True
    )
    assert (own.normalised(5.0), own.expert) == (50.0, "us")


def test_a_folder_is_imported_under_its_own_id(root: Path, tmp_path: Path) -> None:
    made = write([episode(0)])
    away = tmp_path / "away"
    (root / ID).rename(away)
    assert not list_datasets()
    assert import_dataset(str(away)).id == made.id
    with pytest.raises(DatasetError, match="--force"):
        import_dataset(str(away))
    (away / "data" / "main_data.hdf5").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="cut off or damaged"):
        import_dataset(str(away), force=True)
    assert_same(next(open_dataset(ID).episodes()), episode(0))


def test_a_folder_with_a_link_in_it_is_not_imported(root: Path, tmp_path: Path) -> None:
    write([episode(0)])
    away = tmp_path / "away"
    (root / ID).rename(away)
    (tmp_path / "secret").write_text("of this machine")
    (away / "data" / "more").symlink_to(tmp_path / "secret")
    with pytest.raises(DatasetError, match=r"data/more is a link.*nothing was imported"):
        import_dataset(str(away))
    assert not list_datasets()


def test_links_that_lead_in_a_circle_are_not_followed_and_one_to_a_dataset_is(root: Path, tmp_path: Path) -> None:
    write([episode(0)])
    (root / ID).rename(tmp_path / "away")
    (root / "linked-v0").symlink_to(tmp_path / "away")
    for name in ("here", "there"):
        (root / name).symlink_to(root)
    assert [row.id for row in list_datasets()] == ["linked-v0"]


def test_a_remote_that_cannot_be_reached_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setenv("MINARI_REMOTE", "nowhere://none")
    with pytest.raises(DatasetError, match=r"nowhere://none did not give D4RL/pointmaze/umaze-v2 .*import the folder"):
        import_dataset("D4RL/pointmaze/umaze-v2")
    monkeypatch.setattr(dataset_import, "_CHECK_REACHABLE", "import time; time.sleep(600)")
    monkeypatch.setattr(dataset_import, "REACH_S", 0.5)
    with pytest.raises(DatasetError, match=r"within 0 s.*--timeout"):
        import_dataset("D4RL/pointmaze/umaze-v2")
    assert not list_datasets()


def test_a_download_is_checked_and_put_in_place(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path) -> None:
    """Only the network is replaced: what runs in the other process copies from a folder."""
    write([episode(0)])
    (root / ID).rename(tmp_path / "remote")
    copy = f"""
        import os, shutil, sys
        shutil.copytree({str(tmp_path / "remote")!r}, os.path.join(os.environ["MINARI_DATASETS_PATH"], sys.argv[2]))
    """
    monkeypatch.setattr(dataset_import, "_CHECK_REACHABLE", "pass")
    monkeypatch.setattr(dataset_import, "_DOWNLOAD", textwrap.dedent(copy))
    with pytest.raises(DatasetError, match=f"calls itself {ID}"):
        import_dataset("drawbridge/other-v0")
    assert import_dataset(f"hf://somebody/{ID}").total_episodes == 1
    assert [row.id for row in list_datasets()] == [ID]


@contextlib.contextmanager
def hub(repository: Path, name: str) -> Iterator[str]:
    """A Hugging Face hub on this machine with one dataset repository, whose files are those of a folder; its address."""
    files = {
        path.relative_to(repository).as_posix(): path.read_bytes() for path in repository.rglob("*") if path.is_file()
    }
    commit = "0123456789abcdef0123456789abcdef01234567"

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
            api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve/"
            entries = [
                {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for p, b in files.items()
            ]
            if path == "/api/datasets":
                self.give([{"id": name, "sha": commit}])
            elif path.startswith(f"{api}/tree/"):
                self.give(entries)
            elif path.startswith(api):
                self.give({"id": name, "sha": commit, "siblings": [{"rfilename": p} for p in files]})
            elif path.startswith(resolve) and (file := path.removeprefix(resolve).split("/", 1)[1]) in files:
                self.give(files[file], ETag=f'"{hashlib.sha1(files[file]).hexdigest()}"')
            else:
                self.give({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def give(self, body: Any, status: int = 200, **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for key, value in ({"Content-Length": str(len(data)), "X-Repo-Commit": commit} | headers).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *words: Any) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(60)
        server.server_close()


def test_an_id_of_a_hugging_face_hub_is_downloaded_by_minaris_own_client(
    monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path
) -> None:
    write([episode(0), episode(1)], "tiny/one-v0")
    (root / "tiny").rename(tmp_path / "tiny")
    (tmp_path / "tiny" / "namespace_metadata.json").write_text(json.dumps({"datasets": ["tiny/one-v0"]}))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    with hub(tmp_path / "tiny", "fakes/tiny") as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        made = import_dataset("hf://fakes/tiny/one-v0")
        assert made.id == "tiny/one-v0" and made.path == root / "tiny" / "one-v0" / "data"
        for one, seed in zip(made.episodes(), (0, 1), strict=True):
            assert_same(one, episode(seed))
        with pytest.raises(DatasetError, match=r"hf://fakes did not give tiny/two-v0 .*nothing was imported"):
            import_dataset("hf://fakes/tiny/two-v0")
    assert [row.id for row in list_datasets()] == ["tiny/one-v0"]


def test_a_misplaced_or_damaged_dataset_has_its_problem_in_the_list(root: Path) -> None:
    write([episode(0)])
    (root / ID).rename(root / "moved-v0")
    (root / "torn-v0" / "data").mkdir(parents=True)
    moved, torn = list_datasets()
    assert moved.problem == f"its metadata calls it {ID}" and "cannot be read" in torn.problem
