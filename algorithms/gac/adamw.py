"""The name under which GAC knows the flat Adam whose weight decay it sets."""

from __future__ import annotations

from algorithms.flat import FlatAdam

FlatAdamW = FlatAdam
