"""The commands of what learns from episodes as a contract: files and fields of runs, exact resumption, modes, words."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_episodes import TINY, TINY_CLONE, TINY_GAC, finetune_words, pairs
from tiny_runs import edit_config, lines, read

from algorithms.gac.target import Target, next_target
from cluster.checks import make_spec
from cluster.cli import main
from cluster.commands.finetune import finetuned
from cluster.commands.resuming import resumed
from cluster.config import flatten, make_preset, override
from cluster.diagnosis import diagnosis_in_words
from cluster.errors import UsageError
from cluster.pictures.curve import learning_curve
from cluster.run_dir import RunDirectory
from cluster.session import Session
from replay.dataset import open_dataset, write_dataset
from replay.schema import ReturnSummary
from replay.stored_episode import StoredEpisode

ENV, ID = "FixedGoal/PointMaze_UMaze-v3", "tiny/umaze-v0"
SELDOM = 1_000  # s between two lines: the first, and those of the end
SMALL: dict[str, Any] = {"episodes": 3, "updates": 5, "metrics__line_s": SELDOM, "evaluation__every_steps": 0}
FILES = {"config.json", "metrics.jsonl", "evaluations.jsonl", "checkpoints", "replay", "live.json", "summary.json", "events",
         "curve.png"}  # fmt: skip
SUMMARY = {
    "algorithm", "env", "seed", "backend", "preset", "exit", "env_steps", "updates", "wall_s", "env_steps_per_s", "updates_per_s",
    "replay_ratio", "eval_return_mean", "eval_return_std", "eval_episodes", "rows", "workers", "learner_time", "policy_age_versions",
}  # fmt: skip
PARTS = {
    "loss_elbo", "loss_action_nll", "loss_next_state_error", "loss_return_nll", "loss_return_error", "loss_kl_token", "loss_kl_total",
    "loss_active_dims", "loss_collapse", "loss_plan_return", "loss_grad_norm", "loss_learning_rate", "loss_nonfinite",
}  # fmt: skip
PLANNED = ("predicted", "variance", "path_length", "shortest_path", "reached", "starts_in_goal")
MODES = ("prior", "st", "kl", "max")
CLOCKS = ("wall_s", "time_s")
QUICK = {"evaluation.final_episodes": 1, "evaluation.episodes": 1}


@pytest.fixture(scope="module", autouse=True)
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A dataset of random walks in the maze, for the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        write(ID, range(8))
        yield open_dataset(ID)


def write(dataset_id: str, walks: Sequence[int]) -> None:
    box = {"action_low_A": -np.ones(2), "action_high_A": np.ones(2)}
    references = {"random_return": 2.0, "expert_return": 202.0, "reference_episodes": 1, "expert": "planner"}
    episodes = (walk(number)._replace(index=index) for index, number in enumerate(walks))
    write_dataset(dataset_id, episodes, env_id=ENV, algorithm_name="random", description={}, **box, **references)


def walk(index: int, steps: int = 20) -> StoredEpisode:
    rng = np.random.default_rng(index)
    obs_NO = rng.uniform(-1, 1, (steps + 1, 4)).astype(np.float32)
    action_TA = rng.uniform(-1, 1, (steps, 2)).astype(np.float32)
    return StoredEpisode(index, obs_NO[:-1], action_TA, np.full(steps, 2.0 * index / steps), False, True, obs_NO[-1])


def train(run: Path, steps: int, *flags: str, algorithm: str = "gac", **more: Any) -> int:
    agent = TINY_GAC if algorithm == "gac" else TINY_CLONE
    words = ["train", algorithm, "--dataset", ID, "--backend", "inline", "--steps", str(steps), "--run-dir", str(run)]
    return main([*words, *flags, *pairs(TINY, QUICK, agent, **more)])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An offline GAC run that ended."""
    path = tmp_path_factory.mktemp("commands") / "run"
    result: dict[str, Any] = {"metrics__tensorboard": "true", "metrics__line_s": 0, "evaluation__every_steps": 10}
    assert train(path, 20, "--seed", "7", **result) == 0
    return path


@pytest.fixture(scope="module")
def online(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, fine-tuned in two stages."""
    path = tmp_path_factory.mktemp("online") / "run"
    assert main(finetune_words(run_dir, path, **SMALL)) == 0
    return path


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that succeeds prints."""
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


def test_an_offline_run_leaves_what_every_run_leaves(run_dir: Path) -> None:
    assert {path.name for path in run_dir.iterdir()} >= FILES
    assert any(path.name.startswith("events.out.tfevents") for path in (run_dir / "events").iterdir())
    config = read(run_dir / "config.json")
    assert (config["algorithm"], config["env"], config["dataset"], config["unit"]) == ("gac", ENV, ID, "updates")
    assert config["steps"] == config["agent"]["updates"] == 20 and config["seed"] == 7


def test_the_summary_of_an_offline_run_has_every_field_and_its_numbers_agree(run_dir: Path) -> None:
    result = read(run_dir / "summary.json")
    assert result.keys() >= SUMMARY
    assert (result["algorithm"], result["env"], result["seed"]) == ("gac", ENV, 7)
    assert (result["backend"], result["exit"]) == ("inline", "completed")
    assert (result["env_steps"], result["updates"], result["workers"]["started"]) == (0, 20, 0)
    assert result["rows"] == {"recorded": 0, "stored": 0, "dropped": {}} and result["eval_episodes"] == 1
    assert sum(result["learner_time"].values()) == pytest.approx(1.0)


def test_metrics_have_the_parts_of_the_bound_and_evaluations_those_of_plans(run_dir: Path) -> None:
    result = lines(run_dir / "metrics.jsonl")
    learned = [line for line in result if "loss_elbo" in line]
    assert learned and all(line.keys() >= PARTS | {"time_s", "env_steps", "updates"} for line in learned)
    assert [line["updates"] for line in result] == sorted(line["updates"] for line in result) and result[-1][
        "updates"
    ] == 20
    last = learned[-1]
    assert last["loss_kl_total"] == pytest.approx(last["loss_kl_token"] * TINY_GAC["agent.tokens"], rel=1e-5)
    assert np.isfinite([last[name] for name in PARTS]).all() and last["loss_nonfinite"] == 0
    evaluated = lines(run_dir / "evaluations.jsonl")
    assert [line["updates"] for line in evaluated] == [0, 5, 10, 20]  # at the start and early, then as asked
    assert all(line["mode"] == "kl" and all(len(line[name]) == 1 for name in PLANNED) for line in evaluated)


def test_every_record_of_an_offline_run_is_on_the_scale_of_its_dataset(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = lines(run_dir / "evaluations.jsonl")[-1]
    assert (made["random_return"], made["expert_return"]) == (2.0, 202.0)
    score = (np.mean(made["returns"]) - 2) / 2
    assert made["normalised_mean"] == pytest.approx(score)
    assert lines(run_dir / "metrics.jsonl")[-1]["eval_normalised"] == pytest.approx(score)
    assert f", normalised {score:.1f}" in said(capsys, "status", str(run_dir))
    said(capsys, "report", str(run_dir), "--output", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    drawn = {line.get_label() for line in learning_curve(run_dir).axes[0].get_lines()}  # of curve.png
    assert drawn >= {"random policy (0)", "expert (100)"} and all(
        name in page for name in ("random policy (0)", "expert (100)")
    )


def test_status_of_an_offline_run_says_nothing_of_environments(
    run_dir: Path, online: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, theirs = said(capsys, "status", str(run_dir)), said(capsys, "status", str(online))
    assert "updates              20 of 20" in result
    for word in ("env steps", "age p50"):
        assert word not in result and word in theirs


def test_a_fine_tuned_run_leaves_the_same_and_counts_what_it_gathered(online: Path, run_dir: Path) -> None:
    assert {path.name for path in online.iterdir()} >= FILES - {"events"}
    result, config = read(online / "summary.json"), read(online / "config.json")
    assert result.keys() >= SUMMARY and (result["updates"], result["exit"]) == (10, "completed")
    assert result["env_steps"] == result["rows"]["stored"] >= 2 * 3 * 300  # episodes of the maze's time limit
    assert result["workers"] == {"started": 2, "restarted": 0}
    assert result["online_episodes"] >= result["asked_episodes"] == 2 * 3
    assert config["online"]["base"] == str(run_dir) and config["online"]["stages"] == 2
    assert (config["steps"], config["agent"]["updates"], config["agent"]["cycle"]) == (10, 20, 5)  # a cycle a stage
    assert (config["data"]["offline_fraction"], config["agent"]["return_memory"]) == (0.125, 0.98)
    assert config["agent"]["kl_weight"] == 1.0
    every_line = lines(online / "metrics.jsonl")
    assert every_line[-1].keys() >= PARTS
    assert sum(line.get("episodes", 0) for line in every_line) == every_line[-1]["online_episodes"] == 6


def test_a_fine_tuned_run_is_fine_tuned_once_more_and_its_stages_count_anew(online: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert main(finetune_words(online, again, stages=1, episodes=3, updates=10, evaluation__every_steps=0)) == 0
    assert (read(again / "config.json")["agent"]["cycle"], read(again / "summary.json")["updates"]) == (10, 10)
    state = learner(again)
    assert state["learner/agent/updates"] == 20 + 10  # the first run's schedule, then one cycle
    assert state["learner/agent/target"][2] == 1  # stage


@pytest.mark.parametrize("algorithm", ["bc", "percent-bc", "rvs", "dt", "cal-ql"])
def test_the_baselines_are_trained_and_evaluated_by_the_same_commands(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, 10, algorithm=algorithm) == 0
    result = read(run / "summary.json")
    assert result.keys() >= SUMMARY and (result["algorithm"], result["updates"]) == (algorithm, 10)
    assert lines(run / "metrics.jsonl")[-1]["loss_critic_loss" if algorithm == "cal-ql" else "loss_action_mse"] > 0
    found = json.loads(said(capsys, "evaluate", str(run), "--episodes", "2", "--json"))
    assert len(found["returns"]) == len(found["normalised"]) == len(found["path_length"]) == 2
    assert found["mode"] == "" and found["predicted"] == []
    assert (found["target"] is None) == (algorithm not in ("rvs", "dt"))
    assert main(["resume", str(run), "--steps", "20"]) == 0 and read(run / "summary.json")["updates"] == 20


def test_an_online_decision_transformer_gathers_what_it_asks_twice_the_best_for(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    assert train(base, 5, algorithm="odt", agent__context=2) == 0
    assert lines(base / "metrics.jsonl")[-1].keys() >= {"loss_action_nll", "loss_entropy", "loss_alpha"}
    assert main(finetune_words(base, run, **{**SMALL, "metrics__line_s": 0}, stages=1)) == 0
    told = read(run / "summary.json")
    assert told["updates"] == 5 and told["env_steps"] >= 3 * 300
    held = load_file(min((run / "replay" / "shard-0").glob("*.safetensors")))
    asked = held["table.target"][held["table.origin"] == 1]  # gathered
    assert len(asked) >= 3
    np.testing.assert_allclose(asked, 2 * open_dataset(ID).summary().return_max)


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_evaluated_with_what_was_predicted_and_achieved_in_every_episode(
    mode: str, run_dir: Path, dataset: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("evaluate", str(run_dir), "--mode", mode, "--episodes", "3", "--json")
    result = said(capsys, *words)
    found = json.loads(result, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["algorithm"], found["env"], found["updates"], found["episodes"]) == ("gac", ENV, 20, 3)
    assert found["mode"] == mode and found["errors"] == []
    unkept = (
        np.mean(found["predicted"]) > np.mean(found["returns"]) + 3.5
    )  # half of the way from the data's mean, 0, to its best, 7
    assert [one[:13] for one in found["warnings"]] == ["plans promise"] * int(unkept)
    assert all(len(found[name]) == 3 for name in ("returns", "lengths", "normalised", *PLANNED))
    assert found["normalised"] == pytest.approx([(value - 2.0) / 2.0 for value in found["returns"]])
    assert found["normalised_mean"] == pytest.approx(np.mean(found["normalised"]))
    assert found["return_mean"] == pytest.approx(np.mean(found["returns"])) and found["dataset"] == dataset.id
    assert (found["target"] is not None) == (mode == "st")
    assert all(length >= 0 for length in found["path_length"]) and min(found["variance"]) > 0
    walked = [p for p, at in zip(found["path_length"], found["reached"]) if at >= 0]
    shortest = [p for p, at in zip(found["shortest_path"], found["reached"]) if at >= 0]
    assert all(way >= least - 1e-3 for way, least in zip(walked, shortest))
    again = json.loads(said(capsys, *words))
    assert {name: again[name] for name in again if name not in CLOCKS} == {name: found[name] for name in found if name not in CLOCKS}  # fmt: skip


def test_an_evaluation_in_words_has_both_scales_and_the_prediction(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = said(capsys, "evaluate", str(run_dir), "--mode", "st", "--target-return", "9", "--episodes", "2")
    for part in (
        ENV,
        "2 deterministic episodes",
        "20 updates, mode st",
        "normalised",
        "0: random, 2.0",
        "predicted",
        "goal",
    ):
        assert part in result


def test_a_diagnosis_has_scores_by_part_of_the_plan_and_shares_of_the_actions(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("diagnose", str(run_dir), "--mode", "st", "--episodes", "2")
    found = json.loads(said(capsys, *words, "--json"))
    assert found["scores"].keys() == {"searched", "hidden", "redrawn", "one", "prior"} and found["mode"] == "st"
    plain = json.loads(said(capsys, "evaluate", str(run_dir), "--mode", "st", "--episodes", "2", "--json"))
    for name in ("return_mean", "normalised_mean"):
        assert found["scores"]["searched"][name] == pytest.approx(plain[name])
    assert found["target"] == plain["target"] and found["recorded_episodes"] == 8
    assert found["explained"].keys() == {"state", "state_return", "others", "promise", "own", "prior", "spread"}
    assert max(found["explained"].values()) < 1 and found["plan"]["dims"] == 16 and found["ends"] > 0
    result = said(capsys, *words)
    page = tmp_path / "report.html"
    assert main(["report", str(run_dir), "--output", str(page)]) == 0
    assert html.escape(result.strip()) in page.read_text()
    for part in (
        "hidden: nothing but zeros",
        "state and return, without a plan",
        "KL, nats a token",
        "Hiding the plan costs",
        "one plan drawn from the prior ",
        "where they end from one start",
    ):
        assert part in result
    assert "hidden, but for the return it promises" in diagnosis_in_words(found | {"plan_reading": "linear"})


def test_a_diagnosis_looks_at_episodes_that_were_not_learned_from(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, words = "tiny/unseen-v0", ("diagnose", str(run_dir), "--mode", "kl", "--episodes", "2", "--json")
    write(other, range(100, 105))
    found = [json.loads(said(capsys, *words, *more)) for more in ((), ("--dataset", other))]
    assert [(one["dataset"], one["recorded_episodes"]) for one in found] == [(ID, 8), (other, 5)]
    assert found[0]["scores"] == found[1]["scores"] and found[0]["explained"] != found[1]["explained"]
    assert main([*words, "--dataset", "tiny/nowhere-v0"]) == 2
    assert "no dataset 'tiny/nowhere-v0'" in capsys.readouterr().err


def test_alarms_are_told_on_the_console_in_status_in_the_summary_and_by_evaluate(
    dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, sentence = tmp_path / "run", "the posterior has collapsed"
    straight: dict[str, Any] = {"agent__plan_reading": "linear", "agent__layers": 0}  # promises without end
    assert train(run, 40, agent__kl_weight=1e4, agent__free_bits=0, agent__lr=0.05, metrics__line_s=0, **straight) == 0
    shown = capsys.readouterr().out
    assert f"] {sentence}" in shown and f"Alarm: {sentence}" in " ".join(shown.split())
    assert read(run / "summary.json")["alarms"][0].startswith(sentence)
    assert f"alarm      {sentence}" in said(capsys, "status", str(run))
    assert json.loads(said(capsys, "status", str(run), "--json"))["alarms"][0].startswith(sentence)
    far = (
        "--mode",
        "max",
        "--set",
        "agent.infer_lr=1",
        "--set",
        "agent.infer_max_steps=500",
        "--episodes",
        "2",
        "--json",
    )
    warned = json.loads(said(capsys, "evaluate", str(run), *far))["warnings"]
    assert warned[0].startswith(sentence) and warned[1].startswith("plans promise a return of")


def test_what_is_free_is_an_alarm_at_the_end_of_a_run_on_a_dataset_and_never_in_its_stages(
    dataset: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the run's own records and for a diagnosis of it, which point to what plans are worth."""
    base, stages = tmp_path / "base", tmp_path / "stages"
    assert train(base, 20, agent__free_bits=50, metrics__line_s=0, evaluation__every_steps=0) == 0
    assert main(finetune_words(base, stages, **SMALL | {"metrics__line_s": 0})) == 0
    for run, sounds in ((base, True), (stages, False)):
        records = [line for line in lines(run / "metrics.jsonl") if "loss_collapse" in line]
        assert 0.05 < records[-1]["loss_kl_token"] < 50
        assert ({line["loss_collapse"] for line in records} == {0.0}) == (not sounds)
        found = json.loads(said(capsys, "diagnose", str(run), "--mode", "kl", "--episodes", "1", "--json"))
        assert found["plan"]["collapsed"] == sounds
        (told,) = [text for text in found["reading"] if "the posterior has collapsed on the recorded" in text] or [""]
        assert ("may steer little" in told) == sounds and "`drawbridge diagnose`" not in told
    (told,) = (text for text in read(base / "summary.json")["alarms"] if text.startswith("the posterior has collapsed"))
    assert "% of the newest updates: plans say" in told and "nats a token on average" in told
    assert "may steer little (`drawbridge diagnose` measures how much)" in told


def test_status_counts_updates_in_words_and_as_json(
    run_dir: Path, online: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = said(capsys, "status", str(run_dir))
    for part in ("gac on", "ended", "20 of 20", "updates", "evaluated", "at 20 updates"):
        assert part in result
    assert "replay ratio" not in result  # stages, not a ratio, say how much is learned
    found = json.loads(said(capsys, "status", str(run_dir), "--json"))
    assert (found["state"], found["unit"], found["steps"], found["live"]["updates"]) == ("ended", "updates", 20, 20)
    assert "10 of 10" in said(capsys, "status", str(online))


def test_a_report_takes_runs_of_both_kinds(run_dir: Path, online: Path, tmp_path: Path) -> None:
    assert main(["report", str(run_dir), str(online), "--output", str(tmp_path / "page.html")]) == 0
    assert "<svg" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    "algorithm", ["gac", "bc", "percent-bc", "rvs", "dt", "odt", "iql", "td3-bc", "cql", "cal-ql", "rlpd"]
)
@pytest.mark.parametrize("preset", ["cpu", "paper"])
def test_config_shows_every_field_with_unit_value_and_meaning(
    algorithm: str, preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {line.split()[0]: line for line in said(capsys, "config", preset, "--algorithm", algorithm).splitlines()}
    fields = flatten(make_preset(algorithm, preset))
    assert result.keys() == fields.keys()
    for key, (value, field) in fields.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        assert shown in result[key] and field.metadata["unit"] in result[key] and field.metadata["help"] in result[key]


def test_steps_are_updates_and_set_the_schedule_unless_that_is_named(tmp_path: Path) -> None:
    assert train(tmp_path / "run", 10, agent__updates=40) == 0
    config = read(tmp_path / "run" / "config.json")
    assert (config["steps"], config["agent"]["updates"]) == (10, 40)
    assert read(tmp_path / "run" / "summary.json")["updates"] == 10


def learner(run: Path) -> dict[str, np.ndarray]:
    """The newest checkpoint's tensors of the learner, without the counter of its starts."""
    newest = max((run / "checkpoints").iterdir())
    tensors = load_file(newest / "tensors.safetensors")
    return {
        name: value
        for name, value in tensors.items()
        if name.startswith("learner/") and not name.endswith("generation")
    }


def episodes(run: Path) -> dict[str, np.ndarray]:
    """What the shard's newest snapshot holds."""
    found = sorted((run / "replay" / "shard-0").rglob("*.safetensors"))
    assert found
    return dict(load_file(found[-1]))


def test_each_stage_is_judged_once_by_its_own_episodes_with_the_lowest_targets(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[tuple[float, float, float]] = []

    def watched(config: Any, returns: ReturnSummary, previous: Target, **known: float) -> Target:
        found = next_target(config, returns, previous, **known)
        if found.stage != previous.stage:
            judged.append((found.stage, returns.stage_target, returns.stage_reached))
        return found

    monkeypatch.setattr("algorithms.gac.agent.next_target", watched)
    small: dict[str, Any] = {"episodes": 3, "updates": 10, "evaluation__every_steps": 0}
    assert main(finetune_words(run_dir, tmp_path / "run", stages=3, **small)) == 0
    held = dict(load_file(sorted((tmp_path / "run" / "replay" / "shard-0").rglob("segment-000000-*.safetensors"))[-1]))
    expected = []
    for stage in (1, 2, 3):
        target, reached = (held[f"table.{name}"][held["table.stage"] == stage] for name in ("target", "ret"))
        low = target <= np.quantile(target, 0.1)
        expected.append((stage, target[low].mean(), reached[low].mean()))
    assert judged == pytest.approx(np.array(expected), rel=1e-6)


def last_evaluation(run: Path) -> dict[str, Any]:
    return {
        k: v for k, v in lines(run / "evaluations.jsonl")[-1].items() if k not in (*CLOCKS, "generation", "version")
    }


def assert_same(one: Path, other: Path) -> None:
    for read_in in (learner, episodes):
        here, there = read_in(one), read_in(other)
        assert here and here.keys() == there.keys()
        differing = [name for name in here if not np.array_equal(here[name], there[name], equal_nan=here[name].dtype.kind == "f")]  # fmt: skip
        assert not differing, f"{len(differing)} of {len(here)} differ, such as {differing[:5]}"
    assert last_evaluation(one) == last_evaluation(other)


@pytest.mark.parametrize("posterior", ["amortised", "stored"])
def test_offline_one_seed_gives_one_run_and_two_halves_equal_the_whole(posterior: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"agent__updates": 20, "agent__posterior": posterior, "agent__inner_steps": 2}
    one, two, parts, other = (tmp_path / name for name in ("one", "two", "parts", "other"))
    assert train(one, 20, **settings) == 0
    assert train(two, 20, **settings, learner__checkpoint_s=0.05) == 0  # saves change nothing
    assert_same(one, two)
    assert train(parts, 10, **settings) == 0
    assert main(["resume", str(parts), "--steps", "20"]) == 0
    assert_same(one, parts)
    assert train(other, 20, "--seed", "2", **settings) == 0
    assert last_evaluation(other) != last_evaluation(one)


def test_a_fine_tuning_that_was_interrupted_twice_equals_one_that_never_was(
    run_dir: Path, online: Path, tmp_path: Path
) -> None:
    again, parts = tmp_path / "again", tmp_path / "parts"
    assert main(finetune_words(run_dir, again, **SMALL)) == 0
    assert_same(online, again)
    stages = {"online.stages": "2", "online.episodes_per_stage": "3", "online.updates_per_stage": "5"}
    config = finetuned(
        RunDirectory.open(run_dir), stages | {"metrics.line_s": str(SELDOM), "evaluation.every_steps": "0"}
    )
    assert config == RunDirectory.open(online).config()
    run = RunDirectory.create(parts, config)
    for start, seconds in enumerate(
        (0.02, 60.0)
    ):  # somewhere in the first gathering, and at the end of the first stage
        with Session(run, make_spec(config, run, start)) as session:
            session.fleet.advance(seconds, 5)
            assert session.aggregator.progress < 10
            session.finish("interrupted")
    run.release()
    run.count_start()
    assert not (parts / "evaluations.jsonl").exists() and read(parts / "summary.json")["exit"] == "interrupted"
    assert main(["resume", str(parts)]) == 0
    assert_same(online, parts)


@pytest.mark.parametrize("how", ["--steps", "--set", "config.json"])
@pytest.mark.parametrize("steps", [8, 30])
def test_the_length_of_a_run_in_stages_is_not_changed_by_a_resume(
    how: str, steps: int, online: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(online, run)
    if how == "config.json":
        edit_config(run, steps=steps)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    words = {"--steps": ["--steps", str(steps)], "--set": ["--set", f"steps={steps}"], "config.json": []}
    assert main(["resume", str(run), *words[how]]) == 2
    refused = capsys.readouterr().err
    for part in (
        "steps is 10 in this run",
        str(steps),
        "is that of its stages",
        "fine-tune the run again with --stages",
    ):
        assert part in refused, refused
    assert "give --steps" not in refused and "nothing was started" in refused
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_in_stages_that_ended_is_told_to_be_fine_tuned_again(
    online: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in ([], ["--steps", "10"]):
        assert main(["resume", str(online), *words]) == 2
        refused = capsys.readouterr().err
        assert "has made its 10 updates and ended" in refused and "fine-tune it again for more stages" in refused
        assert "give --steps" not in refused


def test_stages_without_a_base_keep_their_length_too(dataset: Any, tmp_path: Path) -> None:
    config = override(make_preset("rlpd", "cpu"), {"env": ENV, "dataset": ID, "backend": "inline"})
    run = RunDirectory.create(tmp_path / "run", config)
    with pytest.raises(UsageError, match=r"steps is 7,?500 in this run.*is that of its stages"):
        resumed(run, {"steps": "9000"})
    assert resumed(run, {"steps": str(config.steps)}) == config
    run.release()


def test_no_run_begins_inside_another(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for inner in (run_dir / "inner", run_dir / "checkpoints" / "deep" / "inner"):
        assert main(finetune_words(run_dir, inner, **SMALL)) == 2
        told = capsys.readouterr().err
        assert f"would be inside the run {run_dir}" in told and "choose another --out" in told
        assert train(inner, 5, algorithm="bc") == 2
        told = capsys.readouterr().err
        assert f"would be inside the run {run_dir}" in told and "choose another --run-dir" in told
        assert not inner.exists() and not inner.parent.joinpath("inner").exists()
    assert not (run_dir / "checkpoints" / "deep").exists()


@pytest.mark.parametrize(
    ("walks", "seen"), [((7,), "has one episode, which returns"), ((7, 7), "has 2 episodes, which all")]
)
@pytest.mark.parametrize("algorithm", ["gac", "rvs", "dt"])
def test_returns_that_do_not_differ_are_told_to_who_learns_from_them(
    walks: tuple[int, ...], seen: str, algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset_id = f"tiny/alike-{algorithm}-v{len(walks)}"
    write(dataset_id, walks)
    assert train(tmp_path / "run", 2, "--dataset", dataset_id, algorithm=algorithm) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"dataset {dataset_id} {seen}" in told and "expected returns that differ" in told


def test_a_stage_is_left_between_two_of_its_updates(run_dir: Path, tmp_path: Path) -> None:
    """A long stage would else let nobody know of it, nor end when it is asked to."""
    settings = {"online.stages": "1", "online.episodes_per_stage": "3", "online.updates_per_stage": "60"}
    config = finetuned(RunDirectory.open(run_dir), settings | {"evaluation.every_steps": "0"})
    whole, parts = (RunDirectory.create(tmp_path / name, config) for name in ("whole", "parts"))
    with Session(whole, make_spec(config, whole, whole.count_start())) as session:
        session.fleet.advance(60.0, 60)
        session.finish("interrupted")
    with Session(parts, make_spec(config, parts, parts.count_start())) as session:
        session.fleet.advance(60.0, 20)
        assert 20 <= session.aggregator.progress < 60
        session.finish("interrupted")
    for run in (whole, parts):
        run.release()
        assert main(["resume", str(run.path)]) == 0
    assert_same(whole.path, parts.path)


def test_workers_that_began_anew_are_the_same_when_the_run_is_resumed_once_more(run_dir: Path, tmp_path: Path) -> None:
    """Their running episodes carry the ids of a later incarnation: taken for another's they would all be dropped."""
    settings = {"online.stages": "1", "online.episodes_per_stage": "3", "online.updates_per_stage": "5"}
    config = finetuned(RunDirectory.open(run_dir), settings | {"evaluation.every_steps": "0"})
    run = RunDirectory.create(tmp_path / "run", config)
    with Session(run, make_spec(config, run, run.count_start())) as session:
        session.fleet.advance(0.02, 5)
        session.finish("interrupted")
    run.release()
    assert main(["resume", str(run.path)]) == 0
    rows = read(run.path / "summary.json")["rows"]
    assert rows["dropped"] == {} and rows["recorded"] == rows["stored"] > 0


def test_the_commands_of_datasets_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Make, list, show, train on it, export what an actor-critic's replay holds, train on that."""
    result = said(
        capsys, "dataset", "make", "maze", "--env", "PointMaze_UMaze-v3", "--episodes", "2", "--id", "tiny/made-v0"
    )
    assert "tiny/made-v0: 2 episodes, 600 steps" in result
    assert {"tiny/made-v0", ID} <= {line.split()[0] for line in said(capsys, "dataset", "list").splitlines()}
    assert "planner" in said(capsys, "dataset", "show", "tiny/made-v0")
    assert train(tmp_path / "made", 5, "--dataset", "tiny/made-v0", algorithm="bc") == 0
    assert main(["dataset", "export", str(tmp_path / "made"), "tiny/none-v0"]) == 2
    assert "give a run of `drawbridge finetune`" in capsys.readouterr().err
