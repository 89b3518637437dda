"""What is timed: a lookup network, its dense twin and a reference architecture, with files of their own."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lcnn_core
from lcnn_analyze.bench.report import Kind, NetworkInfo, Target
from lcnn_analyze.cost import TWIN
from lcnn_analyze.inputs import chosen_reference, open_subject, reference_options
from lcnn_core import ConfigError, LookupLayer, ModelSpec, models, plain_layers, total_macs


@dataclass(frozen=True)
class Network:
    """One network, in evaluation mode. ``folder`` takes the files that its contenders share."""

    kind: Kind
    name: str
    model: nn.Module
    spec: ModelSpec
    folder: Path

    @cached_property
    def info(self) -> NetworkInfo:
        macs = total_macs(self.spec.layers)
        return NetworkInfo(self.kind, self.name, macs, self.spec.parameters)


@dataclass(frozen=True)
class Trial:
    """A lookup network with what it is compared with. ``headline``: the baseline that targets are about."""

    name: str
    input_shape: tuple[int, ...]
    lcnn: Network
    baselines: tuple[Network, ...]
    headline: Kind = "twin"
    targets: Mapping[int, Target] = field(default_factory=dict)
    """By batch size."""
    accuracy: str = ""

    @property
    def networks(self) -> tuple[Network, ...]:
        return (self.lcnn, *self.baselines)


@contextmanager
def open_trial(
    model: nn.Module,
    input_shape: Sequence[int],
    name: str,
    reference: str | None = None,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[Trial]:
    """A Trial of ``model`` on ``input_shape`` (no batch) with its dense twin, and ``reference`` by name if given.

    The twin computes the model's function with dense layers. A reference that counts as the twin does is left out:
    it is the same network. options: those of the reference, by default the model's image and classes. more: the other
    fields of Trial. Raises ConfigError for a reference that does not take this input or is not known.
    """
    shape = tuple(input_shape)
    model = model.eval()
    with tempfile.TemporaryDirectory(prefix="lcnn-bench-", ignore_cleanup_errors=True) as folder:
        lcnn = _network("lcnn", name, model, shape, folder)
        twin = _network("twin", TWIN, plain_layers(model, "dense").eval(), shape, folder)
        baselines = [twin]
        if reference is not None:
            dense = _reference(reference, reference_options(reference, lcnn.spec, {}) if options is None else options)
            other = _network("reference", reference, dense, shape, folder)
            if (other.info.macs, other.info.parameters) != (twin.info.macs, twin.info.parameters):
                baselines.append(other)
        if len(baselines) == 1:
            more["headline"] = "twin"
        yield Trial(name, shape, lcnn, tuple(baselines), **more)


def open_file(
    target: str | Path,
    reference: str | None = None,
    shape: Sequence[int] | None = None,
    name: str | None = None,
    architecture: str | None = None,
) -> AbstractContextManager[Trial]:
    """A Trial of a checkpoint or a named architecture, with the top-1 that the file states, of test images if it can.

    reference: by default the dense architecture of the family. shape: without the batch; by default the model's own.
    architecture: what a bare state dict holds.
    """
    subject = open_subject(target, shape, name, architecture)
    if subject.make_module is None:
        raise ConfigError(f"{target} is a description without a model; give a checkpoint")
    named, options = chosen_reference(subject, reference) or (None, None)
    stated = [one for one in subject.accuracy if one.metric == "top-1"]
    tested = [one for one in stated if one.dataset.endswith("(test)")] or stated
    return open_trial(
        subject.make_module(),
        subject.spec.input_shape,
        subject.name,
        named,
        options,
        headline="reference" if named is not None and named.startswith("alexnet") else "twin",
        accuracy=", ".join(f"{one.percent:.1f} % {one.metric} on {one.dataset}" for one in tested),
    )


def _network(kind: Kind, name: str, model: nn.Module, shape: tuple[int, ...], folder: str) -> Network:
    own = Path(folder) / kind
    own.mkdir()
    return Network(kind, name, model, lcnn_core.describe(model, shape, architecture=name), own)


def _reference(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The architecture with fresh weights from a fixed seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build(name, **options).eval()


@torch.no_grad()
def float64_outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, float]:
    """The model's outputs in float64 PyTorch, and how far PyTorch's own float32 is from them (see ``error_of``).

    Lookup layers compute by the paper's two steps, so that the reference is not the dense twin.
    """
    exact = copy.deepcopy(model).eval()
    for layer in exact.modules():
        if isinstance(layer, LookupLayer):
            layer.prune_().form = "two_convs"
    single = exact(x)
    expected = exact.double()(x.double())
    if not isinstance(expected, Tensor):
        raise ConfigError(f"the model returns a {type(expected).__name__}; the bench compares models with one output")
    return expected, error_of(single, expected) or 0.0


def error_of(output: Tensor, expected: Tensor) -> float | None:
    """Largest difference over the largest expected magnitude; None where shapes differ or a value is not finite."""
    if output.shape != expected.shape:
        return None
    error = float((output.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))
    return error if error == error and error != float("inf") else None
