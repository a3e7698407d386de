"""What every test has: one torch thread, no Ray authentication, this folder on the path of the processes it starts."""

from __future__ import annotations

import os
from pathlib import Path

HERE = Path(__file__).resolve().parent

for name, value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}.items():
    os.environ.setdefault(name, value)
if str(HERE) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):  # broken_envs:Raises-v0 in workers too
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH", "")]))
