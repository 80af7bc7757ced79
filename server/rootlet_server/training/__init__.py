"""Full training on the server: a base by backpropagation at scale, and what goes back into it."""

from rootlet_server.training.config import (
    CentralPrivacy,
    EngineConfig,
    FullTrainingConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from rootlet_server.training.data import Arrays, FromDataset, TrainingData
from rootlet_server.training.trained_base import TrainedBase, train

__all__ = [
    "Arrays",
    "CentralPrivacy",
    "EngineConfig",
    "FromDataset",
    "FullTrainingConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "TrainedBase",
    "TrainingData",
    "train",
]
