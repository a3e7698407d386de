"""2,000 random bad inputs: every command succeeds or says one sentence and exits with 1 or 2; see benchmarks/fuzz.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz

CASES = 2_000


def test_no_setting_no_edit_and_no_damaged_file_brings_a_traceback_or_leaves_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))  # given back afterwards
    counts, wrong = fuzz(range(CASES), 0, tmp_path)
    assert not wrong, "\n".join(wrong[:5])
    for kind in (
        "settings",
        "edited",
        "damaged",
        "dataset",
        "odd",
        "lived",
        "resumed",
    ):  # each kind was refused, and each was not
        assert counts[f"{kind}, exit 0"] and counts[f"{kind}, exit 2"], counts
