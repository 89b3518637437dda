"""The same network with fewer channels: what any compression has to beat."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lcnn_core.checkpoint.record import CUSTOM
from lcnn_core.compress.teacher import COMPRESSION, check_dense, check_target, taught_by
from lcnn_core.counting import total_macs
from lcnn_core.data import Dataset
from lcnn_core.describe import describe
from lcnn_core.errors import ConfigError
from lcnn_core.models import MODELS, resolve
from lcnn_core.train import TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore

FROM_SCRATCH = replace(COMPRESSION, lr=0.1, clip_norm=None)


@dataclass(frozen=True)
class NarrowConfig:
    """speedup: MACs of the dense network over those of the narrow one. temperature, distillation: as in
    :class:`FromDenseConfig`."""

    speedup: float = 10.0
    temperature: float = 2.0
    distillation: float = 0.7
    train: TrainConfig = FROM_SCRATCH

    def __post_init__(self) -> None:
        check_target(self.speedup, self.temperature, self.distillation, self.train)


def _macs(model: nn.Module, input_shape: Sequence[int]) -> int:
    return total_macs(describe(model, input_shape).layers)


@torch.no_grad()
def narrowed(model: nn.Module, input_shape: Sequence[int], share: float) -> nn.Module:
    """A copy of ``model`` with ``share`` of the channels everywhere, freshly initialised; inputs and outputs stay.

    Every convolution, linear layer and batch norm is resized, as an image runs through, for the channels that reach it.
    Raises ConfigError for a network whose own code counts on its channels.
    """
    model = copy.deepcopy(model).eval()
    x = torch.zeros(2, *input_shape, device=next(model.parameters()).device)
    resized = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm)]
    calls: list[nn.Module] = []
    _run(model, x, resized, lambda module, width: calls.append(module))
    last = [module for module in calls if not isinstance(module, _BatchNorm)][-1]
    done: set[nn.Module] = set()

    def resize(module: nn.Module, width: int) -> None:
        if module not in done:
            _resize_(module, width, 1.0 if module is last else share)
            done.add(module)

    try:
        _run(model, x, resized, resize)
    except RuntimeError as error:
        raise ConfigError(f"{type(model).__name__} cannot be made narrower: {str(error).splitlines()[0]}") from error
    return model.train()


def _run(model: nn.Module, x: Tensor, watched: Sequence[nn.Module], on_call: Callable[[nn.Module, int], None]) -> None:
    """Run ``model``; ``on_call`` hears of each call of a watched module beforehand, with the channels of its input."""

    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        on_call(module, args[0].shape[-1 if isinstance(module, nn.Linear) else 1])

    handles = [module.register_forward_pre_hook(hook) for module in watched]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()


def _resize_(module: Any, width: int, share: float) -> None:
    """Give ``module`` fresh parameters for ``width`` input channels and ``share`` of its output channels."""
    if isinstance(module, _BatchNorm):
        module.num_features = width
        shapes = {name: (width,) for name in ("weight", "bias") if getattr(module, name) is not None}
        for name in ("running_mean", "running_var") if module.track_running_stats else ():
            setattr(module, name, getattr(module, name).new_empty(width))
    else:
        count = max(1, round(share * len(module.weight)))
        groups = getattr(module, "groups", 1)
        if groups > 1:
            groups = width if module.groups == module.in_channels else math.gcd(module.groups, width)
            count = groups * max(1, round(count / groups))
            module.groups = groups
        names = ("in_features", "out_features") if isinstance(module, nn.Linear) else ("in_channels", "out_channels")
        for name, value in zip(names, (width, count), strict=True):
            setattr(module, name, value)
        shapes = {"weight": (count, width // groups, *module.weight.shape[2:])}
        if module.bias is not None:
            shapes["bias"] = (count,)
    for name, shape in shapes.items():
        setattr(module, name, nn.Parameter(getattr(module, name).new_empty(shape)))
    module.reset_parameters()


def narrow_to(dense: nn.Module, input_shape: Sequence[int], speedup: float) -> nn.Module:
    """The widest narrowed copy that costs at most ``1 / speedup`` of ``dense``; it lands as near as whole channels do.

    Raises ConfigError, with the reachable maximum, where one channel everywhere costs more.
    """
    whole = _macs(dense, input_shape)
    low, high = 0.0, 1.0
    least = _macs(narrowed(dense, input_shape, low), input_shape)
    if least > whole / speedup:
        reach = math.floor(100 * whole / least) / 100
        raise ConfigError(
            f"a speedup of {speedup:g} cannot be met: at most {reach:g}, with one channel everywhere; ask for less"
        )
    for _ in range(12):
        middle = (low + high) / 2
        fits = _macs(narrowed(dense, input_shape, middle), input_shape) <= whole / speedup
        low, high = (middle, high) if fits else (low, middle)
    return narrowed(dense, input_shape, low)


def narrowed_architecture(
    architecture: str, arguments: Mapping[str, Any], dense: nn.Module, model: nn.Module
) -> tuple[str, Mapping[str, Any]]:
    """The architecture's name with the ``widths`` that make ``model``, a narrowed copy of ``dense``.

    "custom" and no arguments where the architecture has no such option.
    """
    complete = resolve(architecture, **arguments)[1] if architecture in MODELS else {}
    if "widths" not in complete:
        return CUSTOM, {}
    twins = dict(model.named_modules())
    narrow: dict[int, int] = {}
    for name, module in dense.named_modules():
        if isinstance(module, nn.Conv2d):
            narrow.setdefault(module.out_channels, twins[name].out_channels)  # type: ignore[arg-type]
    return architecture, {**arguments, "widths": [narrow[width] for width in complete["widths"]]}


@contextmanager
def _without_onednn() -> Iterator[None]:
    backend: Any = torch.backends.mkldnn
    before, backend.enabled = backend.enabled, False
    try:
        yield
    finally:
        backend.enabled = before


def train_narrow(
    dense: nn.Module,
    dataset: Dataset,
    config: NarrowConfig | None = None,
    on_event: Listener = ignore,
    resume: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Train a narrower copy of ``dense`` from scratch, taught by it; counted speedups are over ``dense``.

    Raises ConfigError where the budget cannot be met, and for a network that has lookup layers already.
    """
    config = config or NarrowConfig()
    check_dense(dense)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        model = narrow_to(dense, dataset.input_shape, config.speedup)
    objective = taught_by(dense, config.temperature, config.distillation)
    # With odd numbers of channels oneDNN's backward pass damages the heap (seen with torch 2.13, widths 5, 11 and 22).
    with _without_onednn():
        whole = _macs(dense, dataset.input_shape)
        return model, train(model, dataset, config.train, on_event, objective, resume=resume, dense_macs=whole)
