"""SoftGAC, its controls and its rivals behind RLlib's Algorithm, each with its configuration."""

from __future__ import annotations

from cluster.rllib.algorithm import FleetAlgorithm
from cluster.rllib.config import FleetConfig


class SoftGAC(FleetAlgorithm):
    """SoftGAC behind RLlib's Algorithm."""


class SoftGACConfig(FleetConfig):
    """RLlib's configuration of SoftGAC."""

    algorithm, face = "softgac", SoftGAC


class SAC(FleetAlgorithm):
    """This project's SAC, a light control, behind RLlib's Algorithm."""


class SACConfig(FleetConfig):
    """RLlib's configuration of this project's SAC."""

    algorithm, face = "sac", SAC


class CrossQSAC(FleetAlgorithm):
    """CrossQ-SAC, the control of SoftGAC's paper, behind RLlib's Algorithm."""


class CrossQSACConfig(FleetConfig):
    """RLlib's configuration of CrossQ-SAC."""

    algorithm, face = "crossq-sac", CrossQSAC


CONFIGS: tuple[type[FleetConfig], ...] = (SoftGACConfig, SACConfig, CrossQSACConfig)

for config in CONFIGS:
    config.face.config_class = config
