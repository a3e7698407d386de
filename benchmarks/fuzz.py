"""Random bad input under every command: settings, edits of config.json, damaged bytes of every JSON file of a run or a dataset,
and pipes, devices, folders, links and endless files in their place.

    python benchmarks/fuzz.py --cases 20000 --seed 3

Each case is one command in this process. It may succeed, or exit with 1 or 2 and say one ``drawbridge: error:`` sentence. It
may never print a traceback, a start that it refuses may leave no directory, and a file that a link leads to stays as it is. A case
that breaks this is printed with its number; ``--only N`` runs it alone. One case in a hundred has settings near the usual ones
and is trained for 150 steps, and one is the resume of a run with an odd file, for 40 steps; the other runs that would start are
not driven further than their run directory.

``tests/test_fuzz.py`` runs 2,000 cases of seed 0 in the gate.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import cluster.drive  # noqa: E402
from algorithms import ALGORITHMS  # noqa: E402
from cluster.cli import main  # noqa: E402
from cluster.config import flatten, from_json, make_preset, override, presets_of  # noqa: E402
from cluster.run_dir import RunDirectory  # noqa: E402

ENV, DATASET = "Pendulum-v1", "fuzz/pendulum-v0"
QUIET = {"metrics.tensorboard": "false", "metrics.port": "-1", "evaluation.final_episodes": "1"}
SMALL = QUIET | {
    "agent.critic_width": "8",
    "agent.bridge_width": "8",
    "agent.bridge_steps": "2",
    "learner.batch_size": "16",
    "replay.min_size_rows": "64",
    "replay.capacity_rows": "2000",
    "worker.random_steps": "64",
}
SMALL_GAC = QUIET | {
    "agent.width": "8",
    "agent.posterior_width": "8",
    "agent.prior_width": "8",
    "agent.infer_steps": "2",
    "learner.batch_size": "4",
}
NUMBERS = (
    "0", "-1", "1", "2", "3", "7", "0.5", "1.5", "-0.5", "100", "4096", "1e-308", "1e-30", "1e30", "1e308", "-1e308", "1e400",
    "nan", "inf", "-inf", "9223372036854775808", "1" + "0" * 40, "9" * 5000, "0x10", "1_000", "٣", "1e", "--1",
)  # fmt: skip
MODEST = ("0", "1", "2", "0.5", "0.9", "20", "true", "false")
WORDS = (
    "", " ", "none", "None", "true", "false", "yes", "auto", "cuda", "cpu", "inline", "x" * 3000, "a\nb", "ä\u202e", "../..", "[]",
)  # fmt: skip
JSON_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.5, 1e308, -1e308, float("nan"), float("inf"), 2**63, 10**40, "", "x", "1", "nan",
    "cuda", "\ud800", [], [1], {}, {"a": 1}, {"a": {"b": [{}]}},
)  # fmt: skip
FILES = (
    "config.json", "dataset.json", "live.json", "summary.json", "failure.json", "metrics.jsonl", "evaluations.jsonl",
)  # fmt: skip
WRITTEN = (  # of a run directory
    *FILES, "run.lock", "curve.png", "diagnosis.txt", "checkpoints", "replay", "replay/shard-0", "events", "control",
    *(f"control/{name}" for name in ("starts", "run_id", "reserve", "scale.json", "stop.json", "answer.json")),
)  # fmt: skip
VICTIM, PRECIOUS = "victim", b"precious"  # a file that a link in a run directory leads to
FAILURE = {"error": "the simulator lost its licence", "traceback": "none", "when": 1.0}


class Bases(NamedTuple):
    """Finished runs that cases copy: of softgac, and of gac on a dataset that was made from the first."""

    softgac: Path
    gac: Path


class Case(NamedTuple):
    """A command, and the directory that it must not leave behind when it refuses."""

    kind: str
    words: list[str]
    new: Path | None


class Outcome(NamedTuple):
    code: int
    said: str  # on standard error
    wrong: str  # "" where the outcome is allowed


def make_bases(folder: Path) -> Bases:
    """Trains the two runs below ``folder``, in seconds; MINARI_DATASETS_PATH names their dataset from then on."""
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    softgac, gac = folder / "softgac", folder / "gac"
    for words in (
        ["train", "softgac", "--env", ENV, "--steps", "400", "--run-dir", str(softgac), *_pairs(SMALL)],
        ["dataset", "make", "agent", "--run", str(softgac), "--kind", "medium", "--episodes", "6", "--id", DATASET],
        ["train", "gac", "--dataset", DATASET, "--steps", "10", "--run-dir", str(gac), *_pairs(SMALL_GAC)],
    ):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
            code = main([*words, *(["--backend", "inline"] if words[0] == "train" else [])])
        if code != 0:
            raise RuntimeError(f"{' '.join(words)} failed: {said.getvalue()}")
    for run in (softgac, gac):
        (run / "failure.json").write_text(json.dumps(FAILURE))
    return Bases(softgac, gac)


def run_case(number: int, seed: int, bases: Bases, folder: Path) -> tuple[Case, Outcome]:
    """Case ``number`` of ``seed``; ``folder`` is its own and is removed."""
    rng = random.Random(f"{seed}/{number}")
    folder.mkdir(parents=True)
    try:
        (folder / VICTIM).write_bytes(PRECIOUS)
        kinds = (_settings, _edited, _damaged, _dataset, _odd, _lived, _resumed)
        case = rng.choices(kinds, weights=(44, 20, 19, 10, 5, 1, 1))[0](rng, bases, folder)
        outcome = _judged(case)
        if (folder / VICTIM).read_bytes() != PRECIOUS:
            outcome = outcome._replace(wrong="a file outside of the run directory was changed")
        return case, outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settings(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A new run with random settings."""
    algorithm = rng.choice(list(ALGORITHMS))
    preset = rng.choice(presets_of(algorithm))
    keys = [key for key in flatten(make_preset(algorithm, preset)) if key not in ("algorithm", "preset", "env")]
    chosen = {
        key: rng.choice(NUMBERS + WORDS if rng.random() < 0.7 else MODEST)
        for key in rng.sample(keys, rng.randint(1, 3))
    }
    source = ["--dataset", DATASET] if ALGORITHMS[algorithm].items == "episodes" else ["--env", ENV]
    words = ["train", algorithm, *source, "--preset", preset, "--run-dir", str(folder / "run"), "--backend", "inline"]
    if rng.random() < 0.2:
        flag = rng.choice(("--steps", "--workers", "--shards", "--learners", "--seed", "--device", "--envs-per-worker"))
        words += [f"{flag}={rng.choice(NUMBERS + WORDS)}"]
    return Case("settings", [*words, *_pairs({"metrics.port": "-1"} | chosen)], folder / "run")


def _lived(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A new run with settings near the usual ones, which is trained."""
    config = flatten(override(make_preset("softgac", "cpu"), SMALL))
    keys = [
        key for key in config if key.split(".")[0] in ("agent", "learner", "replay", "worker") and "timeout" not in key
    ]
    chosen = {}
    for key in rng.sample(keys, rng.randint(1, 3)):
        value, field = config[key]
        if field.metadata["choices"]:
            chosen[key] = str(rng.choice(field.metadata["choices"]))
        elif isinstance(value, bool):
            chosen[key] = str(not value).lower()
        else:
            chosen[key] = str(type(value)(value * rng.choice((0, 0.5, 1.5, 2, 3))))
    words = [
        "train",
        "softgac",
        "--env",
        ENV,
        "--steps",
        "150",
        "--backend",
        "inline",
        "--run-dir",
        str(folder / "run"),
    ]
    return Case("lived", [*words, *_pairs(SMALL | chosen)], folder / "run")


def _edited(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A command on a run whose config.json somebody has edited."""
    run = _copy(rng.choice(bases), folder / "run")
    config = json.loads((run / "config.json").read_text())
    for _ in range(rng.randint(1, 2)):
        part = rng.choice([config, *(value for value in config.values() if isinstance(value, dict) and value)])
        key = rng.choice(sorted(part))
        if rng.random() < 0.2:
            part[rng.choice((key, "warp"))] = part.pop(key)
        elif rng.random() < 0.15:
            del part[key]
        else:
            part[key] = rng.choice(JSON_VALUES)
        if not config:
            break
    (run / "config.json").write_text(json.dumps(config))
    return _command(rng, run, folder, "edited")


def _damaged(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A command on a run one of whose JSON files is damaged."""
    run = _copy(rng.choice(bases), folder / "run")
    path = run / rng.choice([name for name in FILES if (run / name).exists()])
    path.write_bytes(_damage(rng, path.read_bytes()))
    return _command(rng, run, folder, f"damaged {path.name}")


def _odd(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A command on a run one of whose files is something else."""
    run = _copy(rng.choice(bases), folder / "run")
    name = rng.choice(WRITTEN)
    _put_odd(rng, run / name)
    return _command(rng, run, folder, f"odd {name}")


def _resumed(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """The resume of such a run, which is trained."""
    run = _copy(bases.softgac, folder / "run")
    name = rng.choice(WRITTEN)
    _put_odd(rng, run / name)
    words = ["resume", str(run), "--steps", "440", *_pairs({"metrics.port": "0", "metrics.tensorboard": "true"})]
    return Case(f"resumed odd {name}", words, None)


def _put_odd(rng: random.Random, path: Path) -> None:
    """Puts something else where a run, or a dataset in the case's folder, has a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    kind = rng.choice(("pipe", "device", "folder", "circle", "nothing", "endless", "victim"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "endless":
        with open(path, "wb") as file:
            file.truncate(1 << 42)
    else:
        folder = next(parent for parent in path.parents if (parent / VICTIM).exists())
        leads_to: dict[str, str | Path] = {
            "device": "/dev/zero",
            "circle": path,
            "nothing": "/nowhere",
            "victim": folder / VICTIM,
        }
        path.symlink_to(leads_to[kind])


def _dataset(rng: random.Random, bases: Bases, folder: Path) -> Case:
    """A command on a dataset whose metadata somebody has edited, or one of whose files is damaged or something else."""
    copy = folder / "odd-v0"
    shutil.copytree(bases.softgac.parent / DATASET, copy)
    metadata = json.loads((copy / "data" / "metadata.json").read_text()) | {"dataset_id": "case/imported-v0"}
    (copy / "data" / "metadata.json").write_text(json.dumps(metadata))
    path = rng.choice(sorted((copy / "data").iterdir()))
    fault = rng.random()
    if fault < 0.2:
        _put_odd(rng, path)
    elif fault < 0.5:
        path.write_bytes(_damage(rng, path.read_bytes()))
    else:
        path = copy / "data" / "metadata.json"
        for _ in range(rng.randint(1, 2)):
            inner = [value for value in metadata.values() if isinstance(value, dict) and value]
            part = rng.choice([metadata, metadata, *inner])
            part[rng.choice(sorted(part))] = rng.choice(JSON_VALUES)
        path.write_text(json.dumps(metadata))
    out = folder / "out"
    small = ["--backend", "inline", "--run-dir", str(out), "--set", "metrics.port=-1"]
    words = rng.choice(
        (
            ["dataset", "show", str(copy)], ["dataset", "import", str(copy), "--force"], ["dataset", "list"],
            ["train", "gac", "--dataset", str(copy), *small],
            ["train", "softgac", "--dataset", str(copy), "--env", ENV, *small],
        )
    )  # fmt: skip
    return Case(f"dataset {path.name}: {words[0]} {words[1]}", words, out)


def _damage(rng: random.Random, raw: bytes) -> bytes:
    cut = rng.randrange(len(raw) + 1)
    flipped = bytearray(raw)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    value = json.dumps(rng.choice(JSON_VALUES)).encode()
    numbers = [b"nan", b"1e999", b"-1", b'"x"', b"null", b"[]", b"{}", b"1" + b"0" * 400]
    swapped = [*raw.split(b": "), b""]
    at = rng.randrange(1, len(swapped))
    swapped[at] = rng.choice(numbers) + swapped[at][max(0, min(swapped[at].find(b","), swapped[at].find(b"}"))) :]
    return rng.choice(
        (
            raw[:cut], raw[cut:], b"", b"\n", b"null", value, value + b"\n" + raw, bytes(flipped), b": ".join(swapped),
            b"\x00" * 64, rng.randbytes(200), raw.decode("latin-1").encode("utf-16"), b"\xff\xfe" + raw, b"\xef\xbb\xbf" + raw,
            b"[" * 100_000, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"a":' * 500 + b"1" + b"}" * 500,
            raw.replace(b'"', b"'"), raw * 2, b'{"env_steps": 1' + b"0" * 5000 + b"}",
        )
    )  # fmt: skip


def _command(rng: random.Random, run: Path, folder: Path, kind: str) -> Case:
    """One of the commands that read a run directory; those that work for seconds are rare."""
    out = folder / "out"
    options: dict[str, tuple[float, list[str]]] = {
        "status": (4, ["status", str(run)]),
        "status as JSON": (2, ["status", str(run), "--json"]),
        "report": (4, ["report", str(run), "--output", str(folder / "report.html")]),
        "resume": (6, ["resume", str(run), "--steps", "100000"]),
        "finetune": (4, ["finetune", str(run), "--out", str(out)]),
        "scale": (1, ["scale", str(run), "--workers", "3", "--timeout", "1"]),
        "evaluate": (0.5, ["evaluate", str(run), "--episodes", "1"]),
        "plan": (0.2, ["plan", str(run), "--plot", str(folder / "plan.png")]),
        "dataset export": (0.3, ["dataset", "export", str(run), "fuzz/exported-v0", "--force"]),
    }
    name = rng.choices(list(options), weights=[weight for weight, _ in options.values()])[0]
    return Case(f"{kind}: {name}", options[name][1], out if name == "finetune" else None)


def _copy(base: Path, run: Path) -> Path:
    """A run, without what other commands left for it in its control/."""
    shutil.copytree(base, run, ignore=shutil.ignore_patterns("control"))
    (run / "control").mkdir()
    return run


def _judged(case: Case) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    driven = contextlib.nullcontext() if case.kind.startswith(("lived", "resumed")) else _undriven()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), driven:
        try:
            code = main(case.words)
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        except BaseException as error:
            return Outcome(-1, err.getvalue(), f"{type(error).__name__} left the command: {error}")
    said = err.getvalue()
    errors = [line for line in said.splitlines() if line.startswith("drawbridge") and ": error: " in line]
    wrong = ""
    if "Traceback" in said + out.getvalue():
        wrong = "a traceback was printed"
    elif code not in (0, 1, 2):
        wrong = f"exit code {code}"
    elif code and len(errors) != 1:
        wrong = f"exit code {code} with {len(errors)} errors named"
    elif code == 2 and case.new is not None and case.new.exists():
        wrong = "a refused start left its directory"
    return Outcome(code, said, wrong)


@contextlib.contextmanager
def _undriven() -> Iterator[None]:
    """Runs end once their directory is made: whether it can be read again is what is asked of them."""

    def drive(run: RunDirectory, plan: Any) -> int:
        run.release()
        stored = {key: value for key, value in json.loads((run.path / "config.json").read_text()).items()}
        assert from_json({key: stored[key] for key in stored if key not in ("unit", "versions", "git")}) == plan.config
        return 0

    driven: Callable[..., int] = cluster.drive.drive
    cluster.drive.drive = drive  # type: ignore[assignment]
    try:
        yield
    finally:
        cluster.drive.drive = driven  # type: ignore[assignment]


def _pairs(settings: dict[str, str]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def fuzz(cases: range, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Runs ``cases``; how often each kind ended with each exit code, and what was wrong."""
    bases, counts, wrong = make_bases(folder), Counter[str](), []
    for number in cases:
        case, outcome = run_case(number, seed, bases, folder / "case")
        counts[f"{case.kind.split(':')[0].split()[0]}, exit {outcome.code}"] += 1
        if outcome.wrong:
            words = " ".join(word[:120] for word in case.words)
            wrong.append(f"case {number} ({case.kind}): {outcome.wrong}\n  {words}\n  {outcome.said[-1_500:]}")
    return counts, wrong


def _main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=2_000, help="(default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--only", type=int, metavar="N", help="run case N alone")
    arguments = parser.parse_args()
    began = time.monotonic()
    cases = range(arguments.cases) if arguments.only is None else range(arguments.only, arguments.only + 1)
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = fuzz(cases, arguments.seed, Path(folder))
    for text in wrong:
        print(text)
    for name, count in sorted(counts.items()):
        print(f"{count:6}  {name}")
    print(f"{len(cases):,} cases in {time.monotonic() - began:.0f} s, {len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(_main())
