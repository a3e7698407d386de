"""The command line as a contract: help, exit codes, and the files of a run with every field that is promised."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from tiny_runs import ROOT, command, lines, read, train_inline

from cluster.cli import _parser, main
from cluster.commands.train import resolve
from cluster.config import RunConfig, flatten, make_preset
from cluster.run_dir import RunDirectory
from replay.manifest import write_atomic
from rollout_workers.envs import make_env

COMMANDS = ("train", "resume", "evaluate", "export", "scale", "stop", "status", "list", "report", "presets", "config")
SUMMARY = {
    "algorithm", "env", "seed", "backend", "exit", "env_steps", "updates", "wall_s", "env_steps_per_s", "updates_per_s",
    "replay_ratio", "eval_return_mean", "eval_return_std", "eval_episodes", "rows", "workers", "learner_time",
    "policy_age_versions",
}  # fmt: skip
STEPS = 320


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short inline run that ended."""
    path = tmp_path_factory.mktemp("cli") / "run"
    settings = {"evaluation__every_steps": 160, "metrics__tensorboard": "true", "metrics__line_s": 0.1}
    assert train_inline(path, "Pendulum-v1", STEPS, "--seed", "7", **settings) == 0
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def exit_code(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    return int(ended.value.code or 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_and_exits_with_0(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(name, "--help") == 0
    result = capsys.readouterr().out
    assert f"usage: drawbridge {name}" in result and "help" in result


@pytest.mark.parametrize("env", ["nope-v0", "Hopper-v99", "Hoper-v5?{}", "Pendulum-v1?{"])
def test_config_refuses_an_environment_that_is_not_there(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "paper", "--env", env]) == 2
    result = capsys.readouterr()
    assert ", expected " in result.err and not result.out and "Traceback" not in result.err


@pytest.mark.parametrize("env", ["Hopper-v5", "Pendulum-v1", "dm_control/dog-walk-v0", "h1-walk-v0"])
def test_config_takes_an_environment_of_gymnasium_or_of_the_paper(env: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert env in said(capsys, "config", "paper", "--env", env)


def test_an_unknown_environment_is_met_with_the_newest_versions_of_those_like_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for env in ("Hoper-v3", "hopper-v2", "HalfCheeta-v4"):
        assert main(["check-env", env]) == 2
        nearest = re.findall(r"\(nearest: (.*?)\)", capsys.readouterr().err)[0].split(", ")
        assert nearest[0] in ("Hopper-v5", "HalfCheetah-v5")
        make_env(nearest[0]).close()
        for name, _, version in (name.rpartition("-v") for name in nearest):
            assert not any(f"{name}-v{newer}" in gym.registry for newer in range(int(version) + 1, 20)), (name, version)


@pytest.mark.parametrize(
    ("words", "usage", "hint"),
    [
        (["train", "softgac", "--stesp", "3"], "drawbridge train", "--stesp 3; did you mean --steps for --stesp?"),
        (
            ["dataset", "show", "x", "--plott=3"],
            "drawbridge dataset show",
            "--plott=3; did you mean --plot for --plott?",
        ),
        (
            ["plan", "x", "--episodes", "0", "--plot", "y.png"],
            "drawbridge plan",
            "unrecognized arguments: --episodes 0",
        ),
        (["train", "gac", "--outt", "x"], "drawbridge train", "unrecognized arguments: --outt x"),
        (["finetune", "x", "--outt", "x"], "drawbridge finetune", "did you mean --out for --outt?"),
        (["status", "x", "y"], "drawbridge status", "unrecognized arguments: y"),
        (["presets", "--zzzzzz"], "drawbridge presets", "unrecognized arguments: --zzzzzz"),
    ],
)
def test_an_unknown_flag_is_met_with_the_usage_of_its_command_and_the_nearest_flag(
    words: list[str], usage: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(*words) == 2
    result = capsys.readouterr().err
    assert result.startswith(f"usage: {usage} ") and result.rstrip().endswith(hint), result


def test_the_help_of_train_gives_the_unit_and_the_default_of_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", "--help") == 0
    result = " ".join(capsys.readouterr().out.split())
    for option, unit in (("--steps", "env steps"), ("--workers", "processes"), ("--envs-per-worker", "environments"),
                         ("--shards", "processes"), ("--learners", "processes"), ("--seed", "seed"), ("--address", "host:port"),
                         ("--run-dir", "directory"), ("--device", "compute"), ("--backend", "one process")):  # fmt: skip
        described = result[result.rindex(f"{option} ") :].split(" --")[0]
        assert unit in described and "default" in described, described


def test_the_help_and_the_page_of_policies_name_all_that_take_a_return_to_ask_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code("evaluate", "--help") == 0
    result = " ".join(capsys.readouterr().out.split())
    assert "units (gac in mode st, rvs, dt, odt)" in result
    page = " ".join((ROOT / "docs" / "policies.md").read_text().split())
    assert "a return to ask for (rvs, dt, odt)" in page and "gac, rvs, dt or odt carries something" in page
    for name in ("iql", "td3-bc", "cql", "cal-ql", "rlpd"):
        assert name in page.split("The file is the deterministic policy of")[1].split(":")[0], "it can be exported"


@pytest.mark.parametrize(
    "words",
    ([], ["trian"], ["train"], ["train", "ppo", "--env", "Pendulum-v1"], ["scale", "x"], ["config"],
     ["train", "softgac", "--env", "Pendulum-v1", "--steps", "many"], ["train", "softgac", "--env", "Pendulum-v1", "--workers", "0"],
     ["evaluate", "x", "--episodes", "-1"], ["report"]),
)  # fmt: skip
def test_a_usage_error_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*words) == 2
    assert "usage: drawbridge" in capsys.readouterr().err


def test_the_module_is_the_same_program_and_its_exit_codes_reach_the_shell(tmp_path: Path) -> None:
    result = command("presets")
    assert result.returncode == 0 and "cpu" in result.stdout and "paper" in result.stdout
    result = command("status", str(tmp_path))
    assert result.returncode == 2 and result.stderr.strip().splitlines()[-1].startswith("drawbridge: error: ")
    assert "Traceback" not in result.stderr


def test_a_failure_exits_with_1_and_its_root_cause_last(tmp_path: Path) -> None:
    words = (
        "train",
        "softgac",
        "--env",
        "broken_envs:Raises-v0",
        "--backend",
        "inline",
        "--run-dir",
        str(tmp_path / "run"),
    )
    result = command(*words, "--set", "replay.replay_ratio=0.05", "--set", "learner.batch_size=32", "--set", "metrics.port=-1")  # fmt: skip
    assert result.returncode == 1
    assert "the simulator lost its licence" in result.stderr.strip().splitlines()[-1]
    failure = read(tmp_path / "run" / "failure.json")
    assert "the simulator lost its licence" in failure["error"] and "Traceback" in failure["traceback"]
    live = read(tmp_path / "run" / "live.json")
    assert live["state"] == "failed" and live.items() >= lines(tmp_path / "run" / "metrics.jsonl")[-1].items()
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_run_directory_holds_what_is_promised(run_dir: Path) -> None:
    names = {path.name for path in run_dir.iterdir()}
    promised = {
        "config.json",
        "metrics.jsonl",
        "checkpoints",
        "evaluations.jsonl",
        "summary.json",
        "events",
        "curve.png",
    }
    assert promised <= names and "failure.json" not in names
    assert any(path.name.startswith("events.out.tfevents") for path in (run_dir / "events").iterdir())


def test_the_config_of_a_run_has_every_resolved_field_versions_and_the_commit(run_dir: Path) -> None:
    result = read(run_dir / "config.json")
    for key in flatten(make_preset("softgac", "cpu")):
        part, _, leaf = key.partition(".")
        assert leaf in result[part] if leaf else part in result, key
    assert result["env"] == "Pendulum-v1" and result["seed"] == 7 and result["agent"]["critic_width"] == 32
    assert {"python", "torch", "ray", "gymnasium", "mujoco", "numpy"} <= result["versions"].keys()
    assert result["git"] == "unknown" or len(result["git"].rstrip("+")) == 40


def test_metrics_and_evaluations_have_their_fields_on_every_line(run_dir: Path) -> None:
    result = lines(run_dir / "metrics.jsonl")
    assert result and all({"time_s", "env_steps", "updates"} <= line.keys() for line in result)
    assert [line["env_steps"] for line in result] == sorted(line["env_steps"] for line in result)
    assert result[-1]["env_steps"] >= STEPS
    evaluated = lines(run_dir / "evaluations.jsonl")
    at = [line["env_steps"] for line in evaluated]
    assert at == [0, 80, 160, STEPS]  # at the start and early, where there were updates; then as asked
    assert all(line["wall_s"] > 0 and line["returns"] for line in evaluated)


def test_the_summary_has_every_promised_field_and_its_numbers_agree(run_dir: Path) -> None:
    result = read(run_dir / "summary.json")
    assert result.keys() >= SUMMARY
    assert (result["algorithm"], result["env"], result["seed"], result["backend"], result["exit"]) == (
        "softgac", "Pendulum-v1", 7, "inline", "completed")  # fmt: skip
    assert result["rows"] == {"recorded": result["env_steps"], "stored": result["env_steps"], "dropped": {}}
    assert result["workers"] == {"started": 2, "restarted": 0}
    assert {"data_wait", "update", "publish"} <= result["learner_time"].keys()
    assert sum(result["learner_time"].values()) == pytest.approx(1.0)
    assert result["policy_age_versions"].keys() == {"p50", "p95"}
    assert result["env_steps_per_s"] == pytest.approx(result["env_steps"] / result["wall_s"])
    assert result["eval_episodes"] == 2 and result["eval_return_mean"] < 0 <= result["eval_return_std"]


def test_status_of_an_ended_run_in_words_and_as_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = said(capsys, "status", str(run_dir))
    for part in ("ended", "env steps", "updates", "replay ratio", "evaluated", "version"):
        assert part in result
    assert "note" not in result and "workers" not in result, "none of an ended run"
    found = json.loads(said(capsys, "status", str(run_dir), "--json"))
    assert found["state"] == "ended" and found["pid"] is None and found["summary"]["exit"] == "completed"
    assert found["live"]["env_steps"] >= STEPS and found["last_evaluation"]["env_steps"] == STEPS


def test_evaluate_gives_the_same_returns_for_the_same_seed_and_others_for_another(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def returns(*words: str) -> Any:
        found = json.loads(said(capsys, "evaluate", str(run_dir), "--episodes", "2", "--json", *words))
        assert found["env"] == "Pendulum-v1" and found["episodes"] == 2 and found["env_steps"] >= STEPS
        return found["returns"]

    assert returns() == returns() != returns("--seed", "5")
    assert returns() == lines(run_dir / "evaluations.jsonl")[-1]["returns"]  # the run's own last evaluation
    result = said(capsys, "evaluate", str(run_dir), "--episodes", "2")
    assert "Pendulum-v1" in result and "2 deterministic episodes" in result


def test_evaluate_films_an_episode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_inline(tmp_path / "run", "InvertedPendulum-v5", 96) == 0
    video = tmp_path / "video.mp4"
    assert str(video) in said(capsys, "evaluate", str(tmp_path / "run"), "--episodes", "1", "--video", str(video))
    assert video.stat().st_size > 1_000


def test_report_writes_one_page_about_several_runs(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    said(capsys, "report", str(run_dir), str(run_dir), "--output", str(page))
    text = page.read_text(encoding="utf-8")
    assert "Pendulum-v1" in text and "<svg" in text and "http://" not in text.replace("http://www.w3.org", "")


def test_a_run_that_is_given_twice_is_shown_once(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(run_dir)
    pages = [tmp_path / "one.html", tmp_path / "twice.html"]
    for page, runs in zip(pages, ([run_dir], [run_dir, run_dir, tmp_path / "link"])):
        said(capsys, "report", *map(str, runs), "--output", str(page))
    one, twice = (page.read_text(encoding="utf-8") for page in pages)
    assert one.count("<h2>") == twice.count("<h2>") and one.count("<tr>") == twice.count("<tr>")
    assert f"Drawbridge: {run_dir.name}" in twice


@pytest.mark.parametrize(
    "words",
    (["report", "RUN", "--output"], ["plan", "RUN", "--plot"], ["evaluate", "RUN", "--plot"], ["evaluate", "RUN", "--video"],
     ["export", "RUN", "--onnx"], ["dataset", "show", "x-v0", "--plot"]),
)  # fmt: skip
def test_no_command_makes_a_folder_for_its_file(
    words: list[str], run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run_dir) if word == "RUN" else word for word in words]
    assert exit_code(*words, str(tmp_path / "new" / "file.png")) == 2
    assert f"{tmp_path / 'new'} is no folder, expected the one for the file to be there" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_config_shows_every_field_of_a_preset_with_unit_default_and_meaning(
    preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {line.split()[0]: line for line in said(capsys, "config", preset).splitlines()}
    for key, (value, field) in flatten(make_preset("softgac", preset)).items():
        shown = str(value).lower() if value is None or isinstance(value, bool) else str(value)
        assert shown in result[key] and field.metadata["unit"] in result[key] and field.metadata["help"] in result[key]


def test_an_unknown_preset_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "papper"]) == 2
    result = capsys.readouterr().err
    assert "unknown preset 'papper'" in result and "did you mean 'paper'?" in result and "nothing was started" in result


def test_without_an_algorithm_every_preset_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "liner"]) == 2
    result = capsys.readouterr().err
    assert "expected one of cpu, linear, paper, paper-fleet;" in result and "did you mean 'linear'?" in result
    assert main(["config", "nope", "--algorithm", "sac"]) == 2
    assert "linear" not in capsys.readouterr().err


def test_sac_is_trained_by_the_same_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "train",
        "sac",
        "--env",
        "Pendulum-v1",
        "--backend",
        "inline",
        "--steps",
        "128",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    small = {
        "agent.critic_width": 32,
        "learner.batch_size": 32,
        "replay.min_size_rows": 64,
        "evaluation.final_episodes": 1,
    }
    for pair in (f"{key}={value}" for key, value in (small | {"metrics.port": -1}).items()):
        words += ["--set", pair]
    assert main(words) == 0
    assert read(tmp_path / "run" / "summary.json")["algorithm"] == "sac"


def test_the_version_is_that_of_the_tree_with_its_commit(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert re.fullmatch(r"drawbridge \d+\.\d+\.\d+ \(commit ([0-9a-f]{40}\+?|unknown)\)\n", capsys.readouterr().out)


def test_list_has_a_line_for_each_run_below_a_directory(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run_dir, tmp_path / "deep" / "good")
    shutil.copytree(run_dir, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.json").write_text("{")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")  # of another program: no run.lock is beside it
    head, damaged, why, good = said(capsys, "list", str(tmp_path)).splitlines()
    assert head.split() == ["RUN", "ALGORITHM", "ENVIRONMENT", "STATE", "DONE", "RETURN"]
    assert damaged.split()[:4] == ["damaged", "-", "-", "unreadable"] and "config.json cannot be read" in why
    mean = np.mean(lines(run_dir / "evaluations.jsonl")[-1]["returns"])
    assert good.split() == [
        "deep/good",
        "softgac",
        "Pendulum-v1",
        "ended",
        f"{STEPS}/{STEPS}",
        "env",
        "steps",
        f"{mean:,.1f}",
    ]
    assert said(capsys, "list", str(tmp_path / "other")).startswith("no runs below")
    assert main(["list", str(tmp_path / "none")]) == 2


def configured(*words: str) -> RunConfig:
    return resolve(_parser().parse_args(["train", *words]))


def test_a_config_file_gives_the_settings_and_the_command_line_wins(run_dir: Path, tmp_path: Path) -> None:
    file, config = str(run_dir / "config.json"), RunDirectory.open(run_dir).config()
    assert configured("softgac", "--config", file) == config
    found = configured("softgac", "--config", file, "--env", "Hopper-v5", "--seed", "8", "--set", "agent.rho=0.3")
    agent = dataclasses.replace(config.agent, rho=0.3)
    assert found == dataclasses.replace(config, env="Hopper-v5", seed=8, agent=agent)
    some = tmp_path / "some.json"
    some.write_text(json.dumps({"env": "Hopper-v5", "preset": "paper", "worker": {"workers": 7, "fast_envs": False}}))
    found, preset = configured("sac", "--config", str(some)), make_preset("sac", "paper", "Hopper-v5")
    assert found == dataclasses.replace(preset, worker=dataclasses.replace(preset.worker, workers=7, fast_envs=False))


@pytest.mark.parametrize(
    ("text", "words"),
    (
        ("{", "cannot be used .*, expected a run's config.json, or a JSON object .*nothing was started; correct it"),
        ('{"algorithm": "sac"}', "is of sac, expected softgac: .* nothing was started; give `train sac`"),
        (
            '{"worker": {"wrkers": 2}, "seed": "x"}',
            r"(?s)some.json: worker.wrkers: .* nearest: worker.workers.*some.json: seed=x",
        ),
        (
            '{"env": "envs_that_no_test_names:Hangs-v0"}',
            "was read from a file, expected a module to be named on the command line",
        ),
    ),
)
def test_a_config_file_that_cannot_be_used_is_refused(text: str, words: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "some.json").write_text(text)
    given = ["--config", str(tmp_path / "some.json"), "--backend", "inline", "--run-dir", str(tmp_path / "run")]
    env = [] if "env" in text else ["--env", "Pendulum-v1"]
    assert main(["train", "softgac", *env, *given]) == 2
    assert re.search(words, capsys.readouterr().err.replace("\n", " ")) and not (tmp_path / "run").exists()


def test_a_path_that_cannot_be_used_is_refused_by_its_own_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "softgac", "--env", "Pendulum-v1", "--config", str(tmp_path)]) == 2
    assert f"--config {tmp_path} cannot be used ([Errno 21] Is a directory: '{tmp_path}')" in capsys.readouterr().err
    missing = tmp_path / "missing" / "p.onnx"
    for path, seen in ((missing, f"{missing.parent} is no folder"), (tmp_path, f"{tmp_path} is a folder")):
        with pytest.raises(SystemExit, match="2"):
            main(["export", str(tmp_path), "--onnx", str(path)])
        assert seen in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{missing}'"):
        write_atomic(missing, b"")


LOUD = """
import os
import gymnasium as gym
from gymnasium.envs.classic_control import PendulumEnv
print("while it is imported")
class Loud(PendulumEnv):
    def __init__(self, **words):
        print("from Python")
        os.write(1, b"past Python\\n")
        super().__init__(**words)
gym.register("Loud-v0", Loud, max_episode_steps=20)
"""


def test_nothing_that_an_environment_prints_is_mixed_into_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud.py").write_text(LOUD)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code = ["--py-modules", str(tmp_path / "loud.py"), "--import", "loud"]
    run = tmp_path / "run"
    assert train_inline(run, "loud:Loud-v0", 96, *code) == 0
    result = command("evaluate", str(run), "--episodes", "1", "--env", "loud:Loud-v0", *code, "--json")
    assert result.returncode == 0 and len(json.loads(result.stdout)["returns"]) == 1, result.stderr
    for text in ("while it is imported", "from Python", "past Python"):
        assert text in result.stderr
