"""Actor-critics from offline to online: a real run, a dataset of its episodes, and runs that begin with both."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_runs import TINY, lines, read, train_inline

from cluster.cli import main
from cluster.graph import RunSpec
from cluster.inline import InlineFleet
from cluster.metrics.aggregator import MetricsAggregator
from cluster.run_dir import RunDirectory
from replay.dataset import StoredEpisode, open_dataset, write_dataset
from replay.dataset_stream import OfflineRows

ENV, ID = "InvertedPendulum-v5", "drawbridge/invertedpendulum-medium-v0"
OTHER, FEW = "drawbridge/other-v0", "drawbridge/few-v0"
MIN_SIZE = TINY["replay.min_size_rows"]


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of a thousand steps, and a dataset of the episodes that its policy makes."""
    folder = tmp_path_factory.mktemp("offline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
        run = folder / "base"
        assert train_inline(run, ENV, 1_000, replay__replay_ratio=0.5) == 0
        make = ["dataset", "make", "agent", "--run", str(run), "--kind", "medium", "--episodes", "12", "--id", ID]
        assert main(make) == 0
        write(OTHER, "Pendulum-v1", obs_dim=3)
        write(FEW, ENV, episodes=1)
        yield run


def write(
    dataset_id: str, env_id: str, *, obs_dim: int = 4, episodes: int = 3, seed: int = 0, force: bool = False
) -> None:
    rng = np.random.default_rng(seed)
    stream = [
        StoredEpisode(
            index=index,
            obs_TO=rng.standard_normal((9, obs_dim)).astype(np.float32),
            action_TA=rng.uniform(-1, 1, (9, 1)).astype(np.float32),
            reward_T=rng.standard_normal(9),
            terminated=False,
            truncated=True,
            next_obs_O=rng.standard_normal(obs_dim).astype(np.float32),
        )
        for index in range(episodes)
    ]
    write_dataset(
        dataset_id, stream, env_id=env_id, action_low_A=np.full(1, -3.0), action_high_A=np.full(1, 3.0), force=force
    )


def finetune(base: Path, out: Path, steps: int, *flags: str, **settings: Any) -> int:
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    return main(["finetune", str(base), "--out", str(out), "--steps", str(steps), *flags, *pairs])


def learned(run: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint's tensors of the learner, without the counter of its restarts."""
    tensors = load_file(max((run / "checkpoints").iterdir()) / "tensors.safetensors")
    return {name: t for name, t in tensors.items() if name.startswith("learner/") and not name.endswith("generation")}


def agent_of(run: Path) -> dict[str, np.ndarray]:
    return {name: tensor for name, tensor in learned(run).items() if name.startswith("learner/agent/")}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys() and len(one) > 10
    assert not [name for name in one if not np.array_equal(one[name], other[name], equal_nan=True)]


def test_a_run_begins_with_the_base_runs_newest_weights_and_acts_with_them_at_once(base: Path, tmp_path: Path) -> None:
    assert finetune(base, tmp_path / "run", 64, "--dataset", ID, replay__min_size_rows=2_000) == 0
    assert read(tmp_path / "run" / "summary.json")["updates"] == 0
    assert_same(agent_of(tmp_path / "run"), agent_of(base))
    config = RunDirectory.open(tmp_path / "run").config()
    assert (config.dataset, config.worker.random_steps, config.online.base) == (ID, 0, str(base))


def test_a_run_goes_on_in_its_environment_with_other_arguments(base: Path, tmp_path: Path) -> None:
    run, short = tmp_path / "run", ("--env-kwargs", '{"max_episode_steps": 5}')
    assert finetune(base, run, 64, *short, replay__min_size_rows=2_000) == 0
    assert_same(agent_of(run), agent_of(base))
    assert RunDirectory.open(run).config().env == ENV + '?{"max_episode_steps":5}'
    assert {length for one in lines(run / "evaluations.jsonl") for length in one["lengths"]} == {5}
    assert main(["resume", str(run), "--steps", "96"]) == 0
    assert finetune(run, tmp_path / "again", 64, "--env-kwargs", "{}", replay__min_size_rows=2_000) == 0
    assert RunDirectory.open(tmp_path / "again").config().env == ENV


def test_the_replay_ratio_counts_the_updates_that_belong_to_env_steps_and_those_before_are_extra(
    base: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    often = {"replay__replay_ratio": 1.0, "data__pretrain_updates": 40, "evaluation__every_steps": 128}
    assert finetune(base, run, 256, "--dataset", ID, **often) == 0
    summary = read(run / "summary.json")
    made = summary["env_steps"] - MIN_SIZE
    assert summary["updates"] - 40 == pytest.approx(made, abs=16)
    assert summary["replay_ratio"] == pytest.approx((summary["updates"] - 40) / made)
    assert summary["rows"]["stored"] == summary["env_steps"] == summary["rows"]["recorded"], "its rows are no env steps"
    last = lines(run / "metrics.jsonl")[-1]
    assert last["size_rows"] == summary["env_steps"] + open_dataset(ID).total_steps
    changed = agent_of(run), agent_of(base)
    assert any(not np.array_equal(changed[0][name], changed[1][name], equal_nan=True) for name in changed[0])


def test_one_seed_gives_one_run_and_a_resumed_run_equals_one_that_never_stopped(base: Path, tmp_path: Path) -> None:
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    given = ("--dataset", ID, "--set", "data.pretrain_updates=24")
    assert finetune(base, one, 256, *given) == 0
    assert finetune(base, two, 256, *given, learner__checkpoint_s=0.1) == 0  # saves change nothing
    assert_same(learned(one), learned(two))
    assert finetune(base, parts, 128, *given) == 0
    assert main(["resume", str(parts), "--steps", "256"]) == 0
    assert_same(learned(one), learned(parts))


def test_a_run_that_ends_before_its_first_env_step_goes_on_bit_by_bit(base: Path, tmp_path: Path) -> None:
    assert finetune(base, tmp_path / "run", 8, "--dataset", ID, data__pretrain_updates=48) == 0
    config = RunDirectory.open(tmp_path / "run").config()
    result: list[str] = []

    def fleet(folder: Path, start: int = 0) -> InlineFleet:
        spec = RunSpec(config=config, obs_dim=4, action_dim=1, run_dir=folder, start=start)
        made = InlineFleet(spec, MetricsAggregator(min_size_rows=64, replay_ratio=1.0), result.append)
        made.start()
        return made

    def blocks(made: InlineFleet, count: int) -> InlineFleet:
        for _ in range(count):
            made._take_turn()
        return made

    through = blocks(fleet(tmp_path / "through"), 4)
    first = blocks(fleet(tmp_path / "parts"), 1)
    first.save()
    first = blocks(first, 1)
    first.save()
    shutil.copytree(tmp_path / "parts", tmp_path / "torn")
    shutil.rmtree(min((tmp_path / "parts" / "checkpoints").iterdir()))
    second = blocks(fleet(tmp_path / "parts", start=1), 2)
    assert through.learner.updates == second.learner.updates == 32 and not result
    assert sum(shard.store.inserted for shard in second.shards) == 0
    one, other = through.learner.state(), second.learner.state()
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one if name != "generation")
    shutil.rmtree(max((tmp_path / "torn" / "checkpoints").iterdir()))  # an older learner beside the newest snapshot
    torn = fleet(tmp_path / "torn", start=1)
    assert "not of one moment" in result[-1] and torn.shards[0].limiter.sampled == 8 * 32
    for made in (through, first, second, torn):
        made.close()


def test_training_from_scratch_takes_the_environment_and_half_of_each_batch_from_the_dataset(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", {k: v for k, v in TINY.items() if not k.startswith("agent.bridge")}
    pairs = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    words = ["train", "sac", "--dataset", ID, "--backend", "inline", "--steps", "96", "--run-dir", str(run)]
    assert main([*words, *pairs, "--shards", "2"]) == 0
    config = RunDirectory.open(run).config()
    assert (config.env, config.dataset, config.data.offline_fraction) == (ENV, ID, 0.5)
    fleet = InlineFleet(
        RunSpec(config=config, obs_dim=4, action_dim=1, run_dir=run, start=1),
        MetricsAggregator(min_size_rows=64, replay_ratio=1.0),
        print,
    )
    fleet.start()
    offline = [shard.store.offline for shard in fleet.shards]
    assert all(isinstance(rows, OfflineRows) for rows in offline)
    assert sum(len(rows) for rows in offline) == open_dataset(ID).total_steps
    fleet.shards[0].limiter.tolerance = 1e6  # the run has drawn what its rows allow
    block = fleet.shards[0].sample(1, 32)
    assert (block.slot_UB < 0).sum() == 16
    fleet.close()


def test_a_dataset_larger_than_its_room_is_mixed_in_as_a_subset_and_the_run_says_so(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert finetune(base, run, 96, "--dataset", ID, data__offline_capacity_rows=50) == 0
    total = open_dataset(ID).total_steps
    assert f"has {total:,} rows and data.offline_capacity_rows is 50" in capsys.readouterr().out
    assert lines(run / "metrics.jsonl")[-1]["size_rows"] == 96 + 50


def refused(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    capsys.readouterr()
    assert main(words) == code
    result = capsys.readouterr().err
    assert "drawbridge: error: " in result and "Traceback" not in result
    return result


REFUSED = {
    "a dataset of another environment": (
        ["--dataset", OTHER],
        ("is of Pendulum-v1 (observations of 3", "expected InvertedPendulum-v5", "cannot act", "choose the dataset"),
    ),
    "a dataset that is not there": (
        ["--dataset", "drawbridge/none-v0"],
        ("no dataset 'drawbridge/none-v0'", "nothing to read", "dataset list"),
    ),
    "another environment than the base run's": (
        ["--env", "Hopper-v5"],
        ("InvertedPendulum-v5", "Hopper-v5", "Nothing was started"),
    ),
    "updates on no dataset": (
        ["--set", "data.pretrain_updates=5"],
        ("data.pretrain_updates is 5", "expected 0", "give --dataset"),
    ),
    "a share that is none": (
        ["--dataset", ID, "--set", "data.offline_fraction=1.5"],
        ("data.offline_fraction is 1.5", "expected 0 to 1", "set 0.5"),
    ),
    "stages": (["--stages", "2"], ("online.stages", "makes no stages", "--set data.offline_fraction")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_gone_on_with_is_refused_before_anything_is_written(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    words, parts = REFUSED[case]
    result = refused(["finetune", str(base), "--out", str(tmp_path / "run"), *words], capsys)
    assert all(part in result for part in parts), result
    assert not (tmp_path / "run").exists()


def test_fewer_episodes_than_shards_end_the_run_with_what_to_do(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(base), "--out", str(tmp_path / "run"), "--dataset", FEW, "--set", "replay.shards=2"]
    result = refused(words, capsys, code=1)
    assert (
        f"{FEW}: the dataset gave no episode to shard 1" in result
        and "as many sound episodes as replay.shards" in result
    )


def test_a_dataset_that_was_made_again_is_not_gone_on_with(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, again = tmp_path / "run", "drawbridge/again-v0"
    write(again, ENV)
    assert finetune(base, run, 80, "--dataset", again, worker__random_steps=80) == 0  # random episodes are short
    write(again, ENV, seed=1, force=True)
    assert main(["resume", str(run), "--steps", "128"]) != 0
    assert "it was made again" in capsys.readouterr().err
    take = ["dataset", "export", str(run), "drawbridge/taken-v0"]
    assert main(take) == 0, "what the run itself gathered is there all the same"
    assert 0 < open_dataset("drawbridge/taken-v0").total_steps <= 80
