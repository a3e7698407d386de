"""The RLlib face: ``SoftGACConfig`` and ``SoftGAC`` drive the fleet of this project where RLlib's own parts would run.

    config = SoftGACConfig().environment("HalfCheetah-v5").env_runners(num_env_runners=2)
    algo = config.build_algo()
    algo.train(), algo.evaluate(), algo.save_to_path(path), SoftGAC.from_checkpoint(path), tune.Tuner(SoftGAC, ...)

Used of RLlib: Algorithm, AlgorithmConfig (stable) with Trainable's setup, step, save_checkpoint, load_checkpoint and
cleanup. What touches the beta RLModule is in ``PolicyModule`` alone; nothing touches Learner, LearnerGroup or EnvRunner.
The fleet starts with the first call that needs it, works while ``train`` runs, and is held in between.
"""

import rollout_workers  # noqa: F401  before RLlib, which imports dm_control where it is installed, and with it glfw
from cluster.rllib.algorithm import FleetAlgorithm
from cluster.rllib.config import FleetConfig
from cluster.rllib.methods import (
    DIME,
    FLAC,
    QSM,
    QVPO,
    SAC,
    CrossQSAC,
    CrossQSACConfig,
    DIMEConfig,
    FLACConfig,
    FlowRL,
    FlowRLConfig,
    QSMConfig,
    QVPOConfig,
    SACConfig,
    SoftGAC,
    SoftGACConfig,
)  # fmt: skip
from cluster.rllib.module import PolicyModule

__all__ = [
    "DIME", "FLAC", "QSM", "QVPO", "SAC", "CrossQSAC", "CrossQSACConfig", "DIMEConfig", "FLACConfig", "FleetAlgorithm", "FleetConfig",
    "FlowRL", "FlowRLConfig", "PolicyModule", "QSMConfig", "QVPOConfig", "SACConfig", "SoftGAC", "SoftGACConfig",
]  # fmt: skip
