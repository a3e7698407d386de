"""Experience in. MuJoCo imports glfw, which draws windows, wherever it is imported: here that waits until a window is drawn, and
what it says without a display is kept from people who draw none."""

import importlib
import importlib.util
import sys
import warnings
from typing import Any


def _import_when_used(name: str) -> None:
    """Puts a module without content in the place of ``name``, which is imported when somebody asks for something in it."""
    found = importlib.util.find_spec(name)
    if found is None or name in sys.modules:
        return
    stand_in = importlib.util.module_from_spec(found)

    def get(attribute: str) -> Any:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]
        return getattr(importlib.import_module(name), attribute)

    stand_in.__getattr__ = get  # type: ignore[method-assign]
    sys.modules[name] = stand_in


_import_when_used("glfw")
warnings.filterwarnings("ignore", "(?s).*DISPLAY environment variable is missing")
