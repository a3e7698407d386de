"""What every test has: one torch thread, no Ray authentication, this folder on the path of the processes it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from real_runs import RealRuns

HERE = Path(__file__).resolve().parent

for name, value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}.items():
    os.environ.setdefault(name, value)
if str(HERE) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # broken_envs:Raises-v0 in workers too
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))

# Files whose tests train, resume or fuzz whole runs, or start other programs: seconds each, so not in `make quick`, which is to
# take less than 90 s on two cores.
WHOLE_RUNS = {
    "test_alarms", "test_alerts", "test_asking_runs", "test_bad_input", "test_changed_directory", "test_cli",
    "test_collecting", "test_collective", "test_dataset_command", "test_dataset_identity", "test_dataset_task",
    "test_definitions", "test_demo_gac", "test_deploy", "test_diagnose_command", "test_dm_control",
    "test_env_modules", "test_env_watch", "test_episode_shard_simulation", "test_evaluator_plans", "test_exporter",
    "test_finetune_softgac", "test_fixed_goal", "test_full_disk", "test_fuzz", "test_gac_agent",
    "test_gac_bad_input", "test_gac_commands", "test_gac_inference", "test_gac_learning", "test_gac_linear",
    "test_gac_policy", "test_generative", "test_gpu_check", "test_imitation", "test_imports", "test_inline",
    "test_kubernetes", "test_line_task", "test_loggers", "test_loop_watch", "test_missing", "test_monitoring",
    "test_offline_values", "test_online_transformer", "test_outside", "test_plan_cli", "test_plan_picture",
    "test_policy", "test_published_tasks", "test_regression", "test_replay_client_plans", "test_resumed_counters",
    "test_resumed_envs", "test_resuming", "test_run_dir", "test_run_ends", "test_seeds", "test_setup",
    "test_shard_actor", "test_shown_commands", "test_simulation", "test_start_cells", "test_support", "test_toy",
    "test_values", "test_video", "test_without_effect",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of ``WHOLE_RUNS`` as slow."""
    for item in items:
        if item.path.stem in WHOLE_RUNS:
            item.add_marker(pytest.mark.slow)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Does not import a file of which ``-m`` leaves no test: Ray and RLlib alone take seconds, in each process of the tests."""
    chosen = config.option.markexpr
    if collection_path.suffix != ".py" or not chosen:
        return None
    text = collection_path.read_text(encoding="utf-8")
    none_left = (
        ("not slow" in chosen and collection_path.stem in WHOLE_RUNS)
        or ("not cluster" in chosen and "\npytestmark = pytest.mark.cluster" in text)
        or (chosen == "cluster" and "pytest.mark.cluster" not in text)
    )
    return none_left or None


@pytest.fixture(scope="session")
def real_runs(tmp_path_factory: pytest.TempPathFactory) -> RealRuns:
    """What short runs of softgac, gac and its fine-tuning, and one that fails, wrote and exported."""
    from real_runs import make_real_runs

    return make_real_runs(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every metrics record of a run on Ray of which a worker was killed."""
    from real_runs import make_killed_run

    return make_killed_run(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the counting environments of a module's runs write down their steps."""
    from counting_env import FOLDER

    folder = tmp_path_factory.mktemp("counting")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FOLDER, str(folder))
        yield folder
