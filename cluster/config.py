"""The configuration of a run: one frozen dataclass a component, composed by RunConfig.

Presets are functions; ``--set dotted.key=value`` overrides one field; an unknown key is an error with the nearest one;
every inconsistency is found when the configuration is read and all of them are listed at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from algorithms import ALGORITHMS
from cluster.errors import UsageError
from cluster.setting_text import check_known, in_todays_words, parse_setting, unfit_fields, unfit_labels
from cluster.task_preset import for_task
from learners.config import LearnerConfig
from replay.config import DataConfig, ReplayConfig
from replay.option import BUDGET, RESERVED, SEED_LIMIT, option, range_problems, with_preset
from rollout_workers.config import EvaluationConfig, WorkerConfig

READ_ON_EPISODES = ("shards", "capacity_rows", "snapshot_s", "snapshots_kept")  # replay settings of such runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricsConfig:
    """What a run tells while it runs."""

    line_s: float = option(2.0, "s", "time between lines of metrics.jsonl", at_least=0, why="no time is before now")
    host: str = option("127.0.0.1", "address", "where the Prometheus endpoint listens; 0.0.0.0 opens it to the network")
    port: int = option(
        0,
        "port",
        "port of the Prometheus endpoint; 0: any free one, named in live.json; -1: none",
        at_least=-1,
        at_most=65_535,
        why="nobody could listen there; -1 opens none",
    )
    targets_dir: str = option("", "path", "folder in which Prometheus finds the run; empty: none", former="")
    tensorboard: bool = option(True, "bool", "write TensorBoard events to the run directory")
    logger: str = option("", "name", "who takes the metrics too; empty: nobody", ("", "mlflow", "wandb"), former="")

    def validate(self) -> list[str]:
        """Every value with which a run could not tell anything, with its fix; empty when there is none."""
        found = range_problems(self)
        if isinstance(self.host, str) and not self.host.strip():
            found.append(
                "host is empty, expected an address to listen on: an empty one would open the endpoint to every network; set "
                "127.0.0.1, or 0.0.0.0 to open it on purpose"
            )
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class RayConfig:
    """How the run uses the Ray cluster."""

    address: str = option(
        "", "address", "of a running cluster; empty: RAY_ADDRESS, or else a cluster of the run's own on this machine"
    )
    object_store_bytes: int = option(
        536_870_912,
        "bytes",
        "object store of a local cluster that the run starts itself",
        at_least=75 * 2**20,
        why="Ray refuses a smaller object store",
    )
    shard_cpus: float = option(0.1, "CPUs", "what one replay shard reserves", **RESERVED)
    shard_restart_budget: int = option(
        3, "restarts/h", "restarts of one shard within any hour; one more halts the run", **BUDGET
    )
    call_timeout_s: float = option(
        60.0, "s", "deadline of one call to an actor", at_least=1, why="a healthy actor would be taken for a silent one"
    )
    start_timeout_s: float = option(
        120.0,
        "s",
        "deadline for the actors to start: a cluster may be scaling up",
        at_least=1,
        why="no actor would start in time",
    )
    learner_labels: str = option("", "labels", "of nodes that learners may run on: key=value,key=in(a,b)", former="")
    shard_labels: str = option("", "labels", "of nodes that shards may run on", former="")
    worker_labels: str = option("", "labels", "of nodes for workers and the evaluator: spot=true", former="")

    def validate(self) -> list[str]:
        """Every value with which no part could be started or asked, with its fix; empty when there is none."""
        labels = {name: getattr(self, name) for name in ("learner_labels", "shard_labels", "worker_labels")}
        return range_problems(self) + [
            f"{name} is {problem}" for name, text in labels.items() if (problem := unfit_labels(text))
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Stages of a run that learns from whole episodes: gather, then learn, in turn. 0 stages: it learns from its dataset alone."""

    stages: int = option(
        0,
        "stages",
        "times that episodes are gathered and then learned from; the paper's log has 3",
        at_least=0,
        at_most=1_000_000,
        why="a count cannot be negative; 0 learns from the dataset alone",
    )
    episodes_per_stage: int = option(
        500,
        "episodes",
        "episodes gathered in a stage, over all shards; the paper's log: 500 in mazes, about 100 elsewhere",
        at_least=1,
        why="a stage would gather nothing",
    )
    updates_per_stage: int = option(
        2_500,
        "updates",
        "updates that follow each gathering; the log: about 1,000",
        at_least=1,
        why="nothing would be learned from what was gathered",
    )
    plan: str = option(
        "explore",
        "name",
        "how workers plan: explore (a target above what is known), or an exploiting mode",
        ("explore", "kl", "max", "st", "prior"),
    )
    base: str = option("", "path", "run directory whose newest checkpoint the first weights come from")

    def validate(self) -> list[str]:
        """Every value with which a stage could not be made, with its fix; empty when there is none."""
        return range_problems(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Every setting of a run."""

    algorithm: str = option("softgac", "name", ", ".join(ALGORITHMS), tuple(ALGORITHMS))
    preset: str = option(
        "cpu",
        "name",
        "what this one started from",
        ("cpu", "linear", "paper", "paper-fleet"),
        choices_were={"cpu": "paper-cpu"},
    )
    env: str = option(
        "HalfCheetah-v5", "id", "Gymnasium environment id; ID?{...}: with these arguments of gymnasium.make"
    )
    dataset: str = option("", "id", "Minari dataset that is learned from; empty: none")
    steps: int = option(
        1_000_000,
        "env steps",
        "length of the whole run; of algorithms that learn from whole episodes: its updates",
        at_least=1,
        why="a run of no steps learns nothing",
    )
    seed: int = option(
        1,
        "1",
        "seed of everything random in the run",
        at_least=0,
        at_most=SEED_LIMIT,
        why="generators and environments take no other",
    )
    backend: str = option(
        "ray", "name", "ray: actors; inline: the same graph in one process, deterministic", ("ray", "inline")
    )
    agent: Any = option(None, "", "settings of the algorithm")
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    worker: WorkerConfig = dataclasses.field(default_factory=WorkerConfig)
    learner: LearnerConfig = dataclasses.field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    online: OnlineConfig = dataclasses.field(default_factory=OnlineConfig)
    metrics: MetricsConfig = dataclasses.field(default_factory=MetricsConfig)
    ray: RayConfig = dataclasses.field(default_factory=RayConfig)

    @property
    def unit(self) -> str:
        """What ``steps`` and ``evaluation.every_steps`` count, by its name in a metrics line."""
        return ALGORITHMS[self.algorithm].unit

    @property
    def planned_updates(self) -> int | None:
        """Updates of the whole run; None where it counts env steps."""
        return self.steps if self.unit == "updates" else None


def paper(algorithm: str) -> RunConfig:
    """The published settings; needs a GPU. Those with critics: by the task, one environment, the newest weights at every step."""
    if ALGORITHMS[algorithm].items == "episodes":
        config = _on_episodes(algorithm, "paper")
        return dataclasses.replace(config, learner=dataclasses.replace(config.learner, gpus=1.0, cpus=1.0))
    fleet = paper_fleet(algorithm)
    cycle = fleet.agent.actor_every  # a CUDA graph makes no less
    return dataclasses.replace(
        fleet,
        preset="paper",
        backend="inline",
        worker=dataclasses.replace(fleet.worker, workers=1, envs_per_worker=1, chunk_steps=1),
        learner=dataclasses.replace(fleet.learner, updates_per_call=cycle, publish_updates=cycle),
    )


def paper_fleet(algorithm: str) -> RunConfig:
    """The published equations, gathered by 16 environments with weights of up to 64 updates ago; not of algorithms of episodes."""
    return RunConfig(
        algorithm=algorithm,
        preset="paper-fleet",
        agent=ALGORITHMS[algorithm].presets["paper"](),
        worker=WorkerConfig(cpus=1.0),
        learner=LearnerConfig(gpus=1.0, cpus=1.0),
    )


def cpu(algorithm: str) -> RunConfig:
    """Ours, for two laptop cores: the same equations, narrower networks, one update an env step."""
    if ALGORITHMS[algorithm].items == "episodes":
        return _on_episodes(algorithm, "cpu")
    return RunConfig(
        algorithm=algorithm,
        preset="cpu",
        steps=25_000,
        agent=ALGORITHMS[algorithm].presets["cpu"](),
        replay=ReplayConfig(replay_ratio=1.0, min_size_rows=1_000, snapshot_s=60.0),
        worker=WorkerConfig(workers=2, envs_per_worker=4, chunk_steps=4, random_steps=1_000),
        learner=LearnerConfig(updates_per_call=16, publish_updates=32, checkpoint_s=30.0),
        evaluation=EvaluationConfig(every_steps=5_000, episodes=10, final_episodes=10),
    )


IMITATION_UPDATES = {"cpu": 5_000, "paper": 100_000}


def _on_episodes(algorithm: str, preset: str) -> RunConfig:
    """What all that learn from whole episodes have in common; gac has a schedule of its own, Chen et al. (2021) make 10^5 updates."""
    agent = ALGORITHMS[algorithm].presets[preset]()
    online = OnlineConfig(stages=3 if algorithm == "rlpd" else 0)  # rlpd has no offline part
    updates = agent.updates if algorithm == "gac" else IMITATION_UPDATES[preset]
    steps = online.stages * online.updates_per_stage or updates
    calls = 1 if preset == "paper" else 10  # a signal waits for a call, and an update of paper is long on a CPU
    return RunConfig(
        algorithm=algorithm,
        preset=preset,
        steps=steps,
        agent=agent,
        online=online,
        worker=WorkerConfig(workers=2, envs_per_worker=16, chunk_steps=25, random_steps=0),
        learner=LearnerConfig(batch_size=64, updates_per_call=calls, publish_updates=100, checkpoint_s=60.0),
        evaluation=EvaluationConfig(every_steps=steps // 10, episodes=20, final_episodes=100),
    )


def linear(algorithm: str) -> RunConfig:
    """Ours, of gac alone: return-conditioned with a latent."""
    return _on_episodes(algorithm, "linear")


PRESETS = {"cpu": cpu, "linear": linear, "paper": paper, "paper-fleet": paper_fleet}


def presets_of(algorithm: str) -> list[str]:
    """The presets that an algorithm has."""
    found = ALGORITHMS[algorithm]
    return [*found.presets, *(["paper-fleet"] if found.items == "transitions" else [])]


def make_preset(algorithm: str, name: str, env: str | None = None) -> RunConfig:
    """The named preset for an algorithm; UsageError names the nearest when there is none, or whose it is.

    Args:
        env: environment id, by which presets ``paper`` and ``paper-fleet`` of those with critics take what the paper sets by task.
    """
    check_known(algorithm, ALGORITHMS, "algorithm")
    owners = [other for other in ALGORITHMS if name in presets_of(other)]
    if owners and algorithm not in owners:
        raise UsageError(
            f"{algorithm} has no preset {name!r}, expected one of {', '.join(presets_of(algorithm))}; nothing was started. "
            f"It is of {', '.join(owners)} alone: name that algorithm, or another preset"
        )
    check_known(name, presets_of(algorithm), "preset")
    config = PRESETS[name](algorithm)
    return config if env is None else for_task(dataclasses.replace(config, env=env))


def override(config: RunConfig, settings: dict[str, str], problems: list[str] | None = None) -> RunConfig:
    """``config`` with dotted keys set from text; every key that is not there and every value of another type is a problem.

    Args:
        problems: takes them, for a caller that lists them with others; None: they are one UsageError.
    """
    found: list[str] = []
    for key, text in settings.items():
        try:
            config = _override_one(config, key, text)
        except UsageError as error:
            found.append(str(error))
    if problems is not None:
        problems += found
    elif found:
        raise UsageError("\n".join(found))
    return config


def out_of_range(config: RunConfig) -> list[str]:
    """One line for each field whose value has not its type or its range; of those that the run does not read, its type."""
    found, items = range_problems(config), ALGORITHMS[config.algorithm].items
    for part in dataclasses.fields(config):
        settings = getattr(config, part.name)
        if dataclasses.is_dataclass(settings):
            read = READ_ON_EPISODES if part.name == "replay" and items == "episodes" else None
            found += [f"{part.name}.{text}" for text in range_problems(settings, read)]
    return found


def flatten(config: RunConfig) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Every leaf field by its dotted key, with its value."""
    leaves: dict[str, tuple[Any, dataclasses.Field[Any]]] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            for leaf in dataclasses.fields(value):
                leaves[f"{field.name}.{leaf.name}"] = (getattr(value, leaf.name), leaf)
        else:
            leaves[field.name] = (value, field)
    return leaves


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as a nested dict of plain values."""
    return dataclasses.asdict(config)


def from_json(data: dict[str, Any]) -> RunConfig:
    """The configuration that ``to_json`` wrote; UsageError names every field that is unknown, missing or out of its range.

    A missing field that has a ``former`` value takes it, whatever the preset has by now.
    """
    for name, table in (("algorithm", ALGORITHMS), ("preset", PRESETS)):
        if not isinstance(data.get(name), str):
            raise UsageError(f"{name} is {data.get(name)!r}, expected one of {', '.join(table)}; nothing was started")
        check_known(data[name], table, name)
    config = preset = make_preset(data["algorithm"], data["preset"])
    expected = flatten(config)
    written = dict(in_todays_words(key, value, expected) for key, value in _leaves_of(data))
    former = {key: field.metadata.get("former") for key, (_, field) in expected.items()}
    seen = {key: value for key, value in former.items() if value is not None} | written
    surplus, missing = sorted(set(seen) - set(expected)), sorted(set(expected) - set(seen))
    if surplus or missing:
        writer = next((name for name in ALGORITHMS if flatten(make_preset(name, "cpu")).keys() == written.keys()), "")
        raise UsageError(unfit_fields(surplus, missing, writer, data["algorithm"]))
    values = {key: _as_declared(expected[key][1], value) for key, value in seen.items()}
    for key, value in values.items():
        config = _replace(config, key, value)
    if found := [with_preset(text, preset) for text in out_of_range(config)]:
        raise UsageError(f"{'; '.join(found)}; nothing was started; put these fields back to what they were")
    return config


def _as_declared(field: dataclasses.Field[Any], value: Any) -> Any:
    """A whole number as a float where the field is one: JSON does not tell 1 from 1.0."""
    whole = type(value) is int and "float" in str(field.type) and abs(value) < 2**53
    return float(value) if whole else value


def _leaves_of(data: dict[str, Any]) -> typing.Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{leaf}", item) for leaf, item in value.items())
        else:
            yield key, value


def _override_one(config: RunConfig, key: str, text: str) -> RunConfig:
    leaves = flatten(config)
    if key not in leaves:
        near = difflib.get_close_matches(key, leaves, n=3, cutoff=0.4)
        near = near or [name for name in leaves if name.endswith(key.rsplit(".", 1)[-1])]
        raise UsageError(
            f"--set {key}: there is no such field; nearest: {', '.join(near) or 'none'}; nothing was started. "
            "`drawbridge config PRESET` lists every field"
        )
    if key in ("agent", "algorithm", "preset"):
        raise UsageError(f"--set {key}: this is chosen by the command itself, not by --set; nothing was started")
    old, field = leaves[key]
    absent = "None" in str(field.type)  # what may be absent is a number
    value = None if absent and text.lower() == "none" else parse_setting(key, text, float if absent else type(old))
    choices = field.metadata.get("choices")
    if choices and value not in choices:
        raise UsageError(
            f"--set {key}={text}: expected one of {', '.join(map(str, choices))}; nothing was started; choose one of them"
        )
    return _replace(config, key, value)


def _replace(config: RunConfig, key: str, value: Any) -> RunConfig:
    if "." not in key:
        return dataclasses.replace(config, **{key: value})
    part, leaf = key.split(".", 1)
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{leaf: value})})
