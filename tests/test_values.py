"""Every value of every field: what cannot work is named before anything is started or written, on the command line as in
a config.json that somebody has edited."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import socket
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import edit_config, read, train_inline, train_words

from algorithms import ALGORITHMS
from cluster import checks
from cluster.checks import endpoint_problems, make_spec
from cluster.cli import main
from cluster.commands.arguments import seed
from cluster.commands.status import status, status_in_words
from cluster.config import RunConfig, flatten, from_json, make_preset, out_of_range, override, presets_of, to_json
from cluster.drive import _exporter
from cluster.errors import RunError, UsageError
from cluster.graph import RunSpec, learner_device
from cluster.history import read_run
from cluster.pictures.report import write_report
from cluster.run_dir import RunDirectory
from replay.option import problem_with

ENV = "InvertedPendulum-v5"
PRESETS = [(algorithm, preset) for algorithm in ALGORITHMS for preset in presets_of(algorithm)]


def fields(algorithm: str = "softgac") -> dict[str, Any]:
    return {key: field for key, (_, field) in flatten(make_preset(algorithm, "cpu")).items() if key != "agent"}


@pytest.mark.parametrize(("algorithm", "preset"), PRESETS)
def test_every_preset_is_within_its_ranges_and_survives_json(algorithm: str, preset: str) -> None:
    config = make_preset(algorithm, preset)
    assert out_of_range(config) == []
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_field_takes_another_type_a_nan_or_a_number_that_no_machine_holds(algorithm: str) -> None:
    for key, field in fields(algorithm).items():
        declared = str(field.type)
        wrong: list[Any] = [[], {}, object()]
        wrong += [] if "None" in declared else [None]
        wrong += [1, 0.5, "x" * 2000, "a\x00b"] if "str" in declared else ["1"]
        wrong += [0, 1] if "bool" in declared else [True]
        if "float" in declared or "int" in declared:
            wrong += [float("nan"), float("-inf"), 1e308, -1e308, 10**40, -(10**40), 10**400]
            wrong += [] if field.metadata["infinite"] else [float("inf")]
        for value in wrong:
            result = problem_with(field, value)
            assert result.startswith(f"{field.name} is ") and ", expected " in result and "the default is" in result, (
                key,
                value,
                result,
            )
        assert problem_with(field, field.default) == "", key


CANNOT_WORK: dict[str, tuple[str, ...]] = {
    "learner.batch_size=0": ("learner.batch_size is 0, expected at least 1", "needs rows", "the default is 256"),
    "worker.workers=0": ("worker.workers is 0, expected at least 1", "the default is 2"),  # of preset cpu; of the class 8
    "agent.critic_lr=1e308": ("agent.critic_lr is 1e+308, expected in (0, 1]", "lost in one step", "the default is 0.001"),
    "agent.actor_lr=inf": ("agent.actor_lr is inf, expected a finite number in (0, 1]",),
    "agent.critic_width=1e30": ("agent.critic_width is 1000000000000000019884624838656, expected at least 1 and at most 65536",),
    "worker.cpus=inf": ("worker.cpus is inf, expected a finite number in [0, 100000]", "no machine could reserve it"),
    "worker.cpus=1e9": ("worker.cpus is 1000000000.0",),
    "agent.v_max=nan": ("agent.v_max is nan, expected a finite number",),
    "metrics.host=": ("metrics.host is empty", "expected an address", "every network", "set 127.0.0.1"),
    "metrics.host=  ": ("metrics.host is empty",),
    "metrics.host=no.such.host.invalid": ("cannot listen on no.such.host.invalid",),
    **{
        f"metrics.host={host}": (f"metrics.host is '{host}'", "expected an address", "every network", "one of 0.0.0.0, ::")
        for host in ("0", "*", "0x0", "0:0::0", "::ffff:0.0.0.0")
    },
    "metrics.port=70000": ("metrics.port is 70000, expected at least -1 and at most 65535",),
    "steps=1e40": ("steps is 1", "no more than 1e+15"),
    "seed=1e30": ("seed is 1",),
    "evaluation.timeout_s=1e300": ("evaluation.timeout_s is 1e+300, expected no more than 1e+09",),
}  # fmt: skip


@pytest.mark.parametrize("setting", CANNOT_WORK)
def test_a_value_that_cannot_work_is_refused_and_leaves_no_directory(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = train_words(tmp_path / "run", ENV, "--backend", "inline", metrics__port=0)
    assert main([*words, "--set", setting]) == 2
    result = capsys.readouterr().err
    assert all(part in result for part in CANNOT_WORK[setting]), result
    assert "Traceback" not in result and "nothing was started" in result and not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_found_before_the_directory_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert main(train_words(tmp_path / "run", ENV, "--backend", "inline", metrics__port=taken)) == 2
    result = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{taken}" in result and not (tmp_path / "run").exists()


def test_on_a_cluster_a_port_that_is_taken_is_replaced_by_a_free_one_and_that_is_said(tmp_path: Path) -> None:
    events: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other, contextlib.ExitStack() as stack:
        taken = other.getsockname()[1]
        config = override(make_preset("softgac", "cpu"), {"metrics.port": str(taken), "ray.address": "head:6379"})
        spec = RunSpec(config=config, obs_dim=3, action_dim=1, run_dir=tmp_path)
        assert endpoint_problems(config) == []
        exporter = _exporter(RunDirectory(tmp_path), spec, stack, events.append)
        assert exporter is not None and exporter.port != taken
        with urllib.request.urlopen(exporter.url, timeout=10) as answer:
            assert answer.status == 200
    assert f"127.0.0.1:{taken}" in events[0] and f"it listens on port {exporter.port} instead" in events[0]


def test_every_problem_of_a_command_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {
        "agent__gamm": 1,
        "worker__chunk_steps": "x",
        "learner__batch_size": 0,
        "replay__shards": 3,
        "metrics__host": "",
    }
    assert main(train_words(tmp_path / "run", "HalfCheeta-v5", metrics__port=0, **settings)) == 2
    result = capsys.readouterr().err
    parts = (
        "agent.gamm:", "worker.chunk_steps=x", "learner.batch_size is 0", "replay.shards is 3", "metrics.host is empty",
        "'HalfCheeta-v5'",
    )  # fmt: skip
    for part in parts:
        assert part in result, part
    assert result.count("drawbridge: error:") == 1 and not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device, so the request is granted")
@pytest.mark.parametrize("backend", ["inline", "ray"])
def test_cuda_where_there_is_none_is_refused_before_the_directory_is_made(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert (
        main(train_words(tmp_path / "run", ENV, "--backend", backend, "--device", "cuda", "--set", "learner.gpus=1"))
        == 2
    )
    result = capsys.readouterr().err
    for part in ("learner.device is cuda", "has no CUDA device", "expected cpu or auto", "set learner.device=cpu"):
        assert part in result
    assert ("learner.gpus is 1" in result) == (backend == "ray") and not (tmp_path / "run").exists()


def config_of(**settings: Any) -> RunConfig:
    given = {key.replace("__", "."): str(value) for key, value in settings.items()}
    return override(make_preset("softgac", "cpu"), given)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"learner__learners": 2}, "two of them would be given one GPU"),
        ({"learner__learners": 2, "learner__gpus": 0.5}, "two of them would be given one GPU"),
        ({"learner__learners": 2, "learner__gpus": 1}, "this machine has 1 CUDA devices: Ray would never place them"),
        ({"learner__gpus": 1.5}, "expected a whole number above 1"),
        ({"learner__updates_per_call": 15}, "set learner.updates_per_call=16"),
        ({"learner__updates_per_call": 16, "agent__actor_every": 5}, "set learner.updates_per_call=20"),
        ({"learner__updates_per_call": 15, "backend": "inline"}, "expected a multiple"),
        ({"learner__learners": 2, "ray__address": "head:1", "learner__device": "cuda"}, "expected at least 1"),
        ({"learner__learners": 2, "ray__address": "head:1", "learner__gpus": 0.5}, "expected at least 1"),
        ({"learner__updates_per_call": 15, "ray__address": "head:1"}, "set learner.updates_per_call=16"),
    ],
)
def test_learners_that_one_gpu_cannot_serve_are_refused(
    settings: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(checks, "cuda_devices", lambda: 1)
    assert named in "\n".join(checks.device_problems(config_of(**settings)))


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        ({}, "cuda"),
        ({"learner__gpus": 1}, "cuda"),
        ({"learner__updates_per_call": 15, "learner__cuda_graph": "false"}, "cuda"),
        ({"learner__updates_per_call": 15, "learner__device": "cpu", "learner__learners": 2}, "cpu"),
        ({"ray__address": "head:1"}, "cuda"),
        ({"learner__learners": 2, "learner__gpus": 1, "ray__address": "head:1"}, "cuda"),
        ({"learner__learners": 2, "ray__address": "head:1"}, "cpu"),  # a node's GPU is in sight of both
        ({"learner__learners": 2, "ray__address": "head:1", "learner__updates_per_call": 15}, "cpu"),
    ],
)
def test_learners_that_have_what_they_need_are_not_refused_and_compute_where_they_have_it(
    settings: dict[str, Any], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(checks, "cuda_devices", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = config_of(**settings)
    assert checks.device_problems(config) == [] and learner_device(config) == device


def test_config_prints_the_range_of_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "cpu"]) == 0
    result = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "in [0, 1)" in result["agent.gamma"] and "at least 1 and at most 65536" in result["agent.critic_width"]
    assert result["agent.v_min"].split()[1] == "none"  # as --set takes it
    assert "a positive number" in result["replay.replay_ratio"] and "one of cpu, cuda, auto" in result["learner.device"]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that ended, and has a failure.json."""
    path = tmp_path_factory.mktemp("values") / "run"
    assert train_inline(path, ENV, 128, metrics__line_s=0.0) == 0
    (path / "failure.json").write_text(
        json.dumps({"error": "the simulator lost its licence", "traceback": "", "when": 1.0})
    )
    return path


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "text for a number": (lambda c: c["replay"].update(shards="two"), "replay.shards is 'two', expected a whole number, at least 1"),
    "a number for text": (lambda c: c.update(env=5), "env is 5, expected text"),
    "nothing for a number": (lambda c: c["learner"].update(batch_size=None), "learner.batch_size is None, expected a whole number"),
    "a list": (lambda c: c["agent"].update(gamma=[0.9]), "agent.gamma is [0.9], expected a number, in [0, 1)"),
    "an object": (lambda c: c["agent"].update(gamma={"is": 1}), "agent.gamma is {'is': 1}"),
    "true for a number": (lambda c: c["worker"].update(workers=True), "worker.workers is True, expected a whole number"),
    "a number for true": (lambda c: c["worker"].update(fast_envs=1), "worker.fast_envs is 1, expected true or false"),
    "a fraction": (lambda c: c["agent"].update(atoms=10.5), "agent.atoms is 10.5, expected a whole number"),
    "nan": (lambda c: c["agent"].update(critic_lr=float("nan")), "agent.critic_lr is nan, expected a finite number in (0, 1]"),
    "infinity": (lambda c: c["ray"].update(call_timeout_s=float("inf")), "ray.call_timeout_s is inf"),
    "out of range": (lambda c: c["learner"].update(batch_size=0), "learner.batch_size is 0, expected at least 1"),
    "no choice": (lambda c: c["learner"].update(device="tpu"), "learner.device is 'tpu', expected one of cpu, cuda, auto"),
    "an unknown algorithm": (lambda c: c.update(algorithm="ddpg"), "unknown algorithm 'ddpg'"),
    "an algorithm of another type": (lambda c: c.update(algorithm=["sac"]), "algorithm is ['sac'], expected one of"),
    "an unknown preset": (lambda c: c.update(preset=None), "preset is None, expected one of"),
    "a part that is a number": (lambda c: c.update(replay=5), "unknown fields ['replay']"),
    "a part that is gone": (lambda c: c.pop("learner"), "lacks ['learner.batch_size'"),
    "a field that is gone": (lambda c: c["agent"].pop("rho"), "lacks ['agent.rho']"),
    "an unknown field": (lambda c: c["agent"].update(warp=1), "unknown fields ['agent.warp']"),
    "a huge number": (lambda c: c.update(seed=10**40), "seed is 1000000"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_config_is_refused_by_field_under_every_command(
    edit: str, ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, (change, named) = tmp_path / "run", EDITS[edit]
    shutil.copytree(ended, run)
    config = read(run / "config.json")
    change(config)
    (run / "config.json").write_text(json.dumps(config))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in (
        ["resume", str(run), "--steps", "256"],
        ["finetune", str(run), "--out", str(tmp_path / "out")],
        ["status", str(run)],
        ["evaluate", str(run)],
    ):
        assert main(words) == 2
        result = capsys.readouterr().err
        assert f"drawbridge: error: {run / 'config.json'} cannot be used: " in result and named in result, result
        assert len(result.strip().splitlines()) == 1 and not (tmp_path / "out").exists()
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


DAMAGE = {
    "empty": b"", "cut": b'{"env_steps": 12', "binary": bytes(range(256)), "null": b"null", "a list": b"[1]", "a number": b"12",
    "deep": b"[" * 100_000, "utf-16": '{"a": '.encode("utf-16"), "half a pair": rb'{"env": "\ud800"}',
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["live", "summary", "failure"])
def test_status_and_report_leave_out_what_is_damaged_and_say_so(
    damage: str, name: str, ended: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    (run / f"{name}.json").write_bytes(DAMAGE[damage])
    found = status(run)
    assert [note for note in found["notes"] if note.startswith(f"{name}.json could not be read and was left out: ")]
    assert f"{name}.json could not be read" in status_in_words(found) and found["last_evaluation"]
    assert f"{name}.json could not be read" in write_report([run], tmp_path / "report.html").read_text()
    if name == "live":
        with pytest.raises(
            RunError, match="the run directory is damaged there; nothing was changed; put a good copy back"
        ):
            RunDirectory.open(run).live()


def test_values_of_another_type_are_left_out_of_status_and_report_and_refused_by_resume(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    for name, changes in {
        "live.json": {"env_steps": "many", "updates": -1, "fill": [1], "state": 7},
        "summary.json": {"rows": {"dropped": {"a": "b"}}, "workers": 5, "wall_s": "long", "env_steps": 1e400},
        "failure.json": {"error": {"a": 1}},
    }.items():
        (run / name).write_text(json.dumps(read(run / name) | changes))
    with open(run / "evaluations.jsonl", "a") as file:
        file.write(
            '{"returns": [1e999], "env_steps": 1}\n{"returns": ["1"], "env_steps": 1}\n{"returns": [1], "env_steps": 1e999}\n'
        )
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"env_steps": 1' + b"0" * 400 + b"}\n\xff\xfe\n")
    found = status(run)
    result = status_in_words(found)
    parts = (
        "live.json: env_steps is", "live.json: updates is -1, expected a number of at least 0", "fill is a list", "error is an object",
        "wall_s is",
    )  # fmt: skip
    for part in parts:
        assert part in result, part
    assert len(found["last_evaluation"]["returns"]) == 2
    text = write_report([run], tmp_path / "report.html").read_text()
    assert "rows is an object, expected an object of numbers" in text and read_run(run).env_steps > 0
    assert main(["resume", str(run), "--steps", "256"]) == 1
    refused = capsys.readouterr().err
    assert (
        "live.json cannot be used (env_steps is" in refused and "nothing was started; put a good copy back" in refused
    )
    assert "Traceback" not in refused


def test_a_refused_resume_does_not_count_as_a_start(
    ended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    with socket.create_server(("127.0.0.1", 0)) as other:
        edit_config(run, metrics__port=other.getsockname()[1])
        assert main(["resume", str(run), "--steps", "256"]) == 2
    assert not (run / "control" / "starts").exists() and read(run / "summary.json")["exit"] == "completed"


def test_a_damaged_count_of_starts_is_named_and_nothing_is_started(
    ended: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended, run)
    (run / "control" / "starts").write_bytes(b"\xff")
    assert main(["resume", str(run), "--steps", "256"]) == 1
    result = capsys.readouterr().err
    assert "starts holds no whole number" in result and "nothing was started" in result and "Traceback" not in result
    assert read(run / "summary.json")["exit"] == "completed"


def test_a_plan_is_made_of_what_the_command_line_found_too(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)first.*learner\.batch_size is 0"):
        make_spec(config_of(env=ENV, learner__batch_size=0), RunDirectory(tmp_path / "run"), 0, ["first"])


def test_a_seed_of_the_command_line_keeps_every_digit_and_takes_whole_numbers_alone() -> None:
    assert seed(str(2**53 + 1)) == 2**53 + 1  # the next number that a float does not hold
    for text in ("1e3", "1.0", "-1", str(2**62 + 1), "nan"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 0"):
            seed(text)


def test_a_setting_that_has_a_new_name_is_read_by_its_older_one_and_checkpoints_keep_that() -> None:
    config = override(make_preset("gac", "paper"), {"agent.replan": "prediction-error", "agent.obs_fourier": "3"})
    older = to_json(config)
    older["agent"]["obs_waves"] = older["agent"].pop("obs_fourier")
    older["agent"]["obs_wave_dims"] = older["agent"].pop("obs_fourier_dims")
    older["agent"]["replan"] = "surprise"
    assert from_json(json.loads(json.dumps(older))) == config
    agent = RunSpec(config=config, run_dir=Path("runs/a"), obs_dim=4, action_dim=2).identity()["agent"]
    assert (agent["obs_waves"], agent["obs_wave_dims"], agent["replan"]) == (3, 2, "surprise")
    assert not {"obs_fourier", "obs_fourier_dims"} & agent.keys()
