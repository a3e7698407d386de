"""E simulations of one MuJoCo model: stepped in a plain loop, read as one matrix.

Measured against mujoco.batch (which cannot call mj_rnePostConstraint, so it cannot give contact forces), the loop is as
fast: what costs is Python's work for each environment, and here that is one assignment and one call.

Letters: E environments, A actuators, S gathered columns, I numbers of MuJoCo's integration state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import mujoco
import numpy as np

_INTEGRATION = int(mujoco.mjtState.mjSTATE_INTEGRATION)


class MujocoStack:
    """E MjData of ``model``, each advanced by ``frame_skip`` substeps a step.

    Args:
        model: shared by all. Where it has one kinematic tree, constraint islands are switched off in it: there is
            nothing to split, so it is bit-identical, and 3 to 8 % faster. With several trees it would not be.
        frame_skip: mj_step calls in one step.
        num_envs: E.
        contact_forces: call mj_rnePostConstraint after each step, which fills cfrc_ext.
        columns: for one MjData, the 1-D views of float64 that make up its row of ``gather``.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        *,
        frame_skip: int,
        num_envs: int,
        contact_forces: bool,
        columns: Callable[[mujoco.MjData], list[np.ndarray]],
    ) -> None:
        if model.ntree == 1:
            model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_ISLAND)
        self.model = model
        self.datas = [mujoco.MjData(model) for _ in range(num_envs)]
        self._frame_skip = frame_skip
        self._contact_forces = contact_forces
        self._controlled = [(data, data.ctrl) for data in self.datas]
        self._columns = [view for data in self.datas for view in columns(data)]
        self._warnings = [data.warning.number for data in self.datas]

    def step(self, ctrl_EA: np.ndarray, indices: Iterable[int] | None = None) -> None:
        """Advances all simulations, or only those of ``indices`` (rows of ``ctrl_EA`` stay E)."""
        model, frame_skip, step = self.model, self._frame_skip, mujoco.mj_step
        controlled, rows = self._controlled, ctrl_EA
        if indices is not None:
            chosen = list(indices)
            controlled, rows = [controlled[i] for i in chosen], ctrl_EA[chosen]
        if self._contact_forces:
            after = mujoco.mj_rnePostConstraint
            for (data, ctrl), row in zip(controlled, rows):
                ctrl[:] = row
                step(model, data, frame_skip)
                after(model, data)
        else:
            for (data, ctrl), row in zip(controlled, rows):
                ctrl[:] = row
                step(model, data, frame_skip)

    def gather(self) -> np.ndarray:
        """The chosen columns of every simulation, a new float64 array (E, S)."""
        return np.concatenate(self._columns).reshape(len(self.datas), -1)

    def start(self, index: int, qpos: np.ndarray, qvel: np.ndarray) -> None:
        """Resets one simulation and puts it at rest time in this state, with everything derived from it."""
        data = self.datas[index]
        mujoco.mj_resetData(self.model, data)
        data.qpos[:] = qpos
        data.qvel[:] = qvel
        mujoco.mj_forward(self.model, data)

    def unstable(self) -> np.ndarray | None:
        """Which simulations MuJoCo found non-finite or huge since their start; None when there is none.

        MuJoCo answers such a state by silently putting the simulation back to the model's initial state, so what follows
        is finite and wrong.
        """
        numbers = np.concatenate(self._warnings)
        if not numbers.any():
            return None
        mask_E = numbers.reshape(len(self.datas), -1)[:, _BAD].any(axis=1)
        return mask_E if mask_E.any() else None

    def get_state(self) -> np.ndarray:
        """MuJoCo's integration state of every simulation, float64 (E, I)."""
        state_EI = np.empty((len(self.datas), mujoco.mj_stateSize(self.model, _INTEGRATION)))
        for data, row in zip(self.datas, state_EI):
            mujoco.mj_getState(self.model, data, row, _INTEGRATION)
        return state_EI

    def set_state(self, state_EI: np.ndarray) -> None:
        """Takes what ``get_state`` gave; derived quantities are those of the next step, not recomputed here."""
        for data, row in zip(self.datas, np.ascontiguousarray(state_EI, dtype=np.float64)):
            mujoco.mj_resetData(self.model, data)
            mujoco.mj_setState(self.model, data, row, _INTEGRATION)


_BAD = [
    int(warning)
    for warning in (
        mujoco.mjtWarning.mjWARN_BADQPOS,
        mujoco.mjtWarning.mjWARN_BADQVEL,
        mujoco.mjtWarning.mjWARN_BADQACC,
    )
]
