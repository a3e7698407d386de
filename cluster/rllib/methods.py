"""SoftGAC, its controls and its rivals behind RLlib's Algorithm, each with its configuration."""

from __future__ import annotations

from cluster.rllib.algorithm import FleetAlgorithm
from cluster.rllib.config import FleetConfig


class SoftGAC(FleetAlgorithm):
    """SoftGAC behind RLlib's Algorithm."""


class SoftGACConfig(FleetConfig):
    """RLlib's configuration of SoftGAC."""

    algorithm, face = "softgac", staticmethod(lambda: SoftGAC)


class SAC(FleetAlgorithm):
    """This project's SAC, a light control, behind RLlib's Algorithm."""


class SACConfig(FleetConfig):
    """RLlib's configuration of this project's SAC."""

    algorithm, face = "sac", staticmethod(lambda: SAC)


class CrossQSAC(FleetAlgorithm):
    """CrossQ-SAC, the control of SoftGAC's paper, behind RLlib's Algorithm."""


class CrossQSACConfig(FleetConfig):
    """RLlib's configuration of CrossQ-SAC."""

    algorithm, face = "crossq-sac", staticmethod(lambda: CrossQSAC)


class DIME(FleetAlgorithm):
    """DIME behind RLlib's Algorithm."""


class DIMEConfig(FleetConfig):
    """RLlib's configuration of DIME."""

    algorithm, face = "dime", staticmethod(lambda: DIME)


class FLAC(FleetAlgorithm):
    """FLAC behind RLlib's Algorithm."""


class FLACConfig(FleetConfig):
    """RLlib's configuration of FLAC."""

    algorithm, face = "flac", staticmethod(lambda: FLAC)


class FlowRL(FleetAlgorithm):
    """FlowRL behind RLlib's Algorithm."""


class FlowRLConfig(FleetConfig):
    """RLlib's configuration of FlowRL."""

    algorithm, face = "flowrl", staticmethod(lambda: FlowRL)


class QSM(FleetAlgorithm):
    """QSM behind RLlib's Algorithm."""


class QSMConfig(FleetConfig):
    """RLlib's configuration of QSM."""

    algorithm, face = "qsm", staticmethod(lambda: QSM)


class QVPO(FleetAlgorithm):
    """QVPO behind RLlib's Algorithm."""


class QVPOConfig(FleetConfig):
    """RLlib's configuration of QVPO."""

    algorithm, face = "qvpo", staticmethod(lambda: QVPO)


CONFIGS: tuple[type[FleetConfig], ...] = (
    SoftGACConfig, SACConfig, CrossQSACConfig, DIMEConfig, FLACConfig, FlowRLConfig, QSMConfig, QVPOConfig,
)  # fmt: skip

for config in CONFIGS:
    config.face().config_class = config
