"""Settings from text: every type of field, and values with which no part could work."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from algorithms import ALGORITHMS
from cluster.checks import make_spec
from cluster.config import flatten, from_json, make_preset, override, presets_of, to_json
from cluster.errors import UsageError
from cluster.run_dir import RunDirectory
from replay.option import in_setting_words

PRESET = make_preset("softgac", "cpu")
PRESETS = [(algorithm, preset) for algorithm in ALGORITHMS for preset in presets_of(algorithm)]


@pytest.mark.parametrize("key", [key for key in flatten(PRESET) if key not in ("algorithm", "preset")])
def test_every_field_takes_its_own_value_as_text(key: str) -> None:
    value = flatten(PRESET)[key][0]
    assert flatten(override(PRESET, {key: str(value)}))[key][0] == value


def test_whole_numbers_keep_every_digit_and_may_be_written_short() -> None:
    assert override(PRESET, {"seed": "9007199254740993"}).seed == 2**53 + 1
    assert override(PRESET, {"steps": "25e3"}).steps == 25_000 == override(PRESET, {"steps": "25_000"}).steps
    for text in ("1.5", "nan", "inf", "many"):
        with pytest.raises(UsageError, match="not of type int"):
            override(PRESET, {"steps": text})


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("seed", "-1"),
        ("metrics.line_s", "nan"),
        ("metrics.port", "-2"),
        ("ray.call_timeout_s", "0"),
        ("ray.start_timeout_s", "nan"),
        ("ray.shard_restart_budget", "-1"),
        ("ray.worker_labels", "spot"),
        ("ray.shard_cpus", "-0.5"),
        ("ray.object_store_bytes", "1000"),
        ("learner.checkpoint_s", "nan"),
        ("learner.cpus", "nan"),
    ],
)
def test_a_value_with_which_nothing_could_work_is_refused_by_name(
    key: str, text: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = override(PRESET, {"env": "InvertedPendulum-v5", key: text})
    with pytest.raises(UsageError, match=f"{key} is"):
        make_spec(config, RunDirectory(tmp_path_factory.getbasetemp() / "none"), 0)


def test_a_cluster_is_not_measured_by_the_memory_of_the_machine_that_drives_it(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path_factory.getbasetemp() / "none")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    huge = override(PRESET, {"env": "InvertedPendulum-v5", "replay.capacity_rows": "1e12"})
    with pytest.raises(UsageError, match="this machine has"):
        make_spec(huge, run, 0)
    assert make_spec(override(huge, {"ray.address": "head:6379"}), run, 0).run_dir == run.path
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # as `ray job submit` does
    assert make_spec(huge, run, 0).run_dir == run.path
    with pytest.raises(UsageError, match="this machine has"):
        make_spec(override(huge, {"backend": "inline"}), run, 0)


@pytest.mark.parametrize(("algorithm", "preset"), PRESETS)
def test_a_line_about_a_value_names_the_default_of_the_preset(algorithm: str, preset: str, tmp_path: Path) -> None:
    """On the command line as in an edited config.json."""
    config = make_preset(algorithm, preset, "InvertedPendulum-v5")
    usual = {key: value for key, (value, _) in flatten(config).items() if isinstance(value, int | float)}
    bad = {key: 2 if type(value) is bool else -(10**30) for key, value in usual.items()}
    parts: dict[str, Any] = {}
    for key, value in bad.items():
        part, _, leaf = key.rpartition(".")
        (parts.setdefault(part, {}) if part else parts)[leaf] = value
    changes = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in parts.items()
    }
    with pytest.raises(UsageError) as refused:
        make_spec(dataclasses.replace(config, **changes), RunDirectory(tmp_path / "run"), 0)
    found = [line.removeprefix("  - ") for line in str(refused.value).splitlines() if "; the default is " in line]
    named = {line.partition(" ")[0]: line.rpartition("; the default is ")[2] for line in found}
    assert named == {key: in_setting_words(usual[key]) for key in named} and len(named) >= 35
    with pytest.raises(UsageError) as refused:
        from_json(
            to_json(make_preset(algorithm, preset)) | {"replay": to_json(config)["replay"] | {"capacity_rows": 0}}
        )
    assert f"the default is {config.replay.capacity_rows};" in str(refused.value)
