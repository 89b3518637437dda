"""Turn the convolutions and linear layers of any ``nn.Module`` into lookup layers, weights carried over.

Only exactly the types in ``LAYERS`` are converted: a subclass may do more, and is left with the reason in the report.
Convert before wrapping the model for distributed training and before making the optimizer, which holds parameters.
A lookup layer has no ``weight``: where a model's own code reads ``child.weight``, leave that child by an override.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from lcnn_core.errors import ConfigError
from lcnn_core.factors import svd_factors
from lcnn_core.layers import LAYERS, LookupLayer
from lcnn_core.layers.factory import reason_to_stay_dense
from lcnn_core.layers.structure import set_lookup_layers_, swap
from lcnn_core.spec import LookupConfig

__all__ = [
    "ConversionReport",
    "ConvertedLayer",
    "LeftLayer",
    "convert",
    "convert_",
    "set_lookup_layers_",
    "svd_factors",
]

Chooser = Callable[[str, nn.Module], LookupConfig | None]
Filter = Callable[[str, nn.Module], bool]

_READS_CHILD_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_TYPES = " and ".join(f"nn.{kind.__name__}" for kind in LAYERS)


@dataclass(frozen=True)
class ConvertedLayer:
    """One layer that became a lookup layer."""

    names: tuple[str, ...]
    """Every path at which the model holds it; more than one for a shared module."""
    kind: str
    """Class of the dense layer."""
    weight_shape: tuple[int, ...]
    config: LookupConfig
    """Resolved: threshold and l1_weight are numbers."""
    relative_error: float | None
    """||W - W'|| / ||W||, W' the filters that the lookup layer stands for; None on the meta device."""


@dataclass(frozen=True)
class LeftLayer:
    """One layer with weights that stayed as it is, and why."""

    names: tuple[str, ...]
    kind: str
    reason: str


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did: every module that holds weights is in one of the two lists."""

    converted: tuple[ConvertedLayer, ...]
    left: tuple[LeftLayer, ...]

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} converted, {len(self.left)} left"]
        groups = [layer.names for layer in self.converted] + [layer.names for layer in self.left]
        width = max((len(_shown(names)) for names in groups), default=0)
        for layer in self.converted:
            config, error = layer.config, layer.relative_error
            size = "identity" if config.dictionary_size is None else f"k={config.dictionary_size}"
            text = f"{layer.kind} {layer.weight_shape}, {size}, threshold {config.threshold:.3g}"
            error_text = "" if error is None else f", relative error {error:.3g}"
            lines.append(f"  {_shown(layer.names):<{width}}  converted  {text}{error_text}")
        lines += [f"  {_shown(layer.names):<{width}}  left       {layer.kind}: {layer.reason}" for layer in self.left]
        return "\n".join(lines)


def convert(
    model: nn.Module,
    config: LookupConfig | Chooser | None,
    overrides: Mapping[str, LookupConfig | None] | None = None,
    filter_fn: Filter | None = None,
) -> tuple[nn.Module, ConversionReport]:
    """A copy of ``model`` with lookup layers, and the report; arguments as for :func:`convert_`.

    A model that is itself a convolution or linear layer becomes the lookup layer that is returned.
    """
    model = copy.deepcopy(model)
    replacements, report = _plan(model, config, overrides or {}, filter_fn)
    return swap(model, replacements), report


def convert_(
    model: nn.Module,
    config: LookupConfig | Chooser | None,
    overrides: Mapping[str, LookupConfig | None] | None = None,
    filter_fn: Filter | None = None,
) -> ConversionReport:
    """Replace layers of ``model`` by lookup layers, in place, with the dense weights carried over; return the report.

    config: the configuration of every layer, or a function of (name, module) that returns one; None leaves it.
    overrides: by exact name, or by ``re:`` and a regular expression that matches the whole name; None leaves the
        layer. An exact name beats a pattern, the first pattern beats later ones, and both beat ``filter_fn``.
    filter_fn: of (name, module); False leaves the layer.

    Weights: D and P by :func:`svd_factors`, exact for k >= m but for entries of P at or below the threshold, which
    count as zero: with a published threshold (c / sqrt(kh * kw * k)) they cost a relative error of W of sqrt(3) * c
    at most, and nothing with threshold 0. The identity dictionary takes P = W; its default threshold is relative to
    W: c * sqrt(3) * rms(W), the same share of P. Biases stay the same parameters; training flag, device, dtype,
    memory format and requires_grad are kept; a module held at several places stays one.

    Nothing changes when an error is raised: ConfigError for an override that matches nothing, a configuration of
    another type, or a model that is itself such a layer.
    """
    replacements, report = _plan(model, config, overrides or {}, filter_fn)
    if model in replacements:
        raise ConfigError(
            f"the model itself is a {type(model).__name__} and cannot be replaced in place; "
            "use convert(), which returns the new layer"
        )
    swap(model, replacements)
    return report


@dataclass(frozen=True)
class _Wish:
    """What the caller wants of one layer: a configuration, or to leave it and why."""

    config: LookupConfig | None
    reason: str = ""


def _plan(
    model: nn.Module,
    config: LookupConfig | Chooser | None,
    overrides: Mapping[str, LookupConfig | None],
    filter_fn: Filter | None,
) -> tuple[dict[nn.Module, nn.Module], ConversionReport]:
    layers = _layers_with_weights(model)
    wish = _Wishes(model, layers, config, overrides, filter_fn)
    owners = _weight_owners(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[nn.Module, nn.Module] = {}
    converted, left = [], []
    for module, names in layers.items():
        kind = type(module).__name__
        parents = [modules[name.rpartition(".")[0]] for name in names if name]
        reason = _module_reason(module, parents, owners)
        # Asked only about what can be converted: the caller's functions may count on a Conv2d or Linear.
        wanted = wish(names, module) if reason is None else _Wish(None, reason)
        if wanted.config is not None:
            reason = _weight_reason(module, wanted.config)
        if wanted.config is None or reason is not None:
            left.append(LeftLayer(names, kind, reason or wanted.reason))
            continue
        layer = replacements[module] = _carry_over(module, wanted.config)
        shape = tuple(module.weight.shape)  # type: ignore[union-attr,arg-type]
        converted.append(ConvertedLayer(names, kind, shape, layer.config, _relative_error(module, layer)))
    return replacements, ConversionReport(tuple(converted), tuple(left))


def _layers_with_weights(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every module with a weight of two or more dimensions of its own, with all its names; not the insides of such
    convolutions and linear layers (their parametrizations)."""
    layers: dict[nn.Module, tuple[str, ...]] = {}
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules(remove_duplicate=False):
        if inside and name.startswith(inside):
            continue
        known = isinstance(module, _ConvNd | nn.Linear | LookupLayer)
        # Quantized layers hold packed weights behind a method.
        packed = callable(getattr(module, "weight", None))
        own = [p for p in module._parameters.values() if p is not None and not is_lazy(p)]
        if known or packed or any(p.ndim >= 2 for p in own):
            layers[module] = (*layers.get(module, ()), name)
        if known:
            inside = (*inside, f"{name}." if name else "")
    return layers


class _Wishes:
    """Which configuration the caller chose for each layer; checks the overrides once, against all layers."""

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[nn.Module, tuple[str, ...]],
        config: LookupConfig | Chooser | None,
        overrides: Mapping[str, LookupConfig | None],
        filter_fn: Filter | None,
    ) -> None:
        if config is not None and not isinstance(config, LookupConfig) and not callable(config):
            raise ConfigError(f"config is {config!r}; expected a LookupConfig, a function of (name, module), or None")
        self.config, self.filter_fn = config, filter_fn
        self.exact = {key: _checked(key, value) for key, value in overrides.items() if not key.startswith("re:")}
        self.patterns = {
            _pattern(key): _checked(key, value) for key, value in overrides.items() if key.startswith("re:")
        }
        names = [name for group in layers.values() for name in group]
        modules = dict(model.named_modules(remove_duplicate=False))
        for key in self.exact:
            if key in modules and key not in names:
                raise ConfigError(
                    f"override {key!r} names a {type(modules[key]).__name__}; expected a layer with weights"
                )
            if key not in names:
                raise ConfigError(f"override {key!r} matches no layer{_close(key, names)}")
        for pattern in self.patterns:
            if not any(pattern.fullmatch(name) for name in names):
                such = f", such as {names[0]!r}" if names else ""
                raise ConfigError(f"override 're:{pattern.pattern}' matches no layer; expected all of a name{such}")

    def __call__(self, names: tuple[str, ...], module: nn.Module) -> _Wish:
        exact = [(name, self.exact[name]) for name in names if name in self.exact]
        if any(config != exact[0][1] for _, config in exact):
            raise ConfigError(f"overrides {' and '.join(repr(name) for name, _ in exact)} differ, but are one module")
        if exact:
            return _Wish(exact[0][1], f"override {exact[0][0]!r} is None")
        for pattern, config in self.patterns.items():
            if any(pattern.fullmatch(name) for name in names):
                return _Wish(config, f"override 're:{pattern.pattern}' is None")
        if self.filter_fn is not None and not self.filter_fn(names[0], module):
            return _Wish(None, "filter_fn left it out")
        if self.config is None or isinstance(self.config, LookupConfig):
            return _Wish(self.config, "no configuration was given for it")
        chosen = self.config(names[0], module)
        return _Wish(_checked(names[0], chosen), "the configuration function returned None")


def _checked(key: str, config: LookupConfig | None) -> LookupConfig | None:
    if config is not None and not isinstance(config, LookupConfig):
        raise ConfigError(f"the configuration of {key!r} is {config!r}; expected a LookupConfig, or None to leave it")
    return config


def _pattern(key: str) -> re.Pattern[str]:
    try:
        return re.compile(key.removeprefix("re:"))
    except re.error as error:
        raise ConfigError(f"override {key!r} is no regular expression: {error}") from None


def _weight_owners(model: nn.Module) -> dict[object, list[str]]:
    """Names of the modules that hold each parameter, told apart by their memory (meta tensors by identity)."""
    owners: dict[object, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(_memory(parameter), []).append(name or "the model itself")
    return owners


def _memory(parameter: Tensor) -> object:
    if is_lazy(parameter) or parameter.is_meta or not parameter.numel():
        return id(parameter)
    return (parameter.device, parameter.data_ptr()) if type(parameter) is nn.Parameter else id(parameter)


def _module_reason(module: nn.Module, parents: list[nn.Module], owners: Mapping[object, list[str]]) -> str | None:
    """Why this module cannot be replaced without losing something, whatever the configuration; None if it can."""
    if isinstance(module, LookupLayer):
        return "already a lookup layer"
    if isinstance(module, LazyModuleMixin):
        return "lazy: its shape is unknown until a first batch has run"
    if is_parametrized(module):
        return "its weight is parametrized (weight_norm, spectral_norm, orthogonal, ...)"
    if type(module) not in LAYERS:
        return f"only exactly {_TYPES} are converted"
    if "weight" not in module._parameters:
        return "its weight is computed before every call (weight_norm, spectral_norm or pruning hooks)"
    weight = module._parameters["weight"]
    if any(getattr(module, hooks) for hooks in _HOOKS) or any(getattr(weight, hooks, None) for hooks in _TENSOR_HOOKS):
        return "it has hooks, which would be lost"
    if module._buffers or module._modules or set(module._parameters) != {"weight", "bias"} or "forward" in vars(module):
        return "it carries more than a weight and a bias: an own forward, buffer, parameter or submodule"
    if type(weight) is not nn.Parameter:
        return f"its weight is a {type(weight).__name__}, not a plain parameter"
    if len(owners[_memory(weight)]) > 1:
        return f"its weight is shared by {', '.join(owners[_memory(weight)])}"
    for parent in parents:
        if isinstance(parent, _READS_CHILD_WEIGHTS):
            return f"its parent, a {type(parent).__name__}, reads its weight directly"
    return None


def _weight_reason(module: nn.Module, config: LookupConfig) -> str | None:
    """Why these weights gain nothing, or cannot be carried over, under this configuration."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    groups: int = getattr(module, "groups", 1)
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}, not floating point"
    if not weight.numel():
        return f"its weight {tuple(weight.shape)} is empty"
    out_channels, width, *kernel = weight.shape
    reason = reason_to_stay_dense(config.dictionary_size, width * groups, out_channels, kernel, groups)
    if reason is not None or weight.is_meta:
        return reason
    if not bool(weight.isfinite().all()):
        return "its weight holds NaN or infinity"
    if not bool(weight.any()):
        return "its weight is all zero, and coefficients that are zero stay zero"
    return None


@torch.no_grad()
def _carry_over(module: nn.Module, config: LookupConfig) -> LookupLayer:
    """The lookup layer with the weights of ``module``."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    if config.dictionary_size is None and config.threshold is None and not weight.is_meta:
        rms = float(weight.double().square().mean().sqrt())
        config = replace(config, threshold=config.threshold_scale * math.sqrt(3) * rms)
    layer = LAYERS[type(module)].like(module, config)  # type: ignore[attr-defined]
    if not weight.is_meta and config.dictionary_size is None:
        layer.coefficients.copy_(weight)
    elif not weight.is_meta and config.dictionary_size is not None:
        dictionary, coefficients = svd_factors(weight, config.dictionary_size, getattr(module, "groups", 1))
        layer.dictionary.copy_(dictionary)
        layer.coefficients.copy_(coefficients)
    if weight.ndim == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layer.requires_grad_(weight.requires_grad)
    layer.bias = module.bias  # type: ignore[assignment]
    return layer


@torch.no_grad()
def _relative_error(module: nn.Module, layer: LookupLayer) -> float | None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    if weight.is_meta:
        return None
    return float((layer.dense_weight().double() - weight.double()).norm() / weight.double().norm())


def _shown(names: tuple[str, ...]) -> str:
    return " = ".join(name or "(the model itself)" for name in names)


def _close(name: str, names: Collection[str]) -> str:
    close = get_close_matches(name, names, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
