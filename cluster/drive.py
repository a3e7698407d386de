"""Drives one run from the command line: signals, terminal, metrics endpoint, events, the closing words."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from algorithms import ALGORITHMS
from cluster.checks import memory_bytes, on_this_machine, uneven_shards
from cluster.data_kind import kind_of
from cluster.dataset_identity import identity_notes
from cluster.dataset_task import task_notes
from cluster.doctor import check_machine, in_words
from cluster.errors import Interrupted, RunError, UsageError, without_control
from cluster.graph import RunSpec
from cluster.last_words import last_words, run_ended_words
from cluster.metrics.console import Console
from cluster.metrics.discovery import announced, run_label, user_name
from cluster.metrics.event_file import EventFile
from cluster.metrics.exporter import LAST_SCRAPE_S, Exporter
from cluster.metrics.loggers import start_logger
from cluster.metrics.wording import algorithm_name
from cluster.own_code import resume_words, twice_words
from cluster.pictures.background import BackgroundCurve
from cluster.reports import LATE_S
from cluster.run_dir import RunDirectory
from cluster.session import Session
from cluster.signals import STOP, Signals
from cluster.task_preset import unpublished
from cluster.version import git_hash

NO_ROOM = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
ROUNDING = 1e-9  # share of a return within which two are the same: sums of the same rewards in another order
LOOK_S = 0.2  # for a `stop`, while a block is to be ended by one at once


def drive(run: RunDirectory, spec: RunSpec) -> int:
    """Runs ``spec`` to its end in ``run``; returns the exit code. SIGTERM and SIGINT end it with a checkpoint, its start at once."""
    config = spec.config
    console = Console(
        total_steps=config.steps,
        title=f"{algorithm_name(config.algorithm)} on {config.env}, seed {config.seed}",
        unit=config.unit,
        before_s=float(run.live().get("time_s", 0.0)),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(run.release)
        exporter = _exporter(run, spec, stack, console.event)
        events = EventFile(run.events, config.unit) if config.metrics.tensorboard else None
        signals = stack.enter_context(Signals(twice_words(run.path, config)))
        logger = start_logger(run.path, config, console.event)
        if logger is not None:
            stack.push(lambda kind, error, trace: logger.close(error is None))

        def outputs(line: dict[str, Any]) -> None:
            console.update(line, session.phase(line))
            if exporter is not None:
                exporter.update(line)
            if events is not None:
                session.reports.write("events", lambda: events.write(line))
            if logger is not None:
                logger.write(line)

        stack.callback(console.close)
        console.event(f"run directory {run.path}")
        for text in _notes(run, spec):
            console.event(text)
        if exporter is not None:
            console.event(f"metrics: http://{config.metrics.host}:{exporter.port}/metrics")
        facts = {"metrics_port": exporter.port if exporter is not None else None}
        states = exporter.set_state if exporter is not None else lambda state: None
        common: dict[str, Any] = {"event": console.event, "states": states, "facts": facts, "held": signals.held}
        session = Session(run, spec, outputs=outputs, at_once=lambda words: _at_once(run, signals, words), **common)
        if config.backend == "inline":
            lost = f"drawbridge: error: {run_ended_words(config.env)}; go on with `{resume_words(run.path, config)}`"
            _watch_calls(session, signals, console, stack.enter_context(last_words(lost)))
        curve = BackgroundCurve(run.path)
        try:
            with session, signals.worded():
                while session.advance():
                    if curve.ended:
                        _draw(session, curve.take)
                    curve.follow(len(session.evaluations))
                    if signals.caught or session.asked_to_stop:
                        session.finish("interrupted")
                        left = _what_is_left(session)
                        stopped = Interrupted(signal.SIGTERM, f"ended by {STOP} {left}")
                        raise signals.interrupted(left) if signals.caught else stopped
                summary = session.finish()
                if summary["exit"] == "interrupted":
                    raise signals.interrupted(_what_is_left(session))
                if session.saved is not None and session.saved.problems:
                    raise RunError(f"the run ended {_what_is_left(session)}")
        finally:
            curve.close()
            drawn = _draw(session, lambda: _draw_curve(run.path))
        console.close(summary)
    if drawn:
        print(f"curve: {run.path / 'curve.png'}")
    return 0


def _notes(run: RunDirectory, spec: RunSpec) -> list[str]:
    """What a person should know before the run starts."""
    config, needed = spec.config, memory_bytes(spec)
    uneven = uneven_shards(kind_of(config).workers(config), config.replay.shards) if config.backend == "ray" else ""
    found = [
        f"memory: at most {sum(needed.values()) / 2**30:.2f} GiB, of it replay {needed['replay'] / 2**30:.2f} and "
        f"updates {needed['updates'] / 2**30:.2f}",
        *map(in_words, check_machine(run.path)),
        *task_notes(spec),
        *identity_notes(spec),
        kind_of(config).untrained(config),
        *(uneven, unpublished(config), _refused(spec), _left_out(spec), _all_alike(spec)),
    ]
    return [text for text in found if text]


def _watch_calls(session: Session, signals: Signals, console: Console, dismiss: Callable[[], None]) -> None:
    """Lets the watch of an inline run's environments end a call that hangs, or the process where nothing else ends it."""
    watch = getattr(session.fleet, "env_watch", None)
    if watch is None:  # of a test's fleet
        return

    def give_up(error: BaseException) -> None:
        with contextlib.suppress(Exception):  # nothing here may keep the process alive
            if not session.over:
                session.fail(error)
            console.close()
        dismiss()
        code = 128 + error.signum if isinstance(error, Interrupted) else 1
        words = f"drawbridge: {'' if isinstance(error, Interrupted) else 'error: '}{without_control(str(error))}"
        with contextlib.suppress(OSError, ValueError):
            print(words, file=sys.stderr, flush=True)
            sys.stdout.flush()
        os._exit(code)

    watch.attach(session.run, signals, lambda: _progress(session), give_up)


def _progress(session: Session) -> str:
    return f"{session.aggregator.progress:,} {session.config.unit.replace('_', ' ')}"


@contextlib.contextmanager
def _at_once(run: RunDirectory, signals: Signals, consequence: str) -> Iterator[None]:
    """A block that a signal ends at once, or a `stop`: nobody else looks for one meanwhile."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_S):
            with contextlib.suppress(RunError):  # a damaged request, which was moved aside
                request = run.requests.take("stop")
                if request is not None and request.number == os.getpid():
                    signals.send(STOP)
                    return

    thread = threading.Thread(target=watch, name="stop", daemon=True)
    thread.start()
    try:
        with signals.at_once(consequence):
            yield
    finally:
        over.set()
        thread.join(LOOK_S)  # not for a file system that does not answer


def _draw_curve(run_dir: Path) -> None:
    from cluster.pictures.curve import draw_curve  # matplotlib, for the end alone

    draw_curve(run_dir, run_dir / "curve.png")


def _draw(session: Session, draw: Callable[[], None]) -> bool:
    """Whether ``draw`` succeeded, with whatever there is; nothing here may end a run or hide why it ended."""
    path = session.run.path
    if session.reports.hangs_s > LATE_S or not (path / "metrics.jsonl").exists():  # it would hang, too
        return False
    try:
        return session.reports.attempt("curve.png", draw)
    except Exception as error:
        session.event(f"curve.png was not drawn ({type(error).__name__}: {error}); see `drawbridge report {path}`")
        return False


def _what_is_left(session: Session) -> str:
    """How far a run came that has ended, what of it is on disk, and how to go on."""
    saved = session.saved.words() if session.saved is not None else "nothing was saved"
    room = "make room there, then " if any(words in saved for words in NO_ROOM) else ""
    return f"at {_progress(session)}; {saved}; {room}go on with `{resume_words(session.run.path, session.config)}`"


def _refused(spec: RunSpec) -> str:
    """What of the dataset could not be used, where it was read just now; "" where nothing is known or wrong."""
    reasons = spec.dataset.refused if spec.dataset is not None else {}
    if spec.dataset is None or not reasons:
        return ""
    counts = ", ".join(f"{len(indices):,} {reason}" for reason, indices in reasons.items())
    total = sum(len(indices) for indices in reasons.values())
    return f"dataset {spec.dataset.id}: {total:,} of {spec.dataset.total_episodes:,} episodes are refused: {counts}"


def _left_out(spec: RunSpec) -> str:
    """That an actor-critic's run holds a part of its dataset only; "" where it holds all of it."""
    held, dataset = kind_of(spec.config).offline_rows(spec), spec.dataset
    if not held or dataset is None or held >= dataset.total_steps:
        return ""
    return (
        f"dataset {dataset.id} has {dataset.total_steps:,} rows and data.offline_capacity_rows is {held:,}: as many are drawn from "
        "all of them, uniformly, and mixed in, the others are left out; raise it to use them"
    )


def _all_alike(spec: RunSpec) -> str:
    """That all episodes return the same, or are one, for those that learn which behaviour returns more from nothing else; "" for others."""
    if spec.dataset is None or ALGORITHMS[spec.config.algorithm].returns == "unread":
        return ""
    data = spec.dataset.summary()
    if data.return_max - data.return_min > ROUNDING * max(1.0, abs(data.return_max)):
        return ""
    seen = (
        "has one episode, which returns" if data.episodes == 1 else f"has {data.episodes:,} episodes, which all return"
    )
    return (
        f"WARNING: dataset {spec.dataset.id} {seen} {data.return_max:g}, expected returns that differ: nothing in it says which "
        f"behaviour is better, and {spec.config.algorithm} can only imitate all of it; add episodes of other returns"
    )


def _exporter(
    run: RunDirectory, spec: RunSpec, stack: contextlib.ExitStack, event: Callable[[str], None]
) -> Exporter | None:
    """The run's endpoint. On a cluster others may have its port already: then it has a free one, and ``event`` says so."""
    config, settings = spec.config, spec.config.metrics
    if settings.port < 0:
        return None
    label = run_label(run.path)
    facts = {"algorithm": config.algorithm, "env": config.env, "user": user_name(), "commit": git_hash()}
    try:
        exporter = Exporter(label, host=settings.host, port=settings.port, facts=facts)
    except UsageError as error:
        if not settings.port or on_this_machine(config):
            raise
        exporter = Exporter(label, host=settings.host, port=0, facts=facts)
        event(f"WARNING: {str(error).split(';')[0]}; it listens on port {exporter.port} instead")
    exporter.resume_from(run.live())
    stack.callback(exporter.close)
    if settings.targets_dir:
        stack.enter_context(announced(Path(settings.targets_dir), label, settings.host, exporter.port))
    stack.callback(_await_last_scrape, exporter, event)
    return exporter


def _await_last_scrape(exporter: Exporter, event: Callable[[str], None]) -> None:
    """Lets Prometheus see that the run ended or failed, where it comes in time: else the run only vanishes. A signal ends the wait alone."""
    if exporter.awaited:
        event(
            f"waiting until Prometheus has seen how the run ended, for at most {LAST_SCRAPE_S:.0f} s; Ctrl-C ends the wait"
        )
    with contextlib.suppress(KeyboardInterrupt):
        while exporter.awaited:
            time.sleep(0.05)
