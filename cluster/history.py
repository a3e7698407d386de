"""What a run directory says about its run, read without trusting any byte of it.

A run may be going on, have been killed in the middle of a line, or have been resumed from an older checkpoint: whatever
cannot be used is left out and named in ``Run.notes``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.metrics.catalogue import find_metric, is_resumed
from cluster.no_run import NotARun, what_to_give
from replay.manifest import read_whole

MOST_WORDS = 1 << 16  # bytes
FILES = ("config.json", "metrics.jsonl", "evaluations.jsonl", "summary.json", "failure.json", "live.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of the deterministic policy."""

    env_steps: int
    at: int  # when, in the run's unit
    wall_s: float
    returns: tuple[float, ...]  # of every episode, sums of rewards
    lengths: tuple[float, ...]  # of every episode, env steps
    references: tuple[float, float] | None = None  # returns of the random policy and the expert of the run's dataset

    @property
    def mean(self) -> float:
        return math.fsum(self.returns) / len(self.returns)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything a run directory holds; empty where the run has not written it."""

    path: Path
    config: dict[str, Any]
    metrics: tuple[dict[str, float], ...]  # in order; numbers only
    evaluations: tuple[Evaluation, ...]  # in order
    summary: dict[str, Any]
    failure: dict[str, Any]
    live: dict[str, Any]
    diagnosis: str  # as ``drawbridge diagnose`` said it last
    notes: tuple[str, ...]  # what could not be used, in words

    @property
    def name(self) -> str:
        """Its directory; with the one above where that holds the same run with several seeds."""
        return "/".join(self.path.parts[-2:]) if self.path.name.startswith("seed-") else self.path.name

    @property
    def algorithm(self) -> str:
        return str(self._fact("algorithm") or "unknown")

    @property
    def env(self) -> str:
        return str(self._fact("env") or self._fact("env_id") or "unknown")

    @property
    def seed(self) -> Any:
        return self._fact("seed")

    @property
    def unit(self) -> str:
        """What the run's length is counted in: env_steps or updates."""
        return unit_of(self.config)

    @property
    def length(self) -> int:
        """How far the run is, in its unit."""
        return int(self.summary.get(self.unit) or self.last.get(self.unit) or 0)

    @property
    def env_steps(self) -> int:
        return int(self.summary.get("env_steps") or self.last.get("env_steps") or 0)

    @property
    def last(self) -> dict[str, float]:
        """The newest value of every metric; a metric that no line has is missing."""
        return {key: value for line in self.metrics for key, value in line.items()}

    @property
    def state(self) -> str:
        """starting | running | finishing | ended | interrupted (by a signal or `stop`) | failed | lost | unknown."""
        return state_of(self.live, self.summary, self.failure, _alive(self.live.get("pid")))

    @property
    def references(self) -> dict[str, float]:
        """The returns that have the normalised scores 0 and 100, by what a chart calls them; empty without them."""
        ends = self.evaluations[-1].references if self.evaluations else None
        return {} if ends is None else {"random policy (0)": ends[0], "expert (100)": ends[1]}

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """(progress in the run's unit, values) of one metric, of the lines that have it as a finite number."""
        pairs = [
            (line[self.unit], line[key])
            for line in self.metrics
            if self.unit in line and key in line and math.isfinite(line[key])
        ]
        return [x for x, _ in pairs], [y for _, y in pairs]

    @property
    def why_interrupted(self) -> str:
        """Who ended a run that was interrupted, and what it left, as far as it is written down."""
        return str(self.summary.get("why") or self.failure.get("error") or "interrupted")

    def _fact(self, key: str) -> Any:
        return self.summary[key] if self.summary.get(key) is not None else _first_scalar(self.config, key)


def state_of(live: Mapping[str, Any], summary: Mapping[str, Any], failure: Mapping[str, Any], driven: bool) -> str:
    """The state of a run by its records; a run that says it goes on and is not ``driven`` by a process is lost."""
    state = str(live.get("state", "unknown"))
    if failure or summary:
        if "interrupted" in (state, summary.get("exit")):
            return "interrupted"
        return "unsaved" if summary.get("exit") == "unsaved" else "failed" if failure else "ended"
    return "lost" if state in ("starting", "running", "finishing") and not driven else state


def unit_of(config: Mapping[str, Any]) -> str:
    """The unit that a configuration's length is counted in."""
    return "updates" if config.get("unit") == "updates" else "env_steps"


def read_run(path: str | Path) -> Run:
    """Reads a run directory, running or ended.

    Raises:
        NotARun: ``path`` is no directory, or holds none of a run's files.
    """
    path = Path(path).resolve()
    if not path.is_dir():
        seen = "a file" if path.exists() else "nothing"
        raise NotARun(f"{path} is {seen}, expected a run directory; {what_to_give(path)}")
    if not any((path / name).is_file() for name in FILES):
        raise NotARun(
            f"{path} holds none of {', '.join(FILES)}, so it is no run directory and nothing can be read from it; "
            f"{what_to_give(path)}"
        )
    notes: list[str] = []
    documents = {name: document(path / f"{name}.json", notes) for name in ("config", "summary", "failure", "live")}
    unit = unit_of(documents["config"])
    metrics = [_numbers(line) for line in _lines(path / "metrics.jsonl", notes)]
    evaluations = [found for _, found in evaluation_records(path, unit, notes)]
    return Run(
        path=path,
        **documents,
        diagnosis=_words(path / "diagnosis.txt", notes),
        metrics=tuple(_after_resumes(metrics, lambda m: m.get(unit), "metrics.jsonl", notes, keep_equal=True)),
        evaluations=tuple(_after_resumes(evaluations, lambda e: e.at, "evaluations.jsonl", notes, keep_equal=False)),
        notes=tuple(notes),
    )


def _words(path: Path, notes: list[str]) -> str:
    """A file of words; empty where there is none."""
    try:
        return read_whole(path, MOST_WORDS).decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} could not be read and was left out: {error}")
        return ""


def document(path: Path, notes: list[str]) -> dict[str, Any]:
    """What is usable of a run's JSON file, empty where there is none; what is not is left out and put into ``notes``."""
    try:
        data = read_object(path)
    except FileNotFoundError:
        return {}
    except (OSError, Damaged) as error:
        notes.append(f"{path.name} could not be read and was left out: {error}")
        return {}
    groups = GROUPS if path.name != "live.json" else ()
    bad = misfits(data, groups) if path.name != "config.json" else {}
    notes += [f"{path.name}: {text}; it was left out" for text in bad.values()]
    return {key: value for key, value in data.items() if key not in bad}


def evaluation_records(path: Path, unit: str, notes: list[str]) -> list[tuple[dict[str, Any], Evaluation]]:
    """The usable lines of the evaluations.jsonl of run directory ``path``, in order, as they stand and as they are read."""
    lines = _lines(path / "evaluations.jsonl", notes)
    return [(line, found) for line in lines if (found := _evaluation(line, unit, notes))]


def _lines(path: Path, notes: list[str]) -> Iterable[dict[str, Any]]:
    try:
        raw = read_whole(path).split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{path.name} could not be read and was left out: {error}")
        return []
    good, bad = [], []
    for index, text in enumerate(raw, start=1):
        value = _parsed(text)
        if isinstance(value, dict):
            good.append(value)
        elif index == len(raw) and text.strip():
            notes.append(f"the last line of {path.name} is torn (cut while it was being written) and was skipped")
        elif text.strip():
            bad.append(index)
    if bad:
        where = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        notes.append(
            f"{len(bad)} of {len(raw)} lines of {path.name} are no JSON objects and were skipped: line {where}"
        )
    return good


def _parsed(text: bytes) -> Any:
    try:
        return parsed(text)
    except Damaged:
        return None


def _numbers(line: dict[str, Any]) -> dict[str, float]:
    return {sys.intern(key): value for key, value in line.items() if _usable(key, value)}  # one text for all lines


def _usable(key: str, value: Any) -> bool:
    if is_resumed(key):
        return number(value) and value >= 0
    return number(value) or isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value))


def _evaluation(line: dict[str, Any], unit: str, notes: list[str]) -> Evaluation | None:
    try:
        if not isinstance(line["returns"], list) or not line["returns"] or not all(map(number, line["returns"])):
            raise ValueError("its returns are empty or not finite")
        returns = tuple(float(value) for value in line["returns"])
        if not (number(line["env_steps"]) and number(line[unit])):
            raise ValueError("its counters are no numbers")
        return Evaluation(
            env_steps=int(line["env_steps"]),
            at=int(line[unit]),
            wall_s=float(line.get("wall_s", math.nan)),
            returns=returns,
            lengths=tuple(float(value) for value in line.get("lengths", ())),
            references=(float(line["random_return"]), float(line["expert_return"]))
            if number(line.get("random_return")) and number(line.get("expert_return"))
            else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        notes.append(f"an evaluation at {line.get('env_steps', 'unknown')} env steps was left out: {error!r}")
        return None


def _after_resumes(
    items: list[Any], steps: Callable[[Any], float | None], name: str, notes: list[str], *, keep_equal: bool
) -> list[Any]:
    """Drops what a resume from an older checkpoint did again: items at more env steps than a later one."""
    kept, lowest = [], math.inf
    for item in reversed(items):
        at = steps(item)
        if at is None or at < lowest or (keep_equal and at == lowest):
            kept.append(item)
            lowest = lowest if at is None else at
    if len(kept) < len(items):
        notes.append(f"{len(items) - len(kept)} lines of {name} were done again after a resume; the later ones count")
    return kept[::-1]


def _first_scalar(tree: dict[str, Any], key: str) -> Any:
    """The value of ``key`` nearest to the root of a nested configuration, or None."""
    level = [tree]
    while level:
        for node in level:
            if isinstance(node.get(key), (str, int, float)):
                return node[key]
        level = [child for node in level for child in node.values() if isinstance(child, dict)]
    return None


def _alive(pid: Any) -> bool:
    try:
        if int(pid) <= 0:
            return False
        os.kill(int(pid), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


DEPTH = 20  # levels of nesting; a run writes four
LARGEST = 1e30  # of any figure: what is beyond it was never counted or measured

FIGURES = {  # of live.json, summary.json and failure.json, beside those of a metrics record
    "written", "pid", "metrics_port", "when", "wall_s", "eval_return_std", "eval_episodes", "policy_version",
}  # fmt: skip
TEXTS = {
    "state",
    "algorithm",
    "env",
    "backend",
    "preset",
    "error",
    "traceback",
    "why",
    "workers_in_words",
    "slowest_workers",
}
GROUPS = {"rows", "workers", "restarts", "learner_time", "policy_age_versions"}  # of summary.json: objects of numbers


class Damaged(ValueError):
    """Bytes that are not what a run writes; the message says what was seen and what was expected."""


def parsed(raw: bytes) -> Any:
    """The JSON value that ``raw`` stands for; Damaged when it stands for none, or for one that could not be printed."""
    if not raw.strip():
        raise Damaged("it is empty, expected JSON")
    try:
        value = json.loads(raw)
        if b"\\ud" in raw.lower() or b"\xed" in raw:
            json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs
    except RecursionError:
        raise Damaged(f"it is nested deeper than {DEPTH} levels, expected what a run writes") from None
    except ValueError as error:
        raise Damaged(f"it is no JSON: {error}") from None
    level = [value]
    for _ in range(DEPTH):
        level = [
            item
            for node in level
            if isinstance(node, (dict, list))
            for item in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return value
    raise Damaged(f"it is nested deeper than {DEPTH} levels, expected what a run writes")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; Damaged when it holds something else, OSError when it cannot be read."""
    value = parsed(read_whole(path))
    if not isinstance(value, dict):
        raise Damaged(f"it holds {_kind(value)}, expected an object")
    return value


def misfits(data: Mapping[str, Any], groups: Collection[str] = GROUPS) -> dict[str, str]:
    """The keys of live.json, summary.json or failure.json that hold what a run never writes there, with what was expected.

    Args:
        groups: keys that hold objects of numbers; live.json has none.
    """
    found = {}
    for key, value in data.items():
        if key in groups and isinstance(value, dict):
            bad, expected = not all(_counted(name, item) for name, item in value.items()), "an object of numbers"
        elif is_resumed(key):
            bad, expected = not (number(value) and value >= 0), "a number of at least 0"
        elif key in FIGURES or (key not in groups and key not in TEXTS and find_metric(key)):
            bad = not (value is None or number(value) or (isinstance(value, float) and not math.isfinite(value)))
            expected = "a number"
        elif key in groups:
            bad, expected = value is not None, "an object of numbers"
        else:
            bad, expected = key in TEXTS and not isinstance(value, str), "text"
        if bad:
            found[key] = f"{key} is {_kind(value)}, expected {expected}"
    return found


def number(value: Any) -> bool:
    """Whether ``value`` is a finite number of a size that is ever counted or measured."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _counted(name: str, item: Any) -> bool:
    """Whether ``item`` is a number, or numbers by reason where rows were dropped."""
    return number(item) or (name == "dropped" and isinstance(item, dict) and all(map(number, item.values())))


def _kind(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
