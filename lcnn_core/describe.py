"""``describe(model, input_shape) -> ModelSpec``: run one image through a model and write down what it did.

Modules whose exact type is in ``KINDS`` become one LayerSpec per call. Everything else is seen as the operations it
dispatches: convolutions and matrix products become layers of their own, operations without weights are free by
convention, and what no rule covers is listed as uncounted, never taken for zero. The model is left as it was found.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from lcnn_core import meta
from lcnn_core.activations import ActivationMeter
from lcnn_core.errors import ConfigError, ShapeError, UnsupportedLayerError
from lcnn_core.layers import (
    LookupConv2d,
    LookupLayer,
    LookupLinear,
    PackedLookupConv2d,
    PackedLookupLayer,
    PackedLookupLinear,
)
from lcnn_core.spec import LayerSpec, LookupSpec, ModelSpec, Uncounted

_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.LayerNorm, nn.GroupNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.RMSNorm, nn.LocalResponseNorm),
)
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

KINDS: dict[type[nn.Module], str] = {
    **dict.fromkeys(_CONVS + _TRANSPOSED, "conv"),
    **dict.fromkeys(_NORMS, "norm"),
    nn.Linear: "linear",
    nn.Embedding: "embedding",
    LookupConv2d: "lookup_conv",
    LookupLinear: "lookup_linear",
    PackedLookupConv2d: "lookup_conv",
    PackedLookupLinear: "lookup_linear",
}
"""Modules that are described as a whole, by exact type: a subclass may do more, so its operations are read instead."""

FREE_OPERATIONS = frozenset(
    """_adaptive_avg_pool2d _adaptive_avg_pool3d _native_batch_norm_legit _native_batch_norm_legit_no_training
    _safe_softmax _log_softmax _softmax _to_copy _unsafe_view adaptive_max_pool2d adaptive_max_pool3d all amax amin any
    arange argmax argmin as_strided avg_pool1d avg_pool2d avg_pool3d bernoulli cat channel_shuffle constant_pad_nd copy
    cumsum detach empty empty_like empty_strided eye flip full full_like gather hardswish index index_put index_select
    is_same_size lift_fresh linspace masked_select max max_pool2d_with_indices max_pool3d_with_indices mean min
    native_batch_norm native_dropout native_group_norm native_layer_norm new_empty new_full new_ones new_zeros nonzero
    norm ones ones_like pixel_shuffle pixel_unshuffle rand rand_like randn reflection_pad1d reflection_pad2d repeat
    replication_pad1d replication_pad2d roll rrelu_with_noise scalar_tensor scatter select_scatter slice_scatter sort
    stack std sum topk tril triu unfold upsample_nearest1d upsample_nearest2d upsample_nearest3d var var_mean zeros
    zero zeros_like _assert_async _local_scalar_dense alias item clone contiguous embedding fill _reshape_alias prod
    split_with_sizes_copy linalg_vector_norm unsafe_split
    unsafe_split_with_sizes im2col col2im""".split()  # noqa: SIM905
)
"""Operations without multiplications by weights, free by convention, beside element-wise ones and views."""

_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the code of a model raises for an input that it does not take."""


def describe(model: nn.Module, input_shape: Sequence[int], architecture: str = "") -> ModelSpec:
    """Describe the forward pass of one image.

    model: any module that takes one float tensor (b, *input_shape); on the meta device nothing is computed and
        nonzeros are upper bounds (``ModelSpec.weights_known`` is False).
    input_shape: without the batch, for example (3, 224, 224).
    Returns a ModelSpec with layers in call order. Raises ShapeError when the input does not run through the model
    and UnsupportedLayerError for a ScriptModule, whose calls cannot be seen, and for lazy layers without sizes.
    """
    model = getattr(model, "_orig_mod", model)
    shape = tuple(input_shape)
    if not shape or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in shape):
        raise ConfigError(f"input shape is {shape}; expected positive whole numbers such as (3, 224, 224)")
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedLayerError("a ScriptModule hides its calls; pass the Python module that it was made from")
    if any(is_lazy(p) for p in (*model.parameters(), *model.buffers())):
        raise UnsupportedLayerError("the model holds lazy layers without sizes; run one image through it first")
    recorder = _record(model, shape)
    return ModelSpec(
        architecture=architecture or type(model).__name__,
        input_shape=shape,
        layers=tuple(recorder.layers),
        uncounted=tuple(
            Uncounted(name, operation, calls, "no formula for this operation")
            for (name, operation), calls in recorder.unknown.items()
        ),
        parameters=sum(p.numel() for p in model.parameters()),
        weights_known=not any(p.is_meta for p in model.parameters()),
        activation_bytes=recorder.activations.peak,
    )


def _record(model: nn.Module, shape: tuple[int, ...]) -> _Recorder:
    """One image of zeros through the model: shapes alone in known modules, computed where its path hangs on values."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    for computed in (False, True):
        recorder = _Recorder(model, computed)
        with _as_found(model), recorder.attached(), torch.no_grad(), recorder:
            try:
                x = torch.zeros(1, *shape, device=like.device, dtype=like.dtype)
                recorder.activations.start(x)
                model(x)
            except _REFUSALS as error:
                if computed or not recorder.values_matter:
                    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                    raise ShapeError(f"an input of shape {shape} does not run through the model: {reason}") from error
        if not recorder.values_matter:
            break
    return recorder


class _Recorder(TorchDispatchMode):
    """Collects LayerSpecs from module hooks, and from dispatched operations outside modules in KINDS."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """To keep torch._dynamo out of this class, PyTorch would import all of it, for a second or more."""
        return False

    def __init__(self, model: nn.Module, computed: bool) -> None:
        super().__init__()
        self.computed = computed
        """Whether modules in KINDS compute their values, or only give zeros of the right shape."""
        self.values_matter = False
        """Whether an operation was seen whose result has a shape that hangs on the input's values, or leaves torch."""
        self.names = {module: name for name, module in model.named_modules()}
        self.own = {_key(p): p for p in model.parameters()}
        self.layers: list[LayerSpec] = []
        self.unknown: Counter[tuple[str, str]] = Counter()
        self.activations = ActivationMeter()
        self._path: list[str] = []
        self._inside = 0
        self._calls: Counter[str] = Counter()
        self._held: set[int] = set()

    @contextmanager
    def attached(self) -> Iterator[None]:
        handles = []
        for module in self.names:
            handles.append(module.register_forward_pre_hook(self._enter))
            handles.append(module.register_forward_hook(self._leave, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._path.append(self.names[module])
        self._inside += type(module) in KINDS

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        name = self._path.pop()
        if type(module) not in KINDS:
            return
        self._inside -= 1
        x = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if self._inside:
            return
        if x is None:
            self.unknown[name, type(module).__name__] += 1
            return
        with _paused():
            self._add(_module_spec(name, module, x, output, self._new_parameters(module.parameters())))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self._run(func, args, kwargs or {})
        self.activations.saw((args, kwargs), out)
        if not self._inside:
            name = self._path[-1] if self._path else ""
            operation = func._schema.name.split("::")[-1]
            with _paused():
                if operation in _OPERATIONS:
                    for spec in _OPERATIONS[operation](name, args, kwargs or {}, out):
                        self._add(self._with_weight(spec, operation, args))
                elif not _is_free(func, operation):
                    self.unknown[name, str(func)] += 1
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        reached = self.activations.reached((args, kwargs))
        if reached and (torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags):
            self.values_matter = True
        if self.computed or not self._inside or func._schema.is_mutable:
            return meta.run(func, args, kwargs)
        out = meta.shape_of(func, args, kwargs)
        if out is None:
            return func(*args, **kwargs)
        for tensor in out if reached and isinstance(out, tuple) else (out,) * reached:
            tensor.zero_()
        return out

    def _with_weight(self, spec: LayerSpec, operation: str, args: Any) -> LayerSpec:
        """With the parameters that it brings; a product with a matrix that no image changes is a linear layer."""
        if operation == "convolution":
            weight, bias = args[1:3]
        elif operation in ("mm", "addmm") and not self.activations.knows(args[-1]):
            weight, bias = args[-1], args[0] if operation == "addmm" else None
        else:
            return spec
        parts = [self.own[key] for part in (weight, bias) if part is not None and (key := _key(part)) in self.own]
        held = self._new_parameters(parts) if _key(weight) in self.own else 0
        if spec.kind == "conv":
            return replace(spec, parameters=held)
        return LayerSpec(
            spec.name,
            "linear",
            spec.input_shape[1:],
            spec.output_shape[1:],
            weight_size=weight.numel(),
            weight_nnz=_nonzeros(weight),
            bias_size=0 if bias is None else bias.shape[-1],
            parameters=held,
        )

    def _new_parameters(self, parameters: Iterable[nn.Parameter]) -> int:
        """Parameters that no layer before it held: tied weights and second calls count once."""
        fresh = {id(p): p.numel() for p in parameters if id(p) not in self._held}
        self._held |= fresh.keys()
        return sum(fresh.values())

    def _add(self, spec: LayerSpec) -> None:
        call = self._calls[spec.name]
        self._calls[spec.name] += 1
        self.layers.append(replace(spec, call=call))


@contextmanager
def _paused() -> Iterator[None]:
    """Suspend dispatch modes while weights are looked at, so that reading them is not recorded."""
    with torch.utils._python_dispatch._disable_current_modes():
        yield


@contextmanager
def _as_found(model: nn.Module) -> Iterator[None]:
    """Evaluate without gradients and without fused attention (which hides its products); restore every flag."""
    flags = [(module, module.training) for module in model.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in flags:
            module.training = training


def _module_spec(name: str, module: nn.Module, x: Tensor, y: Tensor, parameters: int) -> LayerSpec:
    kind = KINDS[type(module)]
    bias = getattr(module, "bias", None)
    values: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "input_shape": _per_image(x),
        "output_shape": _per_image(y),
        "parameters": parameters,
        "bias_size": bias.numel() if isinstance(bias, Tensor) else 0,
    }
    if kind in ("conv", "lookup_conv"):
        values |= _conv_values(module, x, y)
    weight = getattr(module, "weight", None)
    if isinstance(module, LookupLayer | PackedLookupLayer):
        values |= {"weight_size": math.prod(module.dense_shape), "lookup": _lookup_spec(module)}
    elif isinstance(weight, Tensor):
        values |= {"weight_size": weight.numel(), "weight_nnz": _nonzeros(weight)}
    return LayerSpec(**values)


def _conv_values(module: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    space = len(module.kernel_size)
    padding: tuple[int, ...]
    if isinstance(module, LookupConv2d | PackedLookupConv2d):
        padding = module.padding_total()
    elif module.padding == "same":
        padding = tuple(d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
    else:
        padding = (0,) * space if module.padding == "valid" else tuple(2 * p for p in module.padding)
    batched = x.ndim == space + 2
    return {
        "input_shape": tuple(x.shape[1:] if batched else x.shape),
        "output_shape": tuple(y.shape[1:] if batched else y.shape),
        "kernel_size": tuple(module.kernel_size),
        "stride": tuple(module.stride),
        "padding": padding,
        "dilation": tuple(module.dilation),
        "groups": module.groups,
        "transposed": isinstance(module, _TRANSPOSED),
        "repeats": x.shape[0] if batched else 1,
    }


def _lookup_spec(layer: LookupLayer | PackedLookupLayer) -> LookupSpec:
    if isinstance(layer, PackedLookupLayer):
        size, nonzeros = math.prod(layer.shape), len(layer.values)
    else:
        size = nonzeros = layer.coefficients.numel()
        if not layer.coefficients.is_meta:
            nonzeros = layer.coefficients_nnz()
    stored = 0
    if layer.dictionary is not None:
        known = _nonzeros(layer.dictionary)
        stored = layer.dictionary.numel() if known is None else known
    return LookupSpec(
        dictionary_size=layer.dictionary_size,
        dictionary_nnz=stored,
        coefficients_size=size,
        coefficients_nnz=nonzeros,
        threshold=layer.threshold,
        l1_weight=layer.l1_weight,
        identity=layer.dictionary is None,
    )


def _nonzeros(weight: Tensor) -> int | None:
    return None if weight.is_meta else int(torch.count_nonzero(weight))


def _per_image(tensor: Tensor) -> tuple[int, ...]:
    """The shape without a batch of one; kept whole where windows or heads were folded into the batch."""
    return tuple(tensor.shape[1:] if tensor.ndim > 1 and tensor.shape[0] == 1 else tensor.shape)


def _convolution(name: str, args: Any, kwargs: Any, out: Tensor) -> list[LayerSpec]:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    return [
        LayerSpec(
            name=name,
            kind="conv",
            input_shape=tuple(x.shape[1:]),
            output_shape=tuple(out.shape[1:]),
            kernel_size=tuple(weight.shape[2:]),
            stride=tuple(stride),
            padding=tuple(2 * p for p in padding),
            dilation=tuple(dilation),
            groups=groups,
            transposed=transposed,
            weight_size=weight.numel(),
            weight_nnz=_nonzeros(weight),
            bias_size=0 if bias is None else bias.numel(),
            repeats=x.shape[0],
        )
    ]


def _product(name: str, left: Tensor, right: Tensor) -> LayerSpec:
    batch, a, b, c = math.prod(left.shape[:-2]), left.shape[-2], left.shape[-1], right.shape[-1]
    return LayerSpec(name, "matmul", (batch, a, b), (batch, a, c), matmul=(batch, a, b, c))


def _attention(name: str, args: Any, kwargs: Any, out: Any) -> list[LayerSpec]:
    query, key, value = args[:3]
    scores = query.new_empty((*query.shape[:-1], key.shape[-2]), device="meta")
    return [_product(name, query, key.transpose(-1, -2)), _product(name, scores, value)]


_OPERATIONS: dict[str, Callable[[str, Any, Any, Any], list[LayerSpec]]] = {
    "convolution": _convolution,
    "mm": lambda name, args, kwargs, out: [_product(name, args[0], args[1])],
    "bmm": lambda name, args, kwargs, out: [_product(name, args[0], args[1])],
    "addmm": lambda name, args, kwargs, out: [_product(name, args[1], args[2])],
    "baddbmm": lambda name, args, kwargs, out: [_product(name, args[1], args[2])],
    "mv": lambda name, args, kwargs, out: [_product(name, args[0], args[1].unsqueeze(-1))],
    "dot": lambda name, args, kwargs, out: [_product(name, args[0].unsqueeze(0), args[1].unsqueeze(-1))],
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
}
"""Operations outside modules in KINDS that multiply by weights or by each other, with how each is counted."""


def _key(tensor: Tensor) -> tuple[Any, ...]:
    """Equal for a parameter and for views of all of it."""
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.numel()


def _is_free(func: Any, operation: str) -> bool:
    return (
        func.is_view
        or torch.Tag.pointwise in func.tags
        or operation in FREE_OPERATIONS
        or operation.rstrip("_") in FREE_OPERATIONS
    )
