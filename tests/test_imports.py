"""The direction of imports is part of the architecture (docs/architecture.md)."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "replay": {"replay"},
    "algorithms": {"algorithms", "replay"},
    "rollout_workers": {"rollout_workers", "algorithms", "replay"},
    "learners": {"learners", "algorithms", "replay"},
    "cluster": {"cluster", "learners", "rollout_workers", "algorithms", "replay"},
}


def imported(path: Path) -> set[str]:
    """First names of every module that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_imports_only_what_the_architecture_allows(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        names = imported(path)
        assert names & MAY_IMPORT.keys() <= MAY_IMPORT[folder], f"{path} imports {names & MAY_IMPORT.keys()}"
        assert folder == "cluster" or "ray" not in names, f"{path} imports ray, which only cluster/ may"


def run_time_imports(path: Path) -> set[str]:
    """Dotted names that a file imports when it runs, inside functions too; not those for type checkers alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def test_no_files_import_each_other_in_a_circle() -> None:
    files = [path for folder in MAY_IMPORT for path in (ROOT / folder).rglob("*.py") if path.stem != "__init__"]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    graph = {name: run_time_imports(path) & names.keys() for name, path in names.items()}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the files of a circle


def test_files_and_functions_stay_short_enough_to_read() -> None:
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert text.count("\n") <= 400, f"{path} has more than 400 lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    lines = (node.end_lineno or 0) - node.lineno + 1
                    assert lines <= 80, f"{path}: {node.name} has {lines} lines, more than 80"


def test_no_module_is_named_like_one_of_the_standard_library() -> None:
    """Ray puts the working directory first on the path: such a name would hide the library's."""

    names = sys.stdlib_module_names - {"chunk"}  # the library's reads IFF files and is gone from Python 3.13
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem in ("__init__", "__main__") or path.stem not in names, path


def test_no_file_reads_or_writes_pickles() -> None:
    for folder in MAY_IMPORT:
        for path in (ROOT / folder).rglob("*.py"):
            assert not imported(path) & {"pickle", "cloudpickle", "dill", "joblib"}, path
            assert not re.search(r"(?<![.\w])torch\.(load|save)\(", path.read_text()), path


LIGHT = (
    ["--help"], ["train", "--help"], ["presets"], ["config", "cpu"], ["train"], ["train", "softgac"],
    ["train", "sac", "--env", "X", "--steps", "no"], ["status", "/nowhere"], ["scale", "/nowhere", "--workers", "2"],
    ["evaluate", "/nowhere"], ["resume", "/nowhere"], ["export", "/nowhere", "--onnx", "x"], ["stop", "/nowhere"],
    ["list", "/nowhere"], ["--version"], ["train", "sac", "--config", "/nowhere"],
)  # fmt: skip


def test_what_needs_no_learning_starts_without_the_libraries_of_learning() -> None:
    """Help, presets and usage errors answer at once: torch alone takes seconds to import. All in one process: none may."""
    script = f"""
import contextlib, io, sys
from cluster.cli import main
for words in {LIGHT!r}:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = main(words)
    except SystemExit as ended:
        code = ended.code
    print(words, code, sorted({{'torch', 'ray', 'gymnasium', 'mujoco', 'numpy'}} & set(sys.modules)), sep="|")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    result = [line.split("|") for line in ended.stdout.splitlines()]
    assert [words for words, *_ in result] == [str(words) for words in LIGHT], ended.stderr
    for words, code, loaded in result:
        assert code in ("0", "2") and loaded == "[]", (words, code, loaded)


@pytest.mark.parametrize(
    ("part", "script"),
    [
        ("driver, shards and store", "import cluster.fleet, cluster.session, learners.checkpoint"),
        (
            "worker and evaluator",
            "import pathlib\n"
            "from cluster.config import make_preset, override\n"
            "from cluster.graph import RunSpec, make_evaluator, make_worker\n"
            "config = override(make_preset('softgac', 'cpu'), {'env': 'InvertedPendulum-v5'})\n"
            "spec = RunSpec(config=config, obs_dim=4, action_dim=1, run_dir=pathlib.Path('.'))\n"
            "worker, evaluator = make_worker(spec, 0, 0, 10**6), make_evaluator(spec)\n"
            "assert len(worker.collect().rows_ND) and worker._actor.stateless.backend == 'compiled'\n",
        ),
    ],
)
def test_torch_is_not_imported_by(part: str, script: str) -> None:
    """It is a second or two and 180 MiB in every process that does not learn (tests/test_scale.py sees it in the processes)."""
    script += "\nimport sys; print(sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.stdout == "[]\n", (part, ended.stderr)


UNKNOWN = {"Nope-v9": {"mujoco", "cffi"}, "PointMaze_UMaze-v9": {"cffi"}}  # and what its refusal must not have imported


@pytest.mark.parametrize("env", UNKNOWN)
def test_an_environment_that_does_not_exist_is_refused_without_what_takes_long_to_import(env: str) -> None:
    """cffi comes with glfw, which MuJoCo imports to draw windows; mazes are in a package that imports MuJoCo."""
    script = (
        "import sys, atexit\n"
        f"heavy = {UNKNOWN[env] | {'torch', 'ray', 'matplotlib'}!r}\n"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)), file=sys.stderr))\n"
        "from cluster.cli import main\n"
        f"sys.exit(main(['train', 'softgac', '--env', {env!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 2 and f"unknown environment '{env}'" in ended.stderr, ended.stderr
    assert ended.stderr.strip().splitlines()[-1] == "[]"
    assert ("nearest: PointMaze" in ended.stderr) == env.startswith("PointMaze")


def test_every_environment_of_the_maze_package_is_found_by_its_id() -> None:
    import gymnasium as gym
    import gymnasium_robotics

    from rollout_workers import env_ids

    gym.register_envs(gymnasium_robotics)
    theirs = [name for name, spec in gym.registry.items() if str(spec.entry_point).startswith("gymnasium_robotics.")]
    source = Path(str(gymnasium_robotics.__file__))
    assert len(theirs) > 200 and [name for name in theirs if not env_ids._resembles_one_of(name, source)] == []


def test_glfw_is_whole_for_whoever_draws_a_window() -> None:
    script = (
        "import sys, rollout_workers, mujoco\n"
        "assert 'cffi' not in sys.modules\n"
        "import glfw\n"
        "from glfw import init\n"
        "assert glfw.get_version() >= (3, 3) and init is glfw.init and sys.modules['glfw'].init is init"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert ended.returncode == 0, ended.stderr
