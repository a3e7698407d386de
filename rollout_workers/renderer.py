"""Which of MuJoCo's off-screen renderers draws here; what draws at all asks this first."""

from __future__ import annotations

import os
import subprocess
import sys

PACKAGES = {"egl": "libegl1 libopengl0 libgl1", "osmesa": "libosmesa6 libgl1"}  # Debian and Ubuntu names
PROBE_TIMEOUT_S = 60.0
_PROBE = "import mujoco; context = mujoco.GLContext(64, 64); context.make_current(); context.free()"


class NoRenderer(RuntimeError):
    """No picture can be drawn on this machine."""


def find_gl() -> str:
    """The first of MuJoCo's off-screen renderers that starts here, "egl" or "osmesa"; tried in processes of their own.

    A process can load one of them only once, and a missing library may end it. Raises NoRenderer.
    """
    seen = []
    for name in PACKAGES:
        environment = {**os.environ, "MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        try:
            probe = subprocess.run(
                [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            seen.append(f"{name}: no answer in {PROBE_TIMEOUT_S:g} s")
            continue
        if probe.returncode == 0:
            return name
        lines = probe.stderr.strip().splitlines() or [f"ended with code {probe.returncode}"]
        seen.append(f"{name}: {lines[-1]}")
    install = " or ".join(f"`apt-get install {packages}` (for {name})" for name, packages in PACKAGES.items())
    raise NoRenderer(
        f"MuJoCo's off-screen renderers do not start here ({'; '.join(seen)}), expected one of them to: there is no "
        f"video; on Debian or Ubuntu {install}"
    )


def choose_gl() -> str:
    """Sets MUJOCO_GL for this process unless it is set; what is wrong with MuJoCo's renderers here, "" if nothing."""
    if "MUJOCO_GL" not in os.environ:
        try:
            os.environ["MUJOCO_GL"] = find_gl()
        except NoRenderer as error:  # not raised: an environment that is not MuJoCo's may still draw itself
            return str(error)
    return ""
