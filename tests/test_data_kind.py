"""What is refused before a run on whole episodes starts, and what it is reckoned to take of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_episodes import DATASET, STEPS, TINY, TINY_GAC, make_dataset

from algorithms import ALGORITHMS, compiled
from cluster.checks import LIGHT_BYTES, PROCESS_BYTES, make_spec, memory_bytes, spec_of
from cluster.commands.train import new_run
from cluster.config import RunConfig, make_preset, override
from cluster.data_kind import kind_of
from cluster.errors import UsageError
from cluster.graph import RunSpec, make_shard
from cluster.run_dir import RunDirectory
from replay.shard import Shard

EPISODES = 8


@pytest.fixture(autouse=True)
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "data", monkeypatch, EPISODES)


def config_of(algorithm: str = "gac", **settings: object) -> RunConfig:
    given = {"env": "Pendulum-v1"} | ({"dataset": DATASET} if ALGORITHMS[algorithm].items == "episodes" else {})
    given |= TINY | TINY_GAC if algorithm == "gac" else {}
    merged = given | {key.replace("__", "."): value for key, value in settings.items()}
    return override(make_preset(algorithm, "cpu"), {key: str(value) for key, value in merged.items()})


def refused(path: Path, config: RunConfig) -> str:
    with pytest.raises(UsageError) as caught:
        make_spec(config, RunDirectory(path / "run"), 0)
    assert "nothing was started" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("stage", "episodes", "updates", "expected"),
    [
        (0, 0, 30, "before stage 1 of 3, update 30 of 40 on the dataset"),
        (1, 0, 40, "stage 1 of 3, gathering 0 of 6 episodes"),
        (1, 6, 45, "stage 1 of 3, update 5 of 20"),
        (2, 8, 60, "stage 2 of 3, gathering 2 of 6 episodes"),
        (3, 18, 100, "stage 3 of 3, update 20 of 20"),
    ],
)
def test_a_run_in_stages_says_what_it_is_at(stage: int, episodes: int, updates: int, expected: str) -> None:
    stages = {"online__stages": 3, "online__episodes_per_stage": 5, "online__updates_per_stage": 20}
    config = config_of(steps=100, replay__shards=2, **stages)  # 3 episodes a stage in each shard
    assert kind_of(config).phase(config, {"stage": stage, "online_episodes": episodes, "updates": updates}) == expected
    assert kind_of(config_of()).phase(config_of(), {"stage": 0, "updates": updates}) == ""


REFUSED = {
    "fewer episodes than shards": (
        {"online__stages": 1, "online__updates_per_stage": 5, "steps": 10, "online__episodes_per_stage": 1, "replay__shards": 2},
        ("online.episodes_per_stage is 1", "at least replay.shards 2", "fewer shards"),
    ),
    "a run that is shorter than its stages": (
        {"online__stages": 3, "online__updates_per_stage": 100, "steps": 40},
        ("steps is 40", "expected at least 300", "over before its stages"),
    ),
    "random steps": (
        {"online__stages": 1, "online__updates_per_stage": 5, "steps": 10, "worker__random_steps": 100},
        ("worker.random_steps is 100", "cannot be combined with a policy that plans"),
    ),
    "a ring that cannot hold what runs": (
        {"online__stages": 1, "online__updates_per_stage": 5, "steps": 10, "replay__capacity_rows": 700},
        ("replay.capacity_rows is 700", f"expected at least {2 * 2 * STEPS}", "partial episodes"),
    ),
    "more shards than episodes": ({"replay__shards": EPISODES + 1}, (f"has {EPISODES} episodes", "use fewer shards")),
    "no room for the longest episode": (
        {"data__offline_capacity_rows": 300, "replay__shards": 2},
        (f"has an episode of {STEPS} steps", f"raise it to at least {2 * STEPS}"),
    ),
    "no shard": ({"replay__shards": 0}, ("replay.shards is 0", "nowhere to store")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_never_be_gathered_or_learned_is_refused(tmp_path: Path, name: str) -> None:
    settings, words = REFUSED[name]
    result = refused(tmp_path, config_of(**settings))
    assert all(word in result for word in words), result


@pytest.mark.parametrize("algorithm", ["softgac", "bc"])
def test_stages_of_an_algorithm_that_makes_none_are_refused(tmp_path: Path, algorithm: str) -> None:
    result = refused(tmp_path, config_of(algorithm, online__stages=3, online__episodes_per_stage=20))
    assert "online.stages is 3" in result and "online.episodes_per_stage is 20" in result and "leave it out" in result


@pytest.mark.parametrize("algorithm", ["gac", "bc", "dt"])
def test_an_offline_run_is_evaluated_ten_times_however_long_it_is(algorithm: str) -> None:
    def every(**settings: str) -> int:
        config = new_run(algorithm, "Pendulum-v1", "no/dataset", "cpu", settings)
        return config.evaluation.every_steps

    assert (every(steps="500"), every(steps="3"), every(**{"evaluation.every_steps": "0"})) == (50, 1, 0)
    assert every() == make_preset(algorithm, "cpu").steps // 10


def test_settings_of_transitions_do_not_matter_to_a_run_on_episodes(tmp_path: Path) -> None:
    config = config_of(replay__min_size_rows=10**9, replay__replay_ratio=-1, replay__shards=3, worker__workers=2)
    make_spec(config, RunDirectory(tmp_path / "run"), 0)  # without workers there may be more shards than of them


@pytest.mark.parametrize(
    ("algorithm", "backend", "light"), [("softgac", "auto", True), ("softgac", "onnx", False), ("sac", "auto", False)]
)
def test_the_memory_of_processes_that_act_is_smaller_where_they_need_no_torch(
    tmp_path: Path, algorithm: str, backend: str, light: bool
) -> None:
    def needed(workers: int) -> int:
        words = {"worker.workers": str(workers), "worker.backend": backend, "backend": "ray"}
        spec = RunSpec(config=override(make_preset(algorithm, "cpu"), words), obs_dim=3, action_dim=1, run_dir=tmp_path)
        return memory_bytes(spec)["processes"]

    assert needed(33) - needed(1) == 32 * (LIGHT_BYTES if light and not compiled.problem() else PROCESS_BYTES)


@pytest.mark.parametrize(("stages", "shards"), [(0, 1), (2, 2)])
def test_the_memory_that_is_told_bounds_what_the_shards_take(tmp_path: Path, stages: int, shards: int) -> None:
    sizes = {"online__stages": stages, "online__updates_per_stage": 5, "steps": 20, "replay__shards": shards}
    config = config_of(agent__posterior="stored", replay__capacity_rows=4_000, **sizes)
    plan = spec_of(config, RunDirectory(tmp_path / "run"))
    result = memory_bytes(plan)["replay"]
    held = 0
    for index in range(shards):
        shard = make_shard(plan, index)
        assert isinstance(shard, Shard)
        used = (
            shard.store.arena.size + shard.store.arena.online.capacity
        )  # the rest of the dataset's ring is never touched
        held += used * shard.store.arena.width * 4 + sum(
            getattr(shard.store.arena, name).nbytes for name in shard.store.arena.columns
        )
    assert held <= result <= 40 * 2**20, (held, result)


def needed_for_updates(tmp_path: Path, algorithm: str = "gac", **more: Any) -> int:
    given = {"learner__device": "auto"} | more
    words = {name.replace("__", "."): str(value) for name, value in given.items()}
    config = override(make_preset(algorithm, "cpu"), words | {"dataset": DATASET if algorithm == "gac" else ""})
    return memory_bytes(RunSpec(config=config, obs_dim=3, action_dim=1, run_dir=tmp_path))["updates"]


@pytest.mark.parametrize("algorithm", ["gac", "softgac"])
def test_the_memory_that_is_told_grows_with_the_batch_and_with_the_blocks_of_batches(
    tmp_path: Path, algorithm: str
) -> None:
    few, many = (
        needed_for_updates(tmp_path, algorithm, learner__batch_size=size, learner__device="cpu")
        for size in (256, 25_600)
    )
    assert 99 * few < many < 101 * few
    with pytest.MonkeyPatch.context() as patch:  # what an update takes of a GPU is none of this
        patch.setattr("torch.cuda.is_available", lambda: True)
        assert needed_for_updates(tmp_path, algorithm, learner__batch_size=25_600) < many
    alone = needed_for_updates(tmp_path, algorithm, learner__batch_size=256, learner__updates_per_call=64)
    assert alone > few


def test_a_batch_that_no_memory_holds_is_refused_before_the_start(tmp_path: Path) -> None:
    config = config_of(learner__batch_size=10_000_000, learner__device="cpu")
    with pytest.raises(UsageError, match=r"this machine has .*lower learner\.batch_size"):
        make_spec(config, RunDirectory(tmp_path / "run"), 0)
