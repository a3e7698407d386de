"""What README.md and docs/ say exists does: commands, flags and settings, files, tests, links. No command is run."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from algorithms.actor_critic import ActorCritic
from cluster.cli import _parser, resolve
from cluster.config import flatten, make_preset

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
CONFIG = make_preset("softgac", "cpu")
# docs/softgac.md names methods of an agent, too.
SETTINGS = {*flatten(CONFIG), *(f"agent.{name}" for name in dir(ActorCritic))}
COMPONENTS = [
    field.name for field in dataclasses.fields(CONFIG) if dataclasses.is_dataclass(getattr(CONFIG, field.name))
]
TARGETS = set(re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split())  # type: ignore[index]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def code_lines(page: Path) -> list[str]:
    """The lines of a page's code blocks, fenced or indented; a line that ends with a backslash is joined to the next."""
    text = page.read_text().replace("\\\n", " ")
    fenced = [
        line
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.split("\n")
    ]
    return fenced + [line for line in text.split("\n") if line.startswith("    ")]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every command line of ours in a page's code blocks, and of `make train` with its ARGS."""
    found = re.findall(r"(?m)^.*?(?:\bdrawbridge|-m cluster) ([a-z]+ .*|[a-z]+$)", "\n".join(code_lines(page)))
    found += [
        "train softgac --env HalfCheetah-v5 " + flags
        for flags in re.findall(r"make train ARGS='(.*?)'", page.read_text())
    ]
    return [shlex.split(words, comments=True) for words in found]


def in_backticks(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", text)


@every_page
def test_every_command_shown_is_understood_with_its_flags_and_settings(page: Path) -> None:
    for words in commands(page):
        arguments = _parser().parse_args(words)
        if words[0] == "train":
            resolve(arguments)  # every --set too


def test_the_readme_shows_every_command() -> None:
    commands_there_are = {"train", "resume", "evaluate", "scale", "status", "report", "presets", "config"}
    assert {words[0] for words in commands(README)} == commands_there_are


@every_page
def test_every_make_target_shown_exists(page: Path) -> None:
    shown = [line.strip() for line in code_lines(page)] + in_backticks(page)
    assert {line.split()[1] for line in shown if re.match(r"make \w", line)} <= TARGETS


@every_page
def test_every_setting_named_exists(page: Path) -> None:
    for word in in_backticks(page):
        for key in re.findall(rf"(?:^|[ =])((?:{'|'.join(COMPONENTS)})\.\w+)(?=$|[ =,(])", word):
            if not key.endswith((".py", ".md", ".jsonl", ".json")):
                assert key in SETTINGS, f"{page.name} names {key}"


@every_page
def test_every_file_test_and_link_named_exists(page: Path) -> None:
    bases = (ROOT, ROOT / "algorithms", ROOT / "tests", ROOT / "deploy", page.parent)
    named = [
        match
        for word in in_backticks(page)
        for match in re.findall(r"^(?:python )?([\w./*-]+\.(?:py|md|toml|txt|yaml|yml))\b", word)
    ]
    named += [
        word
        for word in in_backticks(page)
        if re.fullmatch(r"(algorithms|replay|rollout_workers|learners|cluster|deploy|benchmarks|docs)/", word)
    ]
    missing = [name for name in named if not any(list(base.glob(name)) for base in bases)]
    missing += [link for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()) if not (page.parent / link).exists()]
    outside = {"kuberay/rayjobs.yaml"}  # of a folder that the reader brings
    assert not set(missing) - outside, f"{page.name} names {missing}"


def test_the_readme_is_short_and_has_nothing_left_to_fill_in() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 200
    assert not re.search(r"\b[A-Z]+_HERE\b|TODO|TBD", text)
