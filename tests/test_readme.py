"""What README.md, CONTRIBUTING.md and docs/ say exists does: commands, flags and settings, files, tests, links. No command is run."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from algorithms import ALGORITHMS
from algorithms.actor_critic import ActorCritic
from benchmarks import demo_gac
from cluster.cli import _parser
from cluster.commands.train import resolve
from cluster.config import flatten, make_preset

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIG = make_preset("softgac", "cpu")
# docs/softgac.md names methods of an agent, too.
SETTINGS = {key for name in ALGORITHMS for key in flatten(make_preset(name, "cpu"))} | {
    f"agent.{name}" for name in dir(ActorCritic)
}
COMPONENTS = [
    field.name for field in dataclasses.fields(CONFIG) if dataclasses.is_dataclass(getattr(CONFIG, field.name))
]
TARGETS = set(re.search(r"\.PHONY: (.*)", (ROOT / "Makefile").read_text())[1].split())  # type: ignore[index]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


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
    """The arguments of every command line of ours in a page's code blocks, and of `make train` with its ARGS.

    A line that begins with a quotation mark is of a file and quotes a command at most; one that begins with "from" is Python.
    """
    lines = "\n".join(line for line in code_lines(page) if not line.lstrip().startswith(('"', "from ")))
    found = re.findall(r"(?m)^.*?(?:\bdrawbridge|-m cluster) ([a-z][a-z-]* .*|[a-z][a-z-]*$)", lines)
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
            arguments.env = (
                arguments.env or "FixedGoal/PointMaze_UMaze-v3"
            )  # else that of a dataset, which may be absent
            arguments.env_kwargs = arguments.env_kwargs or "{}"
            arguments.config = None  # a file of the reader's
            resolve(arguments)  # every --set too
        assert {pair.partition("=")[0] for pair in getattr(arguments, "set", [])} <= SETTINGS


def test_the_readme_shows_every_command() -> None:
    assert {words[0] for words in commands(README)} == set(choices_of(_parser()))


def choices_of(parser: argparse.ArgumentParser) -> list[str]:
    (subcommands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return list(subcommands.choices)


def test_the_demonstration_of_gac_is_made_of_commands_there_are(tmp_path: Path) -> None:
    options = demo_gac.parse(["--out", str(tmp_path), "--stages", "2"])
    for step in demo_gac.plan(options):
        _parser().parse_args(step.words)
    for page in PAGES:
        for flags in re.findall(r"make train-gac ARGS='(.*?)'", page.read_text()):
            demo_gac.parse(shlex.split(flags))


def test_the_constants_of_gac_are_those_of_its_presets() -> None:
    rows = re.findall(
        r"(?m)^\| `(agent\.\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \| [^|]+ \|$", (ROOT / "docs" / "gac.md").read_text()
    )
    presets = [flatten(make_preset("gac", name)) for name in ("cpu", "linear", "paper")]
    for key, *stated in rows:
        assert stated == [str(preset[key][0]) for preset in presets], key
    differing = {key for key in presets[0] if key.startswith("agent.") and len({str(p[key][0]) for p in presets}) > 1}
    assert differing <= {key for key, *_ in rows}


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
    outside = {"kuberay/rayjobs.yaml", "diagnosis.txt"}  # of a folder that the reader brings, and of a run's
    assert not set(missing) - outside, f"{page.name} names {missing}"


@every_page
def test_every_name_shown_with_its_file_is_defined_there(page: Path) -> None:
    for name, listed in re.findall(r"`([\w/]+\.py): ([\w., ]+)`", page.read_text()):
        (path,) = (base / name for base in (ROOT, ROOT / "algorithms") if (base / name).exists())
        for word in listed.split(", "):
            assert re.search(rf"(?m)\b(def|class) {word.split('.')[-1]}\b", path.read_text()), f"{name} has no {word}"


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page in links."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_heading_linked_to_exists(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s:]*)#([^)]+)\)", page.read_text()):
        assert anchor in anchors(page.parent / link if link else page), f"{page.name} links to {link}#{anchor}"


@every_page
def test_prose_is_wrapped(page: Path) -> None:
    """At 100 characters; a long command in backticks may stand out."""
    prose = [line for line in page.read_text().split("\n") if not line.startswith(("|", "    ", "```"))]
    assert [line for line in prose if len(line) > 120] == []


def test_the_readme_is_short_and_has_nothing_left_to_fill_in() -> None:
    text = README.read_text()
    assert len(text.splitlines()) < 150
    assert not re.search(r"\b[A-Z]+_HERE\b|TODO|TBD", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_set_takes_one_setting_in_flags_that_prose_shows(page: Path) -> None:
    shown = re.findall(r"`(--[^`]+)`", page.read_text())
    assert not [words for words in shown if re.search(r"--set \S+=\S+ [a-z_.]+=", words)]
