"""Closing environments: whatever close() raises is reported, because the results exist by then."""

from __future__ import annotations

import warnings
from typing import Any


def close_or_warn(env: Any, env_id: str) -> None:
    """Closes one environment, or a vector of them; an exception of its own becomes a RuntimeWarning."""
    try:
        env.close()
    except Exception as error:
        warnings.warn(
            f"{env_id}: close() raised {type(error).__name__}: {error}; expected it to free the environment. Results are kept "
            "and the run continues, but what the environment holds may stay in use until this process ends; mend its "
            "close()",
            RuntimeWarning,
            stacklevel=2,
        )
