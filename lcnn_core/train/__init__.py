"""Training: the published objective and schedules, one loop that emits events, evaluation."""

from lcnn_core.train.config import OPTIMIZERS, TrainConfig
from lcnn_core.train.distributed import Processes, join_processes
from lcnn_core.train.evaluation import Accuracy, Evaluation, evaluate, evaluate_classes
from lcnn_core.train.events import (
    BatchFinished,
    EpochFinished,
    Event,
    LayerDied,
    Listener,
    Preparing,
    StateReached,
    TrainingFinished,
    TrainingStarted,
)
from lcnn_core.train.loop import Controller, TrainResult, train
from lcnn_core.train.objective import CrossEntropy, Distillation, Objective, l1_penalty
from lcnn_core.train.recorder import Recorder, RunFiles, RunLog, open_log
from lcnn_core.train.schedule import SCHEDULES, Schedule, find_schedule
from lcnn_core.train.starting import Matched, load_matching_, redraw_coefficients_, sparsify_
from lcnn_core.train.state import load_state, save_state
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
    "Evaluation",
    "Event",
    "LayerDied",
    "Listener",
    "Matched",
    "Objective",
    "Preparing",
    "Processes",
    "Recorder",
    "RunFiles",
    "RunLog",
    "Schedule",
    "StateReached",
    "TrainConfig",
    "TrainResult",
    "TrainingFinished",
    "TrainingStarted",
    "evaluate",
    "evaluate_classes",
    "find_schedule",
    "join_processes",
    "keep_zeros",
    "l1_penalty",
    "load_matching_",
    "load_state",
    "open_log",
    "redraw_coefficients_",
    "save_state",
    "sparsify_",
    "train",
]
