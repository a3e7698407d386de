"""Preset paper against the published constants: those of every task, and those that the paper sets by task."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import ROOT, read, train_words

from cluster.cli import main
from cluster.commands.resuming import resumed
from cluster.commands.train import new_run
from cluster.config import flatten, make_preset, override
from cluster.errors import UsageError
from cluster.inline import InlineFleet
from cluster.run_dir import RunDirectory

# arXiv 2605.08733: suite and name of each task, largest atom, width of the bridge, env steps of a run
PUBLISHED = {
    "dm_control/humanoid-run-v0": (200, 512, 3_000_000),
    "dm_control/humanoid-walk-v0": (200, 512, 1_000_000),
    "dm_control/humanoid-stand-v0": (200, 512, 1_000_000),
    "dm_control/dog-run-v0": (200, 256, 1_000_000),
    "dm_control/dog-trot-v0": (200, 256, 1_000_000),
    "dm_control/dog-walk-v0": (200, 256, 1_000_000),
    "dm_control/dog-stand-v0": (200, 256, 1_000_000),
    "h1-walk-v0": (200, 512, 1_000_000),
    "h1-run-v0": (200, 512, 1_000_000),
    "h1-hurdle-v0": (200, 512, 3_000_000),
    "humanoid_bench:h1-stair-v0": (200, 512, 1_000_000),
    "h1-maze-v0": (200, 512, 1_000_000),
    "HalfCheetah-v5": (1600, 512, 1_000_000),
    "Humanoid-v4": (1600, 512, 1_000_000),
}
OTHER = ("Pendulum-v1", "FixedGoal/PointMaze_UMaze-v3", "my_module:Dog-v0", "h1-v0", "Hoppers-v5")
TINY = {
    "agent__critic_width": 16, "agent__bridge_width": 8, "agent__bridge_steps": 2, "replay__capacity_rows": 2_000,
    "learner__gpus": 0, "worker__random_steps": 64, "replay__min_size_rows": 64,
}  # fmt: skip


@pytest.mark.parametrize("env", PUBLISHED)
@pytest.mark.parametrize("algorithm", ["softgac", "crossq-sac", "qsm", "qvpo"])
def test_preset_paper_has_the_published_constants_of_the_task(algorithm: str, env: str) -> None:
    v_max, width, steps = PUBLISHED[env]
    config = make_preset(algorithm, "paper", env)
    assert (config.env, config.agent.v_min, config.agent.v_max, config.steps) == (env, -v_max, v_max, steps)
    assert getattr(config.agent, "bridge_width", width) == width
    assert getattr(config.agent, "entropy_updates", 2 * steps) == 2 * steps
    assert override(config, {"agent.v_max": "300"}).agent.v_max == 300
    fleet = make_preset(algorithm, "paper-fleet", env)
    assert (fleet.agent, fleet.steps, fleet.replay) == (config.agent, config.steps, config.replay)
    assert fleet.backend == "ray" and fleet.worker.workers * fleet.worker.envs_per_worker == 16
    cpu = make_preset(algorithm, "cpu", env)
    assert (cpu.agent, cpu.steps) == (make_preset(algorithm, "cpu").agent, make_preset(algorithm, "cpu").steps)


@pytest.mark.parametrize(
    ("preset", "settings", "base", "updates"),
    [
        ("cpu", {}, {}, 25_000),
        ("cpu", {"steps": "40000", "replay.replay_ratio": "0.5"}, {}, 20_000),
        ("cpu", {"steps": "40000", "agent.entropy_updates": "300"}, {}, 300),
        ("paper", {"steps": "2e6"}, {}, 4_000_000),
        ("cpu", {}, {"steps": "50", "agent.entropy_updates": "300"}, 300),  # a run's config.json: as that run was
        ("cpu", {"steps": "60"}, {"steps": "50", "agent.entropy_updates": "300"}, 60),
        ("cpu", {"replay.replay_ratio": "nan"}, {}, 25_000),  # refused with all else that is wrong
    ],
)
def test_qvpos_schedule_is_as_long_as_the_run(
    preset: str, settings: dict[str, str], base: dict[str, str], updates: int
) -> None:
    config = new_run("qvpo", "Pendulum-v1", None, preset, settings, base=base)
    assert config.agent.entropy_updates == updates


def test_qvpos_schedule_stays_when_the_run_goes_on_for_longer(tmp_path: Path) -> None:
    config = new_run("qvpo", "Pendulum-v1", None, "cpu", {"steps": "2000"})
    run = RunDirectory(tmp_path)
    run.write_config(config)
    longer = resumed(run, {"steps": "4000"})
    assert longer.steps == 4000 and longer.agent == config.agent and config.agent.entropy_updates == 2000
    with pytest.raises(UsageError, match=r"agent\.entropy_updates is 2000 in this run"):
        resumed(run, {"agent.entropy_updates": "4000"})


def test_the_table_of_the_documentation_is_what_preset_paper_has() -> None:
    section = (ROOT / "docs" / "softgac.md").read_text().split("## Whose constant is whose")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([a-z_.0-9]+)` \|$", section, re.M)
    assert len(rows) > 25
    config = flatten(make_preset("softgac", "paper", "HalfCheetah-v5"))
    for stated, key in rows:
        number = stated.split(";")[0].strip("[] ").split(", ")[-1]
        assert config[key][0] == float(number), (key, stated)


@pytest.mark.parametrize("algorithm", ["softgac", "crossq-sac", "sac"])
def test_every_setting_in_which_presets_cpu_and_paper_differ_is_in_the_table_with_both_values(algorithm: str) -> None:
    section = (ROOT / "docs" / "configuration.md").read_text().split("## The presets of SoftGAC")[1].split("\n#")[0]
    presets = {name: flatten(make_preset(algorithm, name)) for name in ("paper", "paper-fleet", "cpu")}
    named: set[str] = set()
    for what, paper, cpu in re.findall(r"(?m)^\| ([^|]*`[^|]*) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", section):
        keys, whose = re.findall(r"`([a-z_.0-9]+)`", what), re.findall(r"\(([\w, -]+)\)$", what)
        if whose and algorithm not in whose[0].split(", "):
            continue
        named |= set(keys)
        fleet = re.findall(r"`paper-fleet`: ([^|;]+)", paper) or [paper]
        for name, cell in (("paper", paper), ("paper-fleet", fleet[0]), ("cpu", cpu)):
            stated = [value.strip("` ") for value in cell.split(";")[0].split(", ")]
            assert stated == [in_the_table(presets[name][key][0]) for key in keys], (name, keys)
    differing = {key for key in presets["cpu"] if presets["cpu"][key][0] != presets["paper"][key][0]}
    assert differing - {"agent", "preset"} <= named


def in_the_table(value: float | str | None) -> str:
    """As a page writes it."""
    return "none" if value is None else value if isinstance(value, str) else f"{value:,.10g}"


@pytest.mark.parametrize("env", OTHER)
def test_a_task_that_the_paper_does_not_have_keeps_the_support_for_gym_mujoco(env: str) -> None:
    config = make_preset("softgac", "paper", env)
    assert (config.agent, config.steps) == (make_preset("softgac", "paper").agent, 1_000_000)


def test_config_shows_what_a_task_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "paper", "--env", "dm_control/dog-walk-v0"]) == 0
    result = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert (result["agent.v_min"], result["agent.v_max"], result["agent.bridge_width"]) == ("-200.0", "200.0", "256")


@pytest.mark.parametrize(
    ("env", "settings", "support", "said"),
    [
        ("InvertedPendulum-v5", {}, 1600, False),
        ("Pendulum-v1", {}, 1600, True),
        ("Pendulum-v1", {"agent__v_min": -300, "agent__v_max": 300}, 300, False),
    ],
)
def test_a_run_has_the_resolved_numbers_in_its_configuration_and_says_where_the_paper_has_none(
    env: str, settings: dict[str, int], support: int, said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_words(
        tmp_path / "run", env, "--preset", "paper", "--backend", "inline", "--steps", "80", **TINY, **settings
    )
    assert main(words) == 0
    config, result = read(tmp_path / "run" / "config.json"), capsys.readouterr()
    assert (config["agent"]["v_min"], config["agent"]["v_max"], config["steps"]) == (-support, support, 80)
    assert ("the paper has no task Pendulum-v1" in result.out + result.err) == said


def test_every_step_of_preset_paper_is_taken_with_the_newest_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, int, int]] = []
    take_turn = InlineFleet._take_turn

    def watched(self: InlineFleet) -> None:
        (worker,) = self.workers
        assert worker.policy_order == (self.learner.generation, self.learner.version)
        rows = sum(shard.store.inserted for shard in self.shards)
        found.append((rows, self.learner.updates, self.learner.published_updates))
        take_turn(self)

    monkeypatch.setattr(InlineFleet, "_take_turn", watched)
    small = [word for key, value in TINY.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]
    words = ["train", "softgac", "--env", "Pendulum-v1", "--preset", "paper", "--steps", "80", "--run-dir"]
    assert main([*words, str(tmp_path / "run"), *small]) == 0
    assert [rows for rows, _, _ in found] == list(range(80))  # one environment, one row a turn
    assert all(updates == published for _, updates, published in found)
    learning = [updates for rows, updates, _ in found if rows > 64]
    assert len(learning) == 15 and set(np.diff(learning)) == {2}
