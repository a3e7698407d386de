"""What may be missing on a machine: programs and schemas. A test that needs them is skipped without them, and says what to install.

`.ci/run` installs all of the programs, so that nothing is skipped there.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

DEPLOY, PROMETHEUS = "pip install '.[deploy]'", "Debian's package prometheus"


def program(name: str, source: str = DEPLOY) -> str:
    """The path of a program: the one that pip installed beside this Python, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed ({source})")
    return found


def schemas(folder: str) -> Path:
    """A folder of schemas that are not part of the project, inside of the one that DRAWBRIDGE_SCHEMAS names."""
    given = os.environ.get("DRAWBRIDGE_SCHEMAS")
    if not given:
        pytest.skip("skipped: no schemas (DRAWBRIDGE_SCHEMAS names no folder)")
    return Path(given) / folder
