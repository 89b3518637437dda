"""Networks of one architecture that hand dictionaries on: to new classes, and to a deeper network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from lcnn_core.errors import ConfigError
from lcnn_core.layers import LAYERS, LookupLayer
from lcnn_core.layers.structure import set_lookup_layers_
from lcnn_core.models import build, dense_twin, resolve
from lcnn_core.spec import LookupConfig

Kind = Literal["lcnn", "cnn"]


@dataclass(frozen=True)
class Family:
    """A lookup architecture and its dense twin, for any number of classes.

    architecture: a name in ``MODELS`` that has lookup layers; arguments: its options, without the number of classes.
    classifier: k of the lookup network's classifier, also where it exceeds the number of classes, for which the
    registry would leave it dense: here it pays by being carried over. None leaves it as the registry makes it.
    """

    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    classifier: int | None = None

    def __post_init__(self) -> None:
        builder, _ = resolve(self.architecture, **self.arguments)
        if not builder.has_lookups:
            raise ConfigError(f"{self.architecture} has no lookup layers; expected an architecture such as "
                              f"small-alexnet-lcnn, whose dense twin is trained beside it")  # fmt: skip

    def build(self, kind: Kind, classes: int, seed: int, **options: Any) -> nn.Module:
        """The lookup network or its dense twin, freshly drawn from ``seed``; the caller's random state stays."""
        arguments = {**self.arguments, **options, "num_classes": classes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "cnn":
                return dense_twin(self.architecture, **arguments)
            model = build(self.architecture, **arguments)
            if self.classifier is not None:
                set_lookup_layers_(model, {classifier_name(model): self._classifier_config(arguments)})
            return model

    def _classifier_config(self, arguments: Mapping[str, Any]) -> LookupConfig:
        """As the registry makes it where there are enough classes."""
        assert self.classifier is not None
        enough = {**arguments, "num_classes": self.classifier + 1, "classifier": self.classifier}
        with torch.device("meta"):
            model = build(self.architecture, **enough)
        layer = model.get_submodule(classifier_name(model))
        if not isinstance(layer, LookupLayer):
            raise ConfigError(f"the classifier of {self.architecture} takes no dictionary of {self.classifier} vectors")
        return layer.config


def classifier_name(model: nn.Module) -> str:
    """The last layer that holds weights, in the order in which they were registered."""
    kinds = (*LAYERS, LookupLayer)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)][-1]


def freeze_dictionaries_(model: nn.Module) -> None:
    """No gradient for any D from now on, in place; P and all else stay as they are."""
    for layer in model.modules():
        if isinstance(layer, LookupLayer) and layer.dictionary is not None:
            layer.dictionary.requires_grad_(False)


@torch.no_grad()
def carry_pretrained_(model: nn.Module, trained: nn.Module) -> None:
    """Everything of ``trained`` but its classifier into ``model``, in place; of a lookup classifier, the dictionary."""
    head = f"{classifier_name(trained)}."
    carried = {n: t for n, t in trained.state_dict().items() if not n.startswith(head) or n == f"{head}dictionary"}
    model.load_state_dict(carried, strict=False)


@torch.no_grad()
def carry_dictionaries_(model: nn.Module, trained: nn.Module) -> dict[str, str]:
    """Give every lookup layer of ``model`` a dictionary of the shallower network ``trained``, in place.

    A layer takes the dictionary of the layer of its own name; where there is none, or of another shape, that of the
    last layer of its stage (the first part of the name, layer3 in layer3.1.conv2) whose shape fits. Returns which
    layer took whose. Raises ConfigError, and changes nothing, when a layer finds none.
    """
    sources = {name: layer.dictionary for name, layer in _with_dictionary(trained).items()}
    taken: dict[str, str] = {}
    for name, layer in _with_dictionary(model).items():
        shape = layer.dictionary.shape  # type: ignore[union-attr]
        stage = name.split(".")[0]
        fitting = [n for n, d in sources.items() if n.split(".")[0] == stage and d is not None and d.shape == shape]
        if not fitting:
            raise ConfigError(f"no layer of {stage!r} in the trained network has a dictionary {tuple(shape)} for "
                              f"{name!r}; expected the same widths and dictionary sizes in both")  # fmt: skip
        taken[name] = name if name in fitting else fitting[-1]
    for name, layer in _with_dictionary(model).items():
        layer.dictionary.copy_(sources[taken[name]])  # type: ignore[union-attr,arg-type]
    return taken


def _with_dictionary(model: nn.Module) -> dict[str, LookupLayer]:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LookupLayer)}
    return {name: layer for name, layer in layers.items() if layer.dictionary is not None}
