"""The task of a dataset: how the environment that it was recorded in is made here, and what of it differs from a run's.

The metadata is compared with Gymnasium's registration as text; nothing that it names is built or imported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.errors import UsageError
from replay.task import LIMIT, TaskError, id_of, join_task, name_of
from rollout_workers.env import EnvError
from rollout_workers.env_ids import find_env

if TYPE_CHECKING:
    from cluster.graph import RunSpec
    from replay.dataset import Dataset

_ABSENT = object()


def task_of(dataset: Dataset, env_id: str) -> str:
    """The task of the dataset in the registered environment ``env_id``: its arguments and its time limit where they differ.

    UsageError when there is no such environment, or it cannot be given an argument.
    """
    recorded = dataset.env
    if not recorded.entry_point:
        return env_id
    try:
        spec = find_env(env_id)
        registered = _as_json(spec.kwargs)
        kwargs = {
            name: value
            for name, value in recorded.kwargs.items()
            if name != "render_mode" and value != registered.get(name, _ABSENT)
        }
        if recorded.max_episode_steps not in (None, spec.max_episode_steps):
            kwargs[LIMIT] = recorded.max_episode_steps
        return join_task(env_id, kwargs)
    except (EnvError, TaskError) as error:
        raise UsageError(
            f"{dataset.id} was recorded in a task that cannot be made here: {error}; nothing was started; or name the environment's "
            "arguments yourself with --env-kwargs"
        ) from error


def differences(dataset: Dataset, task: str) -> list[str]:
    """What makes the recorded task another one than ``task``, each with both sides in words."""
    recorded = dataset.env
    if not recorded.env_id:
        return []
    other_id = name_of(recorded.env_id) != name_of(task)
    found = [f"its environment is {recorded.env_id}, not {id_of(task)}"] if other_id else []
    if not recorded.entry_point:
        return found
    spec = find_env(task)
    ours, theirs = _as_json(spec.kwargs), recorded.kwargs
    found += [
        f"its {name} is {_shown(value)}, not {_shown(ours[name]) if name in ours else 'given'}"
        for name, value in sorted(theirs.items())
        if name != "render_mode" and value != ours.get(name, _ABSENT)
    ]
    if recorded.max_episode_steps not in (None, spec.max_episode_steps):
        found.append(f"its {LIMIT} is {recorded.max_episode_steps}, not {spec.max_episode_steps}")
    wrappers = tuple(wrapper.name for wrapper in spec.additional_wrappers)
    if recorded.wrappers != wrappers:
        found.append(f"its wrappers are {', '.join(recorded.wrappers) or 'none'}, not {', '.join(wrappers) or 'none'}")
    return found


def doubts(dataset: Dataset, task: str) -> list[str]:
    """What may make the recorded task another one than ``task``, though nobody can tell from the metadata."""
    recorded, found = dataset.env, [dataset.env.doubt] if dataset.env.doubt else []
    if not recorded.env_id:
        found.append("it does not name its environment")
    if not recorded.entry_point or name_of(recorded.env_id) != name_of(task):
        return found
    spec = find_env(task)
    found += [
        f"it does not say its {name}, here it is {_shown(spec.kwargs[name])}"
        for name in sorted(spec.kwargs.keys() - recorded.kwargs.keys())
    ]
    if isinstance(spec.entry_point, str) and spec.entry_point != recorded.entry_point:
        found.append(f"its {name_of(task)} was {recorded.entry_point}, here it is {spec.entry_point}")
    if recorded.max_episode_steps is None and spec.max_episode_steps is not None:
        found.append(f"it was recorded without a time limit, here it is {spec.max_episode_steps} steps")
    return found


def check_same_task(dataset: Dataset, task: str, fix: str = "") -> None:
    """UsageError, for a task that nobody named on the command line, when the dataset is of another one.

    Args:
        fix: what was not done, and what to do; "": of a run that is to start, for which the task can be named.
    """
    try:
        found = differences(dataset, task)
    except EnvError as error:
        raise UsageError(str(error)) from error
    if found:
        fix = fix or f"nothing was started; if you want that, name the environment with --env {id_of(task)}"
        raise UsageError(
            f"{dataset.id} is of another task than {task}: {'; '.join(found)}; expected the same, because scores would be of "
            f"another task than the data: {fix}"
        )


def task_notes(spec: RunSpec) -> list[str]:
    """One line that says what the run's task and its dataset's differ in; none where they do not."""
    dataset, task = spec.dataset, spec.config.env
    if dataset is None:
        return []
    certain, uncertain = differences(dataset, task), doubts(dataset, task)
    is_ = "is" if certain else "may be"
    found = "; ".join([*certain, *uncertain])
    return [f"dataset {dataset.id} {is_} of another task than {task}: {found}"] if found else []


def score_of(dataset: Dataset | None, returns: Sequence[float]) -> dict[str, float]:
    """The mean return on the scale of a run's dataset, and the two ends of the scale; empty without them."""
    if dataset is None or dataset.random_return is None or dataset.expert_return is None:
        return {}
    score = dataset.normalised(sum(returns) / len(returns))
    ends = {"random_return": dataset.random_return, "expert_return": dataset.expert_return}
    return {} if score is None else {**ends, "normalised_mean": score}


def _as_json(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments as metadata would have them: tuples are lists."""
    return dict(json.loads(json.dumps(kwargs, default=repr)))


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr)[:80]
