"""The checks of gpu-check on the CPU, where the cycle is called instead of replayed; and that each of them can fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from algorithms.rivals.qsm import QSM
from cluster import checks
from cluster.cli import main
from cluster.commands.gpu_check import run_checks
from cluster.errors import RunError
from learners import gpu_check
from learners.gpu_check import CHECKS, Bench, Failed, Sizes

SMALL = Sizes(
    critic_width=16, actor_width=8, timed={"critic_width": 16, "bridge_width": 8}, timed_updates=4, replays=2, blocks=3
)


def test_every_check_passes_on_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """But that of two learners, whose processes take long to start: tests/test_collective.py has it on the CPU."""
    monkeypatch.delitem(CHECKS, "two learners on two devices")
    assert run_checks("cpu", SMALL) == 0
    result = capsys.readouterr().out
    assert result.count("ok  ") == len(CHECKS) and result.count("us an update; loss") == 3


def test_a_check_that_fails_is_named_and_the_others_are_still_made(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(bench: Bench) -> str:
        raise Failed("seen")

    monkeypatch.setattr(gpu_check, "CHECKS", {"first": broken, "second": lambda bench: "fine"})
    with pytest.raises(RunError, match=r"1 of 2 checks failed \(first\)"):
        run_checks("cpu")
    result = capsys.readouterr().out
    assert "FAILED  first" in result and "ok      second" in result


def test_a_graph_that_differs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale capture: replays go on with the rows and the noise that were captured."""

    def stale(agent, rows_CBD):  # type: ignore[no-untyped-def]
        generator = agent.generator.get_state()

        def replay() -> None:
            agent.generator.set_state(generator)
            agent.step_cycle(torch.ones_like(rows_CBD))

        return replay

    monkeypatch.setattr(gpu_check, "_called", stale)
    bench = Bench("cpu", SMALL)
    for check in (gpu_check.captured_as_eager, gpu_check.noise, gpu_check.nan_row):
        with pytest.raises(Failed):
            check(bench)


def test_the_method_whose_graph_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def idle(agent, rows_CBD):  # type: ignore[no-untyped-def]
        return (lambda: None) if isinstance(agent, QSM) else lambda: agent.step_cycle(rows_CBD)

    monkeypatch.setattr(gpu_check, "_called", idle)
    with pytest.raises(Failed, match=r"apart \(qsm (cpu|paper): "):
        gpu_check.captured_as_eager(Bench("cpu", SMALL))


@pytest.mark.parametrize(
    ("check", "reads", "named"),
    [(gpu_check.never_waits, "advance", "qsm cpu"), (gpu_check.learner_never_waits, "policy_weights", "qsm")],
)
def test_a_method_that_reads_from_the_device_is_named(
    check: Callable[[Bench], str], reads: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = getattr(QSM, reads)

    def reading(self: QSM, *rows: torch.Tensor) -> Any:
        assert float(self.log_alpha.detach()) < 0
        return own(self, *rows)

    monkeypatch.setattr(QSM, reads, reading)
    with pytest.raises(Failed, match=rf"^{named}: the host waited for the device: aten\._local_scalar_dense"):
        check(Bench("cpu", SMALL))


def test_another_agent_on_the_device_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    bench, made = Bench("cpu", SMALL), Bench.agent

    def other(self: Bench, device: Any = None, **form: str) -> Any:
        wrong = {"critic_lr": 1e-3 if device else 1e-2} if form == {"method": "dime", "preset": "paper"} else {}
        return made(self, device, **form, **wrong)

    monkeypatch.setattr(Bench, "agent", other)
    with pytest.raises(Failed, match=r"differ by more than 0.001 \(dime paper\)"):
        gpu_check.same_as_cpu(bench)


def test_without_a_device_one_sentence_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "cuda_devices", lambda: 0)
    assert main(["gpu-check"]) == 2
    assert "this machine has no CUDA device that torch can use" in capsys.readouterr().err
