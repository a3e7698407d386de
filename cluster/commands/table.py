"""Tables in plain text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """A line each row: its ``left`` first columns flush left, the others flush right, by how wide a terminal shows their letters."""
    widths = [max(map(cell_len, column)) for column in zip(*rows)]
    return ["  ".join(_line(row, widths, left)).rstrip() for row in rows]


def _line(row: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    spaces = [" " * (width - cell_len(text)) for text, width in zip(row, widths)]
    return [text + space if at < left else space + text for at, (text, space) in enumerate(zip(row, spaces))]
