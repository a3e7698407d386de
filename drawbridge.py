"""Drawbridge from Python: the names that are promised to stay. Importing this module imports nothing else of the project.

    from drawbridge import load

    policy = load("runs/hopper")
    action = policy(obs)

The command line does the same and more: ``drawbridge --help``. What cannot be done is a ValueError, and a run that fails a
RuntimeError; the message says what was seen, what was expected, the consequence and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.policy import LoadedPolicy

__all__ = ["evaluate", "load", "make_dataset", "train"]


def _check_names() -> None:
    """ValueError if a module of the caller's hides one of this project's packages."""
    import importlib.util

    here = Path(__file__).resolve().parent
    for ours in sorted(here.glob("*/__init__.py")):
        name = ours.parent.name
        found = importlib.util.find_spec(name)
        if found is None:
            continue
        folders = found.submodule_search_locations or [""]
        place = found.origin or next(iter(folders))  # a folder without code has no origin
        if Path(place).resolve() != ours:
            raise ValueError(
                f"{place} is found under the name {name!r}, expected this project's package {ours.parent}, which it hides: nothing was "
                "done; rename it, or start in another folder"
            )


def load(
    run: str | Path,
    *,
    mode: str | None = None,
    target_return: float | None = None,
    seed: int = 10_000,
    env: str | None = None,
) -> LoadedPolicy:
    """The policy of a run's newest checkpoint, which acts: ``action = policy(obs)``, for one observation or a batch.

    Args:
        run: run directory of any algorithm, running or ended.
        mode: how a policy of gac infers its plans: prior, st, kl, max or explore. None: as the run evaluates.
        target_return: what gac (mode st), rvs and dt ask for, in the environment's units. None: the run's default.
        seed: of plans and of noise. The default is that of evaluations.
        env: the run's environment again where its id is ``module:Id``: only what your code names is imported.

    Raises ValueError for what is no run or cannot be asked of its policy, and RuntimeError where there is no checkpoint to use.
    """
    _check_names()
    from cluster.policy import load

    return load(run, mode=mode, target_return=target_return, seed=seed, env=env)


def train(
    algorithm: str,
    env: str | None = None,
    *,
    dataset: str | None = None,
    preset: str = "cpu",
    run: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> Path:
    """Trains a policy to the end of its run and returns the run directory, as ``drawbridge train`` does.

    Args:
        algorithm: a name of ``drawbridge train --help``: softgac, crossq-sac, gac, bc, ...
        env: Gymnasium environment id. None: the dataset's.
        dataset: Minari dataset to learn from, by id or path.
        preset: what the settings start from.
        run: a new directory. None: runs/ENV-ALGORITHM-SEED-N.
        settings: any field of ``drawbridge config PRESET`` by its dotted key: {"steps": 50_000, "backend": "inline"}.
        env_kwargs: JSON arguments of ``gymnasium.make``. None: the dataset's, where ``env`` does not name another environment.

    Called from the main thread, SIGINT and SIGTERM end the run with a checkpoint.
    """
    _check_names()
    from cluster.commands.train import train
    from cluster.commands.values import check_mapping, check_path, check_text

    for name, value in (("algorithm", algorithm), ("preset", preset), ("env", env), ("dataset", dataset)):
        check_text(name, value, optional=name in ("env", "dataset"))
    check_mapping("settings", settings)
    check_mapping("env_kwargs", env_kwargs)
    run = None if run is None else check_path("run", run)
    return train(
        algorithm, env, dataset=dataset, preset=preset, run_dir=run, settings=settings or {}, env_kwargs=env_kwargs
    )


def evaluate(
    run: str | Path,
    *,
    episodes: int = 10,
    seed: int = 10_000,
    mode: str | None = None,
    target_return: float | None = None,
    env: str | None = None,
) -> dict[str, Any]:
    """Deterministic episodes with a run's newest policy: what ``drawbridge evaluate --json`` prints.

    Args:
        run: run directory.
        episodes, seed: episode i starts from ``seed`` + i.
        mode, target_return, env: as in ``load``.
    """
    _check_names()
    from cluster.commands.arguments import name_env_again
    from cluster.commands.evaluation import evaluate
    from cluster.commands.values import check_count, check_path, check_request, check_seed

    path = check_path("run", run).absolute()
    check_request(mode, target_return, env)
    count, first = check_count("episodes", episodes), check_seed("seed", seed)
    name_env_again(path, env)
    return evaluate(path, count, first, None, mode=mode, target_return=target_return)


def make_dataset(
    source: str | Path,
    *,
    episodes: int,
    kind: str = "maze",
    seed: int = 1,
    name: str | None = None,
    noise: float = 0.5,
    dwell: int = 0,
    env: str | None = None,
    force: bool = False,
) -> str:
    """Makes a Minari dataset of episodes and returns its id, as ``drawbridge dataset make`` does.

    Args:
        source: the PointMaze environment of kind maze; of the other kinds the directory of a run that learns from transitions.
        episodes: how many.
        kind: maze (a noisy planner), medium, expert, mixed or replay (of a run's policy, with and without exploration).
        seed: of everything random.
        name: id of the dataset. None: one made of the environment and the kind.
        noise, dwell: of kind maze: deviation of the action noise, and steps that the planner rests at a target.
        env: as in ``load``, for the other kinds.
        force: replace a dataset of that id.
    """
    _check_names()
    from cluster.commands.dataset import make_dataset
    from cluster.commands.values import check_count, check_number, check_path, check_seed, check_text

    check_path("source", source)
    for label, text in (("kind", kind), ("name", name), ("env", env)):
        check_text(label, text, optional=label != "kind")
    check_number("noise", noise, 0, optional=False)
    recipe: dict[str, Any] = {"episodes": check_count("episodes", episodes), "seed": check_seed("seed", seed)}
    recipe |= {"kind": kind, "noise": noise, "dwell": check_count("dwell", dwell, 0)}
    made = make_dataset(source, **recipe, name=name, env=env, force=force)
    return str(made.id)
