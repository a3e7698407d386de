"""Tables in Markdown, and pages whose tables are made by a command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

BEGIN, END = "<!-- table {name} -->", "<!-- end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are ready to print."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_seeds(values: Sequence[float | None], digits: int = 1) -> str:
    """The mean, and every seed's value behind it; "-" stands for what is not defined."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return "-"
    mean = f"{np.mean(known):.{digits}f}"
    if len(values) == 1:
        return mean
    shown = ("-" if value is None or not np.isfinite(value) else f"{value:.{digits}f}" for value in values)
    return f"{mean} ({' / '.join(shown)})"


def ranged(text: str) -> str:
    """``text`` with the lowest and the highest seed in the place of every seed's value."""

    def ends(found: re.Match[str]) -> str:
        shown = [part for part in found[1].split(" / ") if part != "-"]
        return f"({min(shown, key=float)} to {max(shown, key=float)})"

    return re.sub(r"\((-?[\d.]+(?: / (?:-|-?[\d.]+))+)\)", ends, text)


def pivoted(text: str, rows: Sequence[int], column: int, cell: str) -> str:
    """A smaller table of the means in ``text``, without each seed's value.

    Args:
        text: a table of ``table``.
        rows: numbers of the columns whose cells name a row of the new table.
        column: number of the column whose cells head the new columns.
        cell: format of a new cell from the old columns' means, for example "{2} -> {3}"; the last old row wins.
    """
    _, _, *lines = (
        [re.sub(r" \([^)]*\)", "", part).strip() for part in line.strip("| ").split(" |")] for line in text.splitlines()
    )
    heads = list(dict.fromkeys(line[column] for line in lines))
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for line in lines:
        found.setdefault(tuple(line[at] for at in rows), {})[line[column]] = cell.format(*line)
    body = [[*names, *(cells.get(head, "") for head in heads)] for names, cells in found.items()]
    return table([*[""] * len(rows), *heads], body)


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with what stands between a table's marks replaced; a table without marks is a KeyError that names it."""
    for name, text in tables.items():
        begin = BEGIN.format(name=name)
        if page.count(begin) != 1:
            raise KeyError(
                f"the page has {page.count(begin)} marks {begin!r}, expected one: the table has no place; add it"
            )
        head, rest = page.split(begin)
        _, end, tail = rest.partition(END)
        if not end:
            raise KeyError(
                f"nothing ends the table {name}, expected {END!r} after it: the page's rest would be lost; add it"
            )
        page = f"{head}{begin}\n\n{text}\n\n{END}{tail}"
    return page
