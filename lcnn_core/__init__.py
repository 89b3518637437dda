"""LCNN: lookup-based convolutional neural networks for PyTorch.

``import lcnn_core`` loads nothing else: every public name is fetched from its room when it is first used (PEP 562).
``lcnn_core.functional`` holds the paper's equations as pure functions.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

_ROOMS = {
    "checkpoint": "FORMATS Checkpoint Normalization load save",
    "checkpoint.opening": "INPUTS Opened open_model",
    "checkpoint.zoo": "build_named channels_option is_architecture",
    "compress": """FINE_TUNING METHODS ConvertedConfig FromDenseConfig LayerChoice LowRankConfig NarrowConfig
        PostTrainingConfig PostTrainingReport calibration_images check_dense compress_from_dense convert_and_train
        convert_to_budget train_low_rank train_narrow""",
    "convert": "ConversionReport ConvertedLayer LeftLayer convert convert_",
    "cores": "usable_cores",
    "counting": """FORMULAS LayerCount conv_macs count_layer counted_speedup dictionary_macs linear_macs lookup_macs
        matmul_macs output_positions padded_positions total_macs""",
    "data": "DATASETS DataOptions Dataset Images Split load_dataset",
    "describe": "describe",
    "engine": "CompiledModel Plan PlanStep compile",
    "errors": "CheckpointError ConfigError DataError LcnnError ShapeError TrainingError UnsupportedLayerError",
    "factors": "svd_factors",
    "files": "atomic_write",
    "health": "check_health",
    "layers": "LAYERS LookupConv2d LookupLayer LookupLinear PackedLookupConv2d PackedLookupLayer PackedLookupLinear",
    "layers.operators": "handles",
    "layers.structure": "pack set_lookup_layers_",
    "models": "ALIASES MODELS ModelBuilder build dense_twin input_shape_of",
    "onnx": "export_onnx",
    "plain": "PlainLayer cheaper_forms plain_layers",
    "spec": "Finding LayerSpec LookupConfig LookupSpec ModelSpec Uncounted",
    "train": """OPTIMIZERS SCHEDULES Accuracy BatchFinished CrossEntropy Distillation EpochFinished Evaluation Event
        LayerDied Listener Matched Preparing Processes Recorder RunFiles RunLog StateReached TrainConfig TrainResult
        TrainingFinished TrainingStarted evaluate evaluate_classes find_schedule join_processes keep_zeros l1_penalty
        load_matching_ load_state open_log redraw_coefficients_ save_state sparsify_ train""",
    "transfer": """Estimate Family FewIterationConfig FewIterationResult FewIterationSummary FewShotConfig
        FewShotResult FewShotSummary carry_dictionaries_ estimate few_iteration few_shot freeze_dictionaries_
        summarize_few_iteration summarize_few_shot""",
}
"""The public names by room. To add one: a word here and a line in the imports for type checkers below."""

_HOME = {name: room for room, names in _ROOMS.items() for name in names.split()}

_MODULES = ("checkpoint", "engine", "functional", "models")
"""Rooms that are public as a whole."""

__all__ = sorted([*_MODULES, *_HOME])


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _HOME:
        return import_module(f"{__name__}.{name}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


class _Package(ModuleType):
    """Keeps a public function that is named as its room (``describe``, ``train``) from being hidden by the room itself.

    The import system binds every imported submodule as an attribute of its package; without this,
    ``from lcnn_core import describe`` would give the function or the module, depending on what was imported before.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

if TYPE_CHECKING:
    from lcnn_core import checkpoint as checkpoint
    from lcnn_core import engine as engine
    from lcnn_core import functional as functional
    from lcnn_core import models as models
    from lcnn_core.checkpoint import FORMATS as FORMATS
    from lcnn_core.checkpoint import Checkpoint as Checkpoint
    from lcnn_core.checkpoint import Normalization as Normalization
    from lcnn_core.checkpoint import load as load
    from lcnn_core.checkpoint import save as save
    from lcnn_core.checkpoint.opening import INPUTS as INPUTS
    from lcnn_core.checkpoint.opening import Opened as Opened
    from lcnn_core.checkpoint.opening import open_model as open_model
    from lcnn_core.checkpoint.zoo import build_named as build_named
    from lcnn_core.checkpoint.zoo import channels_option as channels_option
    from lcnn_core.checkpoint.zoo import is_architecture as is_architecture
    from lcnn_core.compress import FINE_TUNING as FINE_TUNING
    from lcnn_core.compress import METHODS as METHODS
    from lcnn_core.compress import ConvertedConfig as ConvertedConfig
    from lcnn_core.compress import FromDenseConfig as FromDenseConfig
    from lcnn_core.compress import LayerChoice as LayerChoice
    from lcnn_core.compress import LowRankConfig as LowRankConfig
    from lcnn_core.compress import NarrowConfig as NarrowConfig
    from lcnn_core.compress import PostTrainingConfig as PostTrainingConfig
    from lcnn_core.compress import PostTrainingReport as PostTrainingReport
    from lcnn_core.compress import calibration_images as calibration_images
    from lcnn_core.compress import check_dense as check_dense
    from lcnn_core.compress import compress_from_dense as compress_from_dense
    from lcnn_core.compress import convert_and_train as convert_and_train
    from lcnn_core.compress import convert_to_budget as convert_to_budget
    from lcnn_core.compress import train_low_rank as train_low_rank
    from lcnn_core.compress import train_narrow as train_narrow
    from lcnn_core.convert import ConversionReport as ConversionReport
    from lcnn_core.convert import ConvertedLayer as ConvertedLayer
    from lcnn_core.convert import LeftLayer as LeftLayer
    from lcnn_core.convert import convert as convert
    from lcnn_core.convert import convert_ as convert_
    from lcnn_core.cores import usable_cores as usable_cores
    from lcnn_core.counting import FORMULAS as FORMULAS
    from lcnn_core.counting import LayerCount as LayerCount
    from lcnn_core.counting import conv_macs as conv_macs
    from lcnn_core.counting import count_layer as count_layer
    from lcnn_core.counting import counted_speedup as counted_speedup
    from lcnn_core.counting import dictionary_macs as dictionary_macs
    from lcnn_core.counting import linear_macs as linear_macs
    from lcnn_core.counting import lookup_macs as lookup_macs
    from lcnn_core.counting import matmul_macs as matmul_macs
    from lcnn_core.counting import output_positions as output_positions
    from lcnn_core.counting import padded_positions as padded_positions
    from lcnn_core.counting import total_macs as total_macs
    from lcnn_core.data import DATASETS as DATASETS
    from lcnn_core.data import DataOptions as DataOptions
    from lcnn_core.data import Dataset as Dataset
    from lcnn_core.data import Images as Images
    from lcnn_core.data import Split as Split
    from lcnn_core.data import load_dataset as load_dataset
    from lcnn_core.describe import describe as describe
    from lcnn_core.engine import CompiledModel as CompiledModel
    from lcnn_core.engine import Plan as Plan
    from lcnn_core.engine import PlanStep as PlanStep
    from lcnn_core.engine import compile as compile
    from lcnn_core.errors import CheckpointError as CheckpointError
    from lcnn_core.errors import ConfigError as ConfigError
    from lcnn_core.errors import DataError as DataError
    from lcnn_core.errors import LcnnError as LcnnError
    from lcnn_core.errors import ShapeError as ShapeError
    from lcnn_core.errors import TrainingError as TrainingError
    from lcnn_core.errors import UnsupportedLayerError as UnsupportedLayerError
    from lcnn_core.factors import svd_factors as svd_factors
    from lcnn_core.files import atomic_write as atomic_write
    from lcnn_core.health import check_health as check_health
    from lcnn_core.layers import LAYERS as LAYERS
    from lcnn_core.layers import LookupConv2d as LookupConv2d
    from lcnn_core.layers import LookupLayer as LookupLayer
    from lcnn_core.layers import LookupLinear as LookupLinear
    from lcnn_core.layers import PackedLookupConv2d as PackedLookupConv2d
    from lcnn_core.layers import PackedLookupLayer as PackedLookupLayer
    from lcnn_core.layers import PackedLookupLinear as PackedLookupLinear
    from lcnn_core.layers.operators import handles as handles
    from lcnn_core.layers.structure import pack as pack
    from lcnn_core.layers.structure import set_lookup_layers_ as set_lookup_layers_
    from lcnn_core.models import ALIASES as ALIASES
    from lcnn_core.models import MODELS as MODELS
    from lcnn_core.models import ModelBuilder as ModelBuilder
    from lcnn_core.models import build as build
    from lcnn_core.models import dense_twin as dense_twin
    from lcnn_core.models import input_shape_of as input_shape_of
    from lcnn_core.onnx import export_onnx as export_onnx
    from lcnn_core.plain import PlainLayer as PlainLayer
    from lcnn_core.plain import cheaper_forms as cheaper_forms
    from lcnn_core.plain import plain_layers as plain_layers
    from lcnn_core.spec import Finding as Finding
    from lcnn_core.spec import LayerSpec as LayerSpec
    from lcnn_core.spec import LookupConfig as LookupConfig
    from lcnn_core.spec import LookupSpec as LookupSpec
    from lcnn_core.spec import ModelSpec as ModelSpec
    from lcnn_core.spec import Uncounted as Uncounted
    from lcnn_core.train import OPTIMIZERS as OPTIMIZERS
    from lcnn_core.train import SCHEDULES as SCHEDULES
    from lcnn_core.train import Accuracy as Accuracy
    from lcnn_core.train import BatchFinished as BatchFinished
    from lcnn_core.train import CrossEntropy as CrossEntropy
    from lcnn_core.train import Distillation as Distillation
    from lcnn_core.train import EpochFinished as EpochFinished
    from lcnn_core.train import Evaluation as Evaluation
    from lcnn_core.train import Event as Event
    from lcnn_core.train import LayerDied as LayerDied
    from lcnn_core.train import Listener as Listener
    from lcnn_core.train import Matched as Matched
    from lcnn_core.train import Preparing as Preparing
    from lcnn_core.train import Processes as Processes
    from lcnn_core.train import Recorder as Recorder
    from lcnn_core.train import RunFiles as RunFiles
    from lcnn_core.train import RunLog as RunLog
    from lcnn_core.train import StateReached as StateReached
    from lcnn_core.train import TrainConfig as TrainConfig
    from lcnn_core.train import TrainingFinished as TrainingFinished
    from lcnn_core.train import TrainingStarted as TrainingStarted
    from lcnn_core.train import TrainResult as TrainResult
    from lcnn_core.train import evaluate as evaluate
    from lcnn_core.train import evaluate_classes as evaluate_classes
    from lcnn_core.train import find_schedule as find_schedule
    from lcnn_core.train import join_processes as join_processes
    from lcnn_core.train import keep_zeros as keep_zeros
    from lcnn_core.train import l1_penalty as l1_penalty
    from lcnn_core.train import load_matching_ as load_matching_
    from lcnn_core.train import load_state as load_state
    from lcnn_core.train import open_log as open_log
    from lcnn_core.train import redraw_coefficients_ as redraw_coefficients_
    from lcnn_core.train import save_state as save_state
    from lcnn_core.train import sparsify_ as sparsify_
    from lcnn_core.train import train as train
    from lcnn_core.transfer import Estimate as Estimate
    from lcnn_core.transfer import Family as Family
    from lcnn_core.transfer import FewIterationConfig as FewIterationConfig
    from lcnn_core.transfer import FewIterationResult as FewIterationResult
    from lcnn_core.transfer import FewIterationSummary as FewIterationSummary
    from lcnn_core.transfer import FewShotConfig as FewShotConfig
    from lcnn_core.transfer import FewShotResult as FewShotResult
    from lcnn_core.transfer import FewShotSummary as FewShotSummary
    from lcnn_core.transfer import carry_dictionaries_ as carry_dictionaries_
    from lcnn_core.transfer import estimate as estimate
    from lcnn_core.transfer import few_iteration as few_iteration
    from lcnn_core.transfer import few_shot as few_shot
    from lcnn_core.transfer import freeze_dictionaries_ as freeze_dictionaries_
    from lcnn_core.transfer import summarize_few_iteration as summarize_few_iteration
    from lcnn_core.transfer import summarize_few_shot as summarize_few_shot
