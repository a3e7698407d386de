"""Bad input ends in a message of four parts: what was seen, what was expected, what follows, what to do."""

from __future__ import annotations

import dataclasses
import inspect
import json
import multiprocessing
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from broken_envs import Raises
from tiny_runs import command, edit_config, edit_meta, read, train_inline, train_words

from cluster.cli import main
from cluster.config import make_preset
from cluster.requests import Request, Requests
from cluster.run_dir import RunDirectory


def refused(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """What the command says on its way out with ``code``."""
    capsys.readouterr()
    assert main(words) == code
    result = capsys.readouterr().err
    assert "drawbridge: error: " in result and "Traceback" not in result
    return result


# env or settings -> (seen, expected, consequence, what to do)
REFUSED = {
    "unknown environment": (
        {"env": "HalfCheeta-v5"},
        ("unknown environment 'HalfCheeta-v5'", "expected a registered Gymnasium id (nearest: HalfCheetah-v5", "nothing can be",
         "correct the id"),
    ),
    "discrete actions": (
        {"env": "CartPole-v1"},
        ("CartPole-v1 has the action space Discrete(2)", "expected a Box of floats", "cannot be trained on", "choose an environment with"),
    ),
    "unbounded action box": (
        {"env": "broken_envs:Unbounded-v0"},
        ("unbounded action box: coordinate 0 is in [-inf, inf]", "expected finite bounds", "cannot be mapped", "wrap the environment"),
    ),
    "environment that does not start": (
        {"env": "broken_envs:WillNotStart-v0"},
        ("OSError: no display", "expected gymnasium.make to build it", "no worker can run it", "install what it asks for"),
    ),
    "module that is not there": (
        {"env": "no_such_module:Thing-v0"},
        ("names the module 'no_such_module'", "expected a module that registers", "cannot be made", "give --py-modules PATH"),
    ),
    "unknown key": (
        {"agent__rh": 0.1},
        ("--set agent.rh: there is no such field", "nearest: agent.rho", "nothing was started", "lists every field"),
    ),
    "ill-typed value": (
        {"replay__replay_ratio": "fast"},
        ("--set replay.replay_ratio=fast", "not of type float", "nothing was started", "give"),
    ),
    "value outside the choices": (
        {"agent__base_law": "cauchy"},
        ("--set agent.base_law=cauchy", "expected one of logistic, gaussian", "nothing was started", "choose"),
    ),
    "infeasible tolerance": (
        {"replay__tolerance_rows": 3},
        ("replay.tolerance_rows is 3", "expected 0 or at least", "wait for each other for ever", "set 0"),
    ),
    "impossible replay ratio": (
        {"replay__replay_ratio": -1},
        ("replay.replay_ratio is -1.0", "expected a positive number", "never", "set updates per env step"),
    ),
    "ratio that is not a number": (
        {"replay__replay_ratio": "nan"},
        ("replay.replay_ratio is nan", "expected a positive number", "never", "set updates per env step"),
    ),
    "batch larger than the buffer": (
        {"learner__batch_size": 4_096, "replay__capacity_rows": 1_000, "replay__recent_rows": 100},
        ("learner.batch_size is 4096", "expected at most 1000", "larger than the buffer", "raise the capacity or lower"),
    ),
    "more memory than the machine has": (
        {"replay__capacity_rows": 10**12},
        ("the run needs up to", "this machine has", "killed on the way", "lower replay.capacity_rows"),
    ),
    "more shards than workers": (
        {"replay__shards": 3},
        ("replay.shards is 3", "expected at most worker.workers 2", "one would stay empty", "start more workers"),
    ),
    "batch that cannot be split": (
        {"learner__learners": 3},
        ("batch_size 32", "3 learners", "cannot be split", "set it to"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_bad_settings_are_refused_with_the_four_parts_and_leave_nothing_behind(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, parts = REFUSED[case]
    settings = dict(given)
    env = str(settings.pop("env", "InvertedPendulum-v5"))
    result = refused(train_words(tmp_path / "run", env, "--backend", "inline", **settings), capsys)
    missing = [part for part in parts if part not in result]
    assert not missing, result
    assert not (tmp_path / "run").exists()


def test_all_problems_of_a_configuration_are_listed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = refused(train_words(tmp_path / "run", agent__gamma=1.5, worker__chunk_steps=0, learner__threads=0), capsys)
    assert "agent.gamma" in result and "worker.chunk_steps" in result and "learner.threads" in result
    result = refused(train_words(tmp_path / "run", agent__gamm=1, worker__chunk="x"), capsys)
    assert "agent.gamma" in result and "worker.chunk_steps" in result


def test_a_run_directory_that_exists_is_refused_and_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = refused(train_words(tmp_path, "InvertedPendulum-v5", "--backend", "inline"), capsys)
    for part in (f"run directory {tmp_path} exists", "expected a new one", "nothing in it was touched", "choose another --run-dir"):  # fmt: skip
        assert part in result
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def _hold(path: str, ready: socket.socket) -> None:
    run = RunDirectory.open(Path(path))
    run.hold()
    ready.send(b"held")
    ready.recv(1)  # until the test is done


def test_a_run_directory_of_a_living_run_is_refused_by_train_and_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory.create(tmp_path / "run", make_preset("softgac", "cpu"))
    run.release()
    here, there = socket.socketpair()
    here.settimeout(60)
    holder = multiprocessing.get_context("fork").Process(target=_hold, args=(str(run.path), there))
    holder.start()
    try:
        assert here.recv(4) == b"held"
        for words in (train_words(run.path, "InvertedPendulum-v5"), ["resume", str(run.path)]):
            result = refused(words, capsys)
            for part in (f"belongs to a living run (process {holder.pid})", "nothing was started"):
                assert part in result
            assert "choose another" in result or "end that process" in result
    finally:
        here.send(b"x")
        holder.join(30)


def test_a_directory_that_is_no_run_is_refused_by_every_command_that_reads_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["resume"], ["evaluate"], ["status"], ["scale", "--workers", "2"]):
        result = refused([words[0], str(tmp_path), *words[1:]], capsys)
        assert "is not a run directory" in result and "config.json" in result and "give the directory that" in result
    assert main(["report", str(tmp_path)]) in (1, 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run that ended."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train_inline(run, "InvertedPendulum-v5", 128) == 0
    return run


def _truncate(run: Path) -> None:
    path = next(run.glob("checkpoints/*/tensors.safetensors"))
    path.write_bytes(path.read_bytes()[:-100])


def _flip(run: Path) -> None:
    path = next(run.glob("checkpoints/*/tensors.safetensors"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _reconfigure(run: Path) -> None:
    edit_config(run, agent__critic_width=33)
    edit_meta(run, settings=None)  # of an older version


DAMAGE = {
    "truncated": (_truncate, "tensors.safetensors is truncated"),
    "flipped in one byte": (_flip, "tensors.safetensors is damaged: its digest differs"),
    "of another configuration": (_reconfigure, "another configuration: agent.critic_width is 32 there, 33 here"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_that_cannot_be_used_stops_resume_and_evaluate_and_is_never_replaced_by_a_fresh_start(
    damage: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm, seen = DAMAGE[damage]
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    harm(run)
    before, config = sorted(path.name for path in (run / "checkpoints").iterdir()), (run / "config.json").read_bytes()
    whole = damage == "of another configuration"
    for words in (["resume", str(run), "--steps", "256"], ["evaluate", str(run)]):
        result = refused(words, capsys, code=2 if words[0] == "resume" and not whole else 1)
        wanted = ("none of the 1 checkpoints", "the run's training is lost", "Put a good copy back")
        if words[0] == "resume" and not whole:
            wanted = (
                "has 1 checkpoints, expected a whole one",
                "would throw away",
                "nothing was started",
                "--accept-loss",
            )
            assert (run / "config.json").read_bytes() == config
        for part in (seen, *wanted):
            assert part in result
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == before
    assert not whole or seen in read(run / "failure.json")["error"]


def test_an_empty_path_is_not_the_current_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As "$RUNS" is where RUNS is not set."""
    for words in (["train", "softgac", "--env", "Pendulum-v1", "--run-dir", ""], ["list", ""], ["status", " "]):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        assert "it is empty, expected a path" in capsys.readouterr().err


def test_config_finds_the_algorithm_that_has_the_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "linear"]) == 0
    assert "agent.infer_" in capsys.readouterr().out


def test_a_damaged_config_of_a_run_is_named(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "config.json").write_text((finished / "config.json").read_text()[:200])
    result = refused(["resume", str(run), "--steps", "256"], capsys, code=1)
    assert "config.json cannot be read" in result and "damaged" in result
    config = read(finished / "config.json")
    config["agent"]["warp"] = 1
    (run / "config.json").write_text(json.dumps(config))
    result = refused(["resume", str(run), "--steps", "256"], capsys)
    assert "unknown fields ['agent.warp']" in result and "another version" in result and "check out" in result
    edited = read(finished / "config.json") | {"algorithm": "sac"}
    (run / "config.json").write_text(json.dumps(edited))
    result = refused(["resume", str(run), "--steps", "256"], capsys)
    assert "they are those of softgac, not of sac" in result and "put algorithm back" in result


def test_a_finished_run_is_not_resumed_without_more_steps_and_stays_finished(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = refused(["resume", str(finished)], capsys)
    assert "has made its 128 env steps" in result and "nothing was started" in result and "--steps more" in result
    assert read(finished / "summary.json")["exit"] == "completed"


def test_scaling_a_run_that_is_not_running_is_refused(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = refused(["scale", str(finished), "--workers", "3"], capsys)
    assert "no process drives" in result and "nothing to scale" in result and "drawbridge resume" in result


def test_an_address_where_nobody_answers_is_refused_within_ten_seconds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:  # bound, so nobody else takes the port; not listening, so nobody answers
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        for given in (address, f"ray://{address}", "no.such.host.invalid:6379"):
            begun = time.monotonic()
            result = refused(
                train_words(tmp_path / given[:3], "InvertedPendulum-v5", "--address", given), capsys, code=2
            )
            assert time.monotonic() - begun < 10
            parts = (
                f"--address {given}: no Ray cluster answers",
                "expected host:port",
                "nothing was started",
                "ray start --head",
            )
            for part in parts:
                assert part in result
            assert not (tmp_path / given[:3]).exists()


def test_an_address_of_the_environment_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no.such.host.invalid:6379")
    result = refused(train_words(tmp_path / "run", "InvertedPendulum-v5"), capsys, code=2)
    assert (
        "RAY_ADDRESS=no.such.host.invalid:6379: no Ray cluster answers" in result and "with --address local" in result
    )


@pytest.mark.parametrize("there", [False, True])
def test_a_start_that_is_refused_late_leaves_nothing_behind(
    there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, env = tmp_path / "run", "InvertedPendulum-v5"
    if there:
        run.mkdir()
    words = train_words(run, env, "--backend", "inline", metrics__port=0, metrics__targets_dir="/proc/x")
    result = refused(words, capsys, code=2)
    assert "metrics.targets_dir to be a folder that Prometheus watches" in result and "nothing was started" in result
    assert not list(run.iterdir()) if there else not run.exists()
    assert train_inline(run, env, 128) == 0


def test_a_request_to_scale_that_a_stopped_run_does_not_take_is_withdrawn(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(finished)
    run.hold()
    try:
        assert main(["scale", str(finished), "--workers", "3", "--timeout", "0.3"]) == 1
    finally:
        run.release()
    assert "did not answer within 0.3 s; the request is withdrawn and nothing was changed" in capsys.readouterr().err
    assert run.requests.take() is None


def test_a_folder_that_holds_runs_is_told_from_one_that_holds_none(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (["status"], ["resume"], ["stop"], ["evaluate"], ["report", "--output", str(tmp_path / "page.html")])
    for folder in (finished.parent, finished.parent.parent):
        for name, *flags in words:
            result = refused([name, str(folder), *flags], capsys)
            assert f"it holds runs: give one of those that `drawbridge list {folder}` names" in result
    for name, *flags in words:
        result = refused([name, str(tmp_path), *flags], capsys)
        assert "that `drawbridge train` named when it started" in result and "drawbridge list" not in result


def meanwhile(run: RunDirectory, happens: Callable[[str], None], patch: pytest.MonkeyPatch) -> None:
    """Holds the run as its driver does; ``happens`` is called with the id of the first request as soon as it is written."""

    def write(self: Requests, kind: str, number: int) -> str:
        ident = written(self, kind, number)
        happens(ident)
        return ident

    written = Requests.write
    patch.setattr(Requests, "write", write)
    run.hold()


@pytest.mark.parametrize("how", ["gone", "finishing", "answered"])
def test_a_request_to_scale_that_comes_in_a_runs_last_seconds_is_answered_at_once(
    how: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(shutil.copytree(finished, tmp_path / "run"))
    request = Request(kind="scale", ident="", number=3)

    def happens(ident: str) -> None:
        if how == "answered":
            run.requests.answer(dataclasses.replace(request, ident=ident), True, "3 run")
        if how == "finishing":
            run.write_live(run.live(), "finishing")
        else:
            run.release()

    meanwhile(run, happens, monkeypatch)
    try:
        code = main(["scale", str(run.path), "--workers", "3", "--timeout", "2"])
    finally:
        run.release()
    said = capsys.readouterr()
    if how == "answered":
        assert code == 0 and said.out == "3 run\n"
        return
    why = "no process drives" if how == "gone" else "is finishing"
    assert code == 1 and why in said.err and "the request is withdrawn and nothing was changed" in said.err, said.err
    assert run.requests.take() is None


def test_a_stop_that_comes_as_the_runs_of_seeds_end_says_so_at_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "seed-1")
    parent = RunDirectory(tmp_path)
    meanwhile(parent, lambda ident: parent.release(), monkeypatch)
    assert "there is nothing to stop" in refused(["stop", str(tmp_path), "--timeout", "2"], capsys)


def test_a_listener_that_is_no_ray_head_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer() -> None:
            caller, _ = other.accept()
            with caller:
                caller.recv(100)
                caller.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        result = refused(train_words(tmp_path / "run", "InvertedPendulum-v5", "--address", address), capsys)
        thread.join(30)
    assert "does not speak gRPC" in result and "expected host:port" in result and not (tmp_path / "run").exists()


def test_a_token_that_is_to_be_shown_and_is_not_there_is_named_as_our_own_setting(tmp_path: Path) -> None:
    """The peer asks for none, and is asked nothing."""
    asked: list[str] = []

    class Peer(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            asked.append(details.method)
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Peer()])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        words = train_words(tmp_path / "run", "InvertedPendulum-v5", "--address", address)
        result = command(*words, env=clean | {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})
    finally:
        server.stop(0)
    last = result.stderr.strip().splitlines()[-1]
    assert (
        result.returncode == 2 and f"--address {address}: RAY_AUTH_MODE is token here and there is no token" in last
    ), last
    assert "the cluster asks for a token" not in last and "if the cluster asks for none, unset RAY_AUTH_MODE" in last
    assert not asked and not (tmp_path / "run").exists()


def test_an_environment_that_raises_ends_an_inline_run_with_its_error_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_inline(run, "broken_envs:Raises-v0", 4_000, replay__replay_ratio=0.1) == 1
    *frames, last = capsys.readouterr().err.strip().splitlines()
    at = frames.index("Traceback (most recent call last):")
    assert "broken_envs.py" in frames[at + 1] and frames[-1] == "RuntimeError: the simulator lost its licence"
    assert not any("gym_vector.py" in line or "cli.py" in line for line in frames), "the user's own frames alone"
    _, line = inspect.getsourcelines(Raises.go_wrong)
    where = f"go_wrong, broken_envs.py, line {line + 1}"
    assert f"broken_envs:Raises-v0 raised RuntimeError in {where} (the simulator lost its licence)" in last
    assert "expected" in last and "correct the environment" in last
    failure = read(run / "failure.json")
    assert "the simulator lost its licence" in failure["error"] and "go_wrong" in failure["traceback"]


def test_an_environment_that_exits_with_0_ends_an_inline_run_as_one_that_raises(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train_inline(run, "broken_envs:Exits-v0", 4_000, replay__replay_ratio=0.1) == 1
    cause = "broken_envs:Exits-v0 called sys.exit(0) in go_wrong (broken_envs.py, line"
    assert cause in capsys.readouterr().err.strip().splitlines()[-1] and cause in read(run / "failure.json")["error"]


@pytest.mark.parametrize("code", [0, 2, None, "bye"])
def test_code_of_others_that_exits_anywhere_makes_the_command_fail(
    code: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cluster.checks.check_tree", lambda: sys.exit(code))  # type: ignore[arg-type]
    assert main(train_words(Path("never"), "InvertedPendulum-v5")) == 1
    assert f"called sys.exit({code!r})" in capsys.readouterr().err


def test_the_memory_of_the_machine_is_what_a_run_is_measured_against(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = refused(train_words(tmp_path / "run", replay__capacity_rows=10**12), capsys)
    assert f"this machine has {psutil.virtual_memory().total / 2**30:.1f}" in result and "replay" in result
