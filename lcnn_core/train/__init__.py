"""Training: the published objective and schedules, one loop that emits events, evaluation."""

from lcnn_core.train.evaluation import Accuracy, evaluate
from lcnn_core.train.events import BatchFinished, EpochFinished, Event, Listener, TrainingFinished, TrainingStarted
from lcnn_core.train.loop import OPTIMIZERS, Controller, TrainConfig, TrainResult, train
from lcnn_core.train.objective import CrossEntropy, Distillation, Objective, l1_penalty
from lcnn_core.train.schedule import SCHEDULES, Schedule
from lcnn_core.train.zeros import keep_zeros

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Accuracy",
    "BatchFinished",
    "Controller",
    "CrossEntropy",
    "Distillation",
    "EpochFinished",
    "Event",
    "Listener",
    "Objective",
    "Schedule",
    "TrainConfig",
    "TrainResult",
    "TrainingFinished",
    "TrainingStarted",
    "evaluate",
    "keep_zeros",
    "l1_penalty",
    "train",
]
