"""Every option of ``lcnn train`` reaches the run: each of these would fail if the option did nothing.

What the option then does is tested where it is done: tests/core/test_train_options.py, test_train.py, test_models.py,
test_data_files.py, test_compress_options.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from train_runs import lcnn

from lcnn_analyze.cli.train_job import Job, make_job
from lcnn_analyze.cli.train_options import OPTIONS
from lcnn_core import LookupLayer

RESNET, ALEXNET = {"model": "resnet-lcnn", "depth": 10}, {"model": "small-alexnet-lcnn"}
BUDGET = {"model": None, "from": "DENSE", "speedup": 5.0}
FILES = {"data": "fake:6x10", "image_size": 16, "workers": 0}

CASES: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "model": ("digits-resnet", {}),
    "depth": (18, RESNET),
    "shortcut": ("A", RESNET),
    "stem": ("small", RESNET),
    "widths": ("8,16,24", {}),
    "blocks": ("2", {}),
    "dropout": (0.25, ALEXNET),
    "num_classes": (12, {}),
    "data": ("fake:8x10", FILES),
    "image_size": (24, FILES),
    "resize": (40, FILES),
    "augment": ("none", FILES),
    "workers": (1, FILES),
    "unreadable_limit": (3, FILES),
    "from": ("DENSE", {"model": None}),
    "load": ("LOOKUP", {}),
    "initial_sparsity": ("0.5", {}),
    "reinit_coefficients": (True, {"load": "LOOKUP"}),
    "seed": (7, {}),
    "epochs": (3, {}),
    "batch_size": (32, {}),
    "batch_pieces": (2, {}),
    "batches_per_epoch": (5, {}),
    "optimizer": ("adam", {}),
    "schedule": ("resnet", {}),
    "lr": (0.02, {}),
    "lr_scale": (0.5, {}),
    "warmup": (2.0, {}),
    "momentum": (0.8, {}),
    "weight_decay": (0.01, {}),
    "clip_norm": (1.0, {}),
    "shift": (1, {}),
    "label_smoothing": (0.1, {}),
    "mixup": (0.2, {}),
    "cutmix": (0.2, {}),
    "ema": (0.9, {}),
    "bfloat16": (True, {}),
    "channels_last": (True, {}),
    "compile": ("eager", {}),
    "gradient_checkpointing": (True, {}),
    "deterministic": (True, {}),
    "save_every": (3, {}),
    "preset": ("accurate", {}),
    "first": ("5", {}),
    "stages": ("4,8,12", {}),
    "fc": ("6", ALEXNET),
    "classifier": ("5", {}),
    "threshold_scale": (0.01, {}),
    "l1_scale": (0.7, {}),
    "speedup": (6.0, {"model": None, "from": "DENSE"}),
    "method": ("converted", BUDGET),
    "dictionary_ratio": (0.3, BUDGET),
    "forms": ("lookup", BUDGET),
    "start": ("scratch", BUDGET),
    "phase": (0.4, BUDGET),
    "cuts": (7, BUDGET),
    "floor": (0.3, BUDGET),
    "thresholds": ("soft", BUDGET),
    "regrowth": (0.1, BUDGET),
    "ranking": ("magnitude", BUDGET),
    "layer_budgets": ("uniform", BUDGET),
    "dictionaries": ("dense", BUDGET),
    "distillation": (0.2, BUDGET),
    "temperature": (3.0, BUDGET),
}
"""Option -> a value that is not its default, and the settings beside it."""
BY_THE_COMMAND = {
    *("device", "log_every", "tensorboard", "output", "resume", "allow_change", "overwrite", "config", "dry_run"),
    *("rates", "quiet"),
}
"""Those that say where and whether to run: test_cli_train.py, test_cli_train_options.py, test_cli_train_restart.py."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Networks that were trained."""
    folder = tmp_path_factory.mktemp("start")
    for name, model in (("DENSE", "digits-resnet"), ("LOOKUP", "digits-resnet-lcnn")):
        short = ("--epochs", 1, "--batches-per-epoch", 1, "--seed", 3, "-q")
        assert lcnn("--model", model, *short, "-o", folder / f"{name}.pt") == 0
    return {name: str(folder / f"{name}.pt") for name in ("DENSE", "LOOKUP")}


def effects(job: Job) -> dict[str, Any]:
    """What a run sees of its settings: the network and its weights, the images, how it trains."""
    layers = [layer for layer in job.model.modules() if isinstance(layer, LookupLayer)]
    torch.manual_seed(0)
    images, labels = next(iter(job.dataset.train.read([torch.arange(4)], 1)))
    return {
        "network": str(job.model),
        "lookups": [(layer.threshold, layer.l1_weight) for layer in layers],
        "weights": [float(tensor.double().abs().sum()) for tensor in job.model.state_dict().values()],
        "images": (tuple(images.shape), float(images.double().abs().sum()), labels.tolist()),
        "reading": (len(job.dataset.train), getattr(job.dataset.train, "options", None)),
        "config": (job.method, dataclasses.asdict(job.config)),
    }


def test_no_option_is_left_out() -> None:
    assert set(CASES) | BY_THE_COMMAND == set(OPTIONS)


@pytest.mark.parametrize("option", CASES)
def test_the_option_changes_the_run(option: str, files: dict[str, str]) -> None:
    value, beside = CASES[option]
    before = {"model": "digits-resnet-lcnn", "data": "digits", **beside}
    after = {**before, option: value}
    before |= {"from": {"model": "digits-resnet"}, "speedup": {"speedup": 5.0}}.get(option, {})
    for settings in (before, after):
        settings.update({name: files[text] for name, text in settings.items() if text in files})
    old = effects(make_job(before))
    assert old == effects(make_job(before)), "nothing else is random"
    assert old != effects(make_job(after))
