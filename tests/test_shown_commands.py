"""Commands of other programs that the pages and `deploy/` show: Ray's own parser and kubectl's know their words; some are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from at_hand import program
from ray.scripts.scripts import cli
from test_readme import PAGES, ROOT, code_lines

DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "deploy.md"
SHOWN = {path: [line.strip() for line in code_lines(path)] for path in PAGES} | {
    DEPLOY / name: [line.removeprefix("#") for line in (DEPLOY / name).read_text().splitlines()]
    for name in ("kustomization.yaml", "kubernetes/prometheusrule.sh", "cloud/aws.yaml")
}


def of(name: str) -> list[list[str]]:
    """The words after ``name`` in every command line that is shown: alone, after variables, in a pipe, in `$(...)`, after `&&`."""
    begins = rf"(?:^|[|&(])\s*(?:- )?(?:[A-Z_]+=\S+ )*{name} ([^|&)>]*)"
    return [
        shlex.split(words, comments=True)
        for lines in SHOWN.values()
        for line in lines
        for words in re.findall(begins, line)
    ]


def parsed(command: click.Command, words: list[str]) -> click.Context:
    """What Ray's own parser makes of the words after ``ray``; nothing is run."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, click.Group):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None
        return parsed(inner, rest)
    return context


def test_ray_knows_every_command_that_is_shown() -> None:
    cloud = yaml.safe_load((DEPLOY / "cloud" / "aws.yaml").read_text())
    starts = [*cloud["head_start_ray_commands"], *cloud["worker_start_ray_commands"]]
    shown = of("ray") + [shlex.split(line)[shlex.split(line).index("ray") + 1 :] for line in starts]
    assert {words[0] for words in shown} >= {"job", "up", "start", "get-auth-token"} and len(shown) >= 8
    for words in shown:
        parsed(cli, words)
    for page in PAGES:
        for name in re.findall(r"`ray ([a-z-]+)", page.read_text()):
            assert name in cli.commands, f"{page.name} names `ray {name}`"
    with pytest.raises(click.NoSuchOption):
        parsed(cli, ["start", "--heads"])


def test_ray_knows_the_words_of_the_slurm_job() -> None:
    """symmetric-run hands what it does not know to `ray start`, on the head and on the other nodes."""
    script = (DEPLOY / "slurm" / "train.sbatch").read_text().replace("\\\n", " ")
    (words,) = re.findall(r"\bray (symmetric-run .*?) -- ", script)
    words = words.replace('"$address"', "node:20000").replace('"$SLURM_NNODES"', "3")
    given = parsed(cli, shlex.split(words.replace('"$SLURM_CPUS_ON_NODE"', "4"))).params
    assert (given["address"], given["min_nodes"]) == ("node:20000", 3)
    for role in (["--head", "--port=20000"], ["--address", "node:20000", "--block"]):
        started = parsed(cli, ["start", *role, *given["ray_args_and_entrypoint"]]).params
        assert (started["num_cpus"], started["disable_usage_stats"]) == (4, True)
    (name, seconds) = re.findall(r"(RAY_SYMMETRIC_RUN_\w+)=(\d+)", script)[0]
    asked = "from ray.scripts.symmetric_run import CLUSTER_WAIT_TIMEOUT as limit; print(limit)"
    answer = subprocess.run(
        [sys.executable, "-c", asked], env={**os.environ, name: seconds}, capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.strip() == seconds == "300"


def test_kubectl_knows_every_command_that_is_shown() -> None:
    shown = of("kubectl")
    assert {words[0] for words in shown} >= {"apply", "exec", "port-forward", "get"}
    for words in [*shown, ["apply", "--kustomise", "deploy"]]:
        own = words[: words.index("--")] if "--" in words else words
        told = subprocess.run([program("kubectl"), *own, "--help"], capture_output=True, text=True, timeout=60)
        assert (told.returncode == 0) == ("--kustomise" not in words), f"kubectl {words}: {told.stderr}"


def test_the_token_is_made_by_the_command_that_is_shown_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    commands = re.findall(r"\(umask 077 && ray get-auth-token[^)]*\)", PAGE.read_text())
    assert len(commands) == PAGE.read_text().count("get-auth-token --generate") >= 2 and len(set(commands)) == 1
    for path in SHOWN:
        assert all(commands[0] in line for line in path.read_text().splitlines() if "get-auth-token" in line), path
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    variables |= {"HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    token, made = tmp_path / ".ray" / "auth_token", []
    for _ in range(2):  # the second time it is there
        told = subprocess.run(commands[0], shell=True, env=variables, capture_output=True, text=True, timeout=60)
        assert told.returncode == 0 and told.stdout == "", told.stderr
        made.append(token.read_text())
        assert token.stat().st_mode & 0o77 == token.parent.stat().st_mode & 0o77 == 0
    assert made[0] == made[1] and len(made[0]) == 64
    mounted = yaml.safe_load((DEPLOY / "cloud" / "aws.yaml").read_text())["file_mounts"]
    assert mounted == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_before_every_job_that_is_submitted_the_tree_is_looked_at() -> None:
    """Ray refuses a tree that is too large with a bare 413."""
    blocks = [block for block in re.split(r"\n(?! {4}|\n)", PAGE.read_text()) if "ray job submit" in block]
    assert len(blocks) >= 2
    for block in blocks:
        assert re.search(r"(?m)^ +drawbridge doctor\b.*\n(?:.*\n)*? +ray job submit", block), block
