"""SoftGAC, its controls and its rivals on equal critics: returns, what an action and an update cost, and a toy with three modes.

    python benchmarks/generative.py returns --out runs/generative.jsonl     every run that is missing there, one after the other
    python benchmarks/generative.py returns --out runs/generative.jsonl --envs HalfCheetah-v5 --steps 100000 --seeds 1 2 3
    python benchmarks/generative.py returns --out runs/study.jsonl --methods softgac --set agent.rho=0.3 agent.alpha_init=2
    python benchmarks/generative.py costs                                   one core; benchmarks/results/costs.json
    python benchmarks/generative.py costs --preset paper --env dm_control/dog-run-v0 --out benchmarks/results/costs-dog.json
    python benchmarks/generative.py report --returns benchmarks/results/halfcheetah.jsonl    tables, docs/comparison.png
    python benchmarks/generative.py toy --seeds 0 1 2                       docs/comparison-toy.png

Preset cpu, inline, one torch thread. A run appends one line: its deterministic evaluations, five episodes with noise after its
end, and its CPU seconds. IQM is the mean of the middle half of the seeds' means, or of all where there are fewer than four.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import platform
import re
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from algorithms import ALGORITHMS, online_names  # noqa: E402
from benchmarks import three_modes  # noqa: E402

METHODS = [name for name, algorithm in ALGORITHMS.items() if algorithm.online == "always"]
SAMPLED = 5  # episodes with noise
COSTS = ROOT / "benchmarks" / "results" / "costs.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    returns = commands.add_parser("returns")
    returns.add_argument("--out", type=Path, required=True, help="file of the results, one JSON line a run")
    returns.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help=online_names())
    returns.add_argument("--envs", nargs="+", default=["Pendulum-v1"])
    returns.add_argument("--steps", type=int, default=5_000, help="env steps of a run")
    returns.add_argument("--every", type=int, default=1_000, help="env steps between two evaluations")
    returns.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    returns.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every run")
    costs = commands.add_parser("costs")
    costs.add_argument("--out", type=Path, default=COSTS, help="file of the results, JSON, with the machine of each")
    costs.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS, help="the others' figures stay in the file"
    )
    costs.add_argument("--preset", choices=["cpu", "paper"], default="cpu")
    costs.add_argument("--env", default="HalfCheetah-v5", help="whose dimensions; and what preset paper sets for it")
    toy = commands.add_parser("toy")
    toy.add_argument("--picture", type=Path, default=ROOT / "docs" / "comparison-toy.png")
    toy.add_argument("--updates", type=int, default=1_500, help="critic updates of each panel")
    toy.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    report = commands.add_parser("report")
    report.add_argument("--returns", type=Path, nargs="+", required=True, help="what `returns` wrote")
    report.add_argument("--settings", action="store_true", help="runs that had --set, too")
    report.add_argument("--costs", type=Path, default=COSTS, help="what `costs` wrote")
    report.add_argument("--picture", type=Path, default=ROOT / "docs" / "comparison.png")
    arguments = parser.parse_args()
    {"returns": run_all, "costs": measure_all, "toy": three_modes.draw, "report": write_report}[arguments.what](
        arguments
    )


def run_all(arguments: argparse.Namespace) -> None:
    """Every run that the file lacks."""
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for seed in arguments.seeds:
        for env in arguments.envs:
            for method in arguments.methods:
                name = named({"method": method, "set": arguments.set})
                done = {(named(r), r["env"], r["steps"], r["seed"]) for r in results(arguments.out)}
                if (name, env, arguments.steps, seed) not in done:
                    line = train(method, env, seed, arguments)
                    last = np.mean(line["evaluations"][-1]["returns"])
                    print(name, env, seed, f"{last:.0f}, sampled {np.mean(line['sampled']):.0f}", flush=True)
                    with arguments.out.open("a") as file:
                        file.write(json.dumps(line) + "\n")


def named(run: dict[str, Any]) -> str:
    """The method of a run, and what was set besides."""
    return " ".join([run["method"], *run.get("set", [])])


def results(path: Path) -> list[dict[str, Any]]:
    """The lines of the file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(method: str, env: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run in this process, and what its policy reaches with noise."""
    import drawbridge

    settings = {"backend": "inline", "seed": seed, "steps": arguments.steps, "evaluation.every_steps": arguments.every}
    settings |= {"evaluation.episodes": 5, "evaluation.final_episodes": 5} | dict(
        pair.split("=") for pair in arguments.set
    )
    before = time.process_time()
    with tempfile.TemporaryDirectory() as base, contextlib.redirect_stdout(io.StringIO()):
        run = drawbridge.train(method, env, run=Path(base) / "run", settings=settings)
        cpu_s = time.process_time() - before
        lines = [json.loads(text) for text in (run / "evaluations.jsonl").read_text().splitlines()]
        sampled = sampled_returns(drawbridge.load(run, seed=0), env)
    curve = [{key: line[key] for key in ("env_steps", "returns")} for line in lines]
    facts = {"method": method, "set": arguments.set, "env": env, "steps": arguments.steps, "seed": seed, "cpu_s": cpu_s}
    return facts | {"evaluations": curve, "sampled": sampled}


def sampled_returns(policy: Any, env_id: str) -> list[float]:
    """Returns of episodes in which actions are drawn."""
    import gymnasium

    env, returns = gymnasium.make(env_id), []
    for episode in range(SAMPLED):
        (obs, _), total, over = env.reset(seed=10_000 + episode), 0.0, False
        while not over:
            obs, reward, terminated, truncated, _ = env.step(policy(obs, sample=True))
            total, over = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


PASSES = {
    "softgac": "6", "crossq-sac": "1", "sac": "1", "dime": "16", "flac": "2", "flowrl": "2", "qsm": "5", "qvpo": "16 x 4, and 4 of the critics",
}  # fmt: skip


def measure_all(arguments: argparse.Namespace) -> None:
    """What an action and an update of the actor cost, one method after the other."""
    import torch

    torch.set_num_threads(1)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for method in arguments.methods:
        found[method] = measure(method, arguments)
        print(method, found[method], flush=True)
        arguments.out.write_text(json.dumps({name: found[name] for name in METHODS if name in found}, indent=1) + "\n")


def machine() -> str:
    """The processor and its widest vectors: the figures of two machines do not compare."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"(?m)^model name\s*: (.*)$", text)
    wide = [vectors for vectors in ("avx512f", "avx2") if re.search(rf"\b{vectors}\b", text)]
    return " ".join([name[1] if name else platform.machine(), *wide[:1]])


def measure(method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of an action by backend and number of states; milliseconds, MiB and parameters of an actor's update."""
    import torch

    from algorithms import runtime
    from algorithms.interface import AgentSpec
    from cluster.config import make_preset
    from rollout_workers.actor import StatelessPolicy
    from rollout_workers.envs import env_spec

    algorithm, env = ALGORITHMS[method], env_spec(arguments.env)
    config = make_preset(method, arguments.preset, arguments.env).agent
    agent: Any = algorithm.make_agent(config, AgentSpec(obs_dim=env.obs_dim, action_dim=env.action_dim))
    costs: dict[str, Any] = {"machine": machine(), "parameters": agent.policy.size - 1}
    for backend in ("onnx", "torch", "auto"):
        policy: Any = algorithm.make_policy(config, env.obs_dim, env.action_dim)
        actor = StatelessPolicy(policy, backend)
        if backend == "auto" and actor.backend != "compiled":
            continue
        actor.load_weights({name: tensor.numpy() for name, tensor in agent.policy_weights().items()})
        for states in (1, 64):
            obs = np.random.default_rng(0).standard_normal((states, env.obs_dim), dtype=np.float32)
            noise = policy.sample_noise(np.random.default_rng(1), states)
            costs[f"{actor.backend}_{states}_us"] = 1e6 * fastest(functools.partial(actor.act_on, obs, noise))
    rows = torch.randn(2, 256, agent.layout.width, generator=torch.Generator().manual_seed(0))
    agent.update(rows)
    columns, kept = agent.layout.views(rows[0]), torch.zeros(())
    with runtime.library(agent.matmul):
        costs["update_ms"] = 1e3 * fastest(
            lambda: agent._actor_step(columns, agent.draw_loss_noise(256), kept), least=30
        )
        with Peak() as peak:
            agent._actor_step(columns, agent.draw_loss_noise(256), kept)
    return costs | {"peak_mib": peak.bytes / 2**20}


def fastest(call: Any, least: int = 200) -> float:
    """CPU seconds of a call: the least of many, because others use the machine, too."""
    times = []
    for _ in range(least):
        began = time.thread_time()
        call()
        times.append(time.thread_time() - began)
    return min(times)


def Peak() -> Any:
    """Counts the bytes of the tensors that operations make and that are alive at once; their largest number is ``bytes``."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Counter(TorchDispatchMode):
        alive = bytes = 0

        def __init__(self) -> None:
            super().__init__()
            self.known: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if hasattr(x, "untyped_storage")}
            result = func(*args, **(kwargs or {}))
            for x in tree_leaves(result):
                storage = x.untyped_storage() if hasattr(x, "untyped_storage") else None
                if storage is not None and id(storage) not in given | self.known:
                    self.known.add(id(storage))
                    self.alive += storage.nbytes()
                    weakref.finalize(storage, self.free, id(storage), storage.nbytes())
            self.bytes = max(self.bytes, self.alive)
            return result

        def free(self, key: int, size: int) -> None:
            self.known.discard(key)
            self.alive -= size

    return Counter()


def iqm(values: Any) -> float:
    """The mean of the middle half; of all where there are fewer than four."""
    ordered = np.sort(np.asarray(values, float))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def interval(values: Any) -> tuple[float, float]:
    """95 % bootstrap interval of the IQM."""
    rng, values = np.random.default_rng(0), np.asarray(values, float)
    draws = [iqm(values[rng.integers(len(values), size=len(values))]) for _ in range(2_000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


ENGINES = ("onnx", "torch", "compiled")
TICKS = (5, 10, 20, 50, 100, 200, 500, 1_000)  # microseconds


def microseconds(costs: dict[str, float], states: int) -> str:
    """Of one action on ``states`` states, by engine."""
    return " / ".join(f"{costs[key]:,.0f}" for name in ENGINES if (key := f"{name}_{states}_us") in costs)


def quickest(costs: dict[str, float]) -> float:
    """Microseconds of one action in one state by the engine that workers choose."""
    return costs.get("compiled_1_us", costs["onnx_1_us"])


def write_report(arguments: argparse.Namespace) -> None:
    """The tables in Markdown, and the picture: curves over steps and over time, and what an action costs against the last return."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [run for path in arguments.returns for run in results(path)]
    runs = [run for run in found if arguments.settings or not run["set"]]
    runs.sort(key=lambda run: int(run["seed"]))
    costs = json.loads(arguments.costs.read_text())
    tasks = sorted({(run["env"], run["steps"]) for run in runs})
    figure, axes = pyplot.subplots(len(tasks), 3, figsize=(15, 4 * len(tasks)), squeeze=False)
    for (curves, timed, points), (env, steps) in zip(axes, tasks):
        print(
            f"\n| {env}, {steps:,} env steps | return, IQM [95 %] | each seed | with noise | CPU s of a run |\n|---|---|---|---|---|"
        )
        here = [run for run in runs if (run["env"], run["steps"]) == (env, steps)]
        for name in sorted({named(run) for run in here}, key=lambda name: (METHODS.index(name.split()[0]), name)):
            mine = [run for run in here if named(run) == name]
            method = mine[0]["method"]
            mean_RE = np.array([[np.mean(point["returns"]) for point in run["evaluations"]] for run in mine])
            at = [point["env_steps"] for point in mine[0]["evaluations"]]
            last, (low, high) = mean_RE[:, -1], interval(mean_RE[:, -1])
            noisy, cpu_s = np.mean([run["sampled"] for run in mine]), np.median([run["cpu_s"] for run in mine])
            each = " / ".join(f"{value:,.0f}" for value in last)
            print(f"| {name} | {iqm(last):,.0f} [{low:,.0f}, {high:,.0f}] | {each} | {noisy:,.0f} | {cpu_s:.0f} |")
            middle, between = (
                [iqm(column) for column in mean_RE.T],
                np.array([interval(column) for column in mean_RE.T]),
            )
            for axis, along in ((curves, at), (timed, np.array(at) / at[-1] * cpu_s / 60)):
                (line,) = axis.plot(along, middle, marker="o", markersize=3, label=name)
                axis.fill_between(along, *between.T, color=line.get_color(), alpha=0.12, linewidth=0)
            points.errorbar(
                quickest(costs[method]), iqm(last), [[iqm(last) - low], [high - iqm(last)]], marker="o", label=name
            )
            points.annotate(name, (quickest(costs[method]), iqm(last)), fontsize=8)
        curves.set(title=env, xlabel="env steps", ylabel="deterministic return, IQM [95 %]")
        timed.set(xlabel="CPU minutes of training, one core", ylabel="deterministic return, IQM [95 %]")
        points.set(xlabel="microseconds of one action, fastest engine", ylabel=f"return at {steps:,}", xscale="log")
        left, right = points.get_xlim()
        ticks = [tick for tick in TICKS if left <= tick <= right]
        points.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        points.minorticks_off()
        curves.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(arguments.picture, dpi=90)
    print(
        "\n| | passes | parameters | us, 1 state: onnxruntime / torch / compiled | us, 64 states | actor update, ms | MiB |"
        f"\n|{'---|' * 7}"
    )
    for method, c in costs.items():
        print(
            f"| {method} | {PASSES[method]} | {c['parameters']:,} | {microseconds(c, 1)} | "
            f"{microseconds(c, 64)} | {c['update_ms']:.1f} | {c['peak_mib']:.1f} |"
        )
    print("\nMeasured on " + ", ".join(sorted({c["machine"] for c in costs.values()})))


if __name__ == "__main__":
    main()
