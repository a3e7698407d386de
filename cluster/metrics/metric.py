"""What is said of one quantity that a run reports; catalogue.py lists them all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

Line = Mapping[str, Any]  # one metrics record, or that and the facts of its run
Kind = Literal["counter", "gauge"]
Keys = Mapping[str, tuple[str, ...]]  # key of a metrics record -> the values of its series' labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One quantity.

    Attributes:
        series: Prometheus name without ``drawbridge_`` and ``_total``; "" for a quantity that is not exported.
        keys: the keys of a metrics record that hold it. A key that ends in ``*`` stands for every key of that beginning; a
            label's value ``*`` is the rest of the key.
        labels: names of the series' own labels; run, role and shard come first in every series.
        window: records hold the sum since the previous record; the exported counter adds them up.
        resumed: a resumed run continues from it, so a damaged value must not be used; other counts begin again from 0.
        charts: title of the chart that the report draws of a key.
        facts: its one sample has the value 1; its labels say what the run is and does.
    """

    series: str
    kind: Kind
    unit: str
    help: str
    keys: Keys
    labels: tuple[str, ...] = ()
    window: bool = False
    resumed: bool = False
    charts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: bool = False

    @property
    def full_name(self) -> str:
        return f"drawbridge_{self.series}{'_total' if self.kind == 'counter' else ''}"

    def match(self, key: str) -> tuple[str, ...] | None:
        """The values of the labels for ``key``; None if the key is of another quantity."""
        if key in self.keys:
            return self.keys[key]
        for pattern, values in self.keys.items():
            if pattern.endswith("*") and key.startswith(pattern[:-1]):
                return tuple(key.removeprefix(pattern[:-1]) if value == "*" else value for value in values)
        return None

    def read(self, line: Line) -> Iterator[tuple[tuple[str, ...], float]]:
        """(values of the labels, value) of every sample in a record."""
        if self.facts:
            if all(label in line for label in self.labels):
                yield tuple(str(line[label]) for label in self.labels), 1.0
            return
        for key, value in line.items():
            labels = self.match(key)
            if labels is not None:
                yield labels, value


def plain(
    kind: Kind,
    series: str,
    unit: str,
    key: str,
    help: str,
    *,
    chart: str = "",
    resumed: bool = False,
    window: bool = False,
) -> Metric:
    """A quantity with one key and no labels of its own."""
    charts = {key: chart} if chart else {}
    return Metric(
        series=series, kind=kind, unit=unit, help=help, keys={key: ()}, resumed=resumed, window=window, charts=charts
    )
