"""``torch.export`` archives (``.pt2``) as ModelSpecs: the graph from its JSON, nonzeros from its raw tensors.

Nothing is unpickled: the archive's pickled sample inputs are left alone, and one whose weights are pickles is refused.
The graph holds the shape of every value, so nothing is run either.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lcnn_core.checkpoint.archive import common_prefix, open_archive
from lcnn_core.checkpoint.bounds import MAX_VIEWS, is_finite, view_fits
from lcnn_core.checkpoint.graphs import GraphRecorder, Shape, Weight
from lcnn_core.describe import FREE_OPERATIONS
from lcnn_core.errors import CheckpointError, ConfigError, LcnnError
from lcnn_core.spec import ModelSpec

MAX_JSON = 256 << 20
"""Bytes of one JSON entry."""

_DTYPES = {
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16},
    **{7: torch.float32, 8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128},
    **{12: torch.bool, 13: torch.bfloat16},
}
"""Scalar types by their number in the archive's schema."""

_COMPOSITES = frozenset(
    """adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d chunk dropout dropout_ expand_as
    feature_dropout flatten log_softmax max_pool1d max_pool2d max_pool3d pad softmax stochastic_depth to type_as
    unflatten upsample_bilinear2d upsample_nearest2d zeros_like contiguous meshgrid movedim tensor_split unsafe_chunk
    reshape sym_size sym_numel sym_stride _assert_tensor_metadata argsort cross_entropy_loss einops linspace
    feature_alpha_dropout alpha_dropout numpy_T scalar_tensor lift_fresh_copy""".split()  # noqa: SIM905
)
"""Operations of unlowered graphs that ``describe`` sees as free ones, having lowered them."""

_TARGET = re.compile(r"torch\.ops\.aten\.([a-z_][a-zA-Z0-9_]*)\.([a-zA-Z0-9_]+)")
_PYTHON = re.compile(r"(_operator|math|torch)\.[a-z_]+")
_CONV = re.compile(r"conv(_transpose)?([123])d")


def read_spec(path: Path, input_shape: Sequence[int] | None = None) -> tuple[ModelSpec, tuple[str, ...]]:
    """Describe the exported program at ``path`` for one image; also the names of weights that hold NaN or infinity.

    input_shape: without the batch; an exported graph holds its own, so another one is a ConfigError. Raises
    CheckpointError for a damaged archive, one older than torch 2.8, and weights that are pickles.
    """
    with open_archive(path) as archive:
        try:
            reader = _Reader(path, archive, common_prefix(path, archive))
            return reader.spec(input_shape), tuple(reader.not_finite)
        except LcnnError:
            raise
        except (KeyError, TypeError, IndexError, AttributeError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: its graph is damaged: {type(error).__name__} {error}") from error


class _Reader:
    def __init__(self, path: Path, archive: zipfile.ZipFile, prefix: str) -> None:
        self.path, self.archive, self.prefix = path, archive, prefix
        self.sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if prefix + "models/model.json" not in self.sizes:
            old = prefix + "serialized_exported_program.json" in self.sizes or any(
                "serialized_" in n for n in self.sizes
            )
            reason = "was written before torch 2.8, with its weights pickled" if old else "holds no models/model.json"
            raise self.refuse(f"{reason}; export it again with torch.export.save of torch 2.8 or later")
        program = self.json("models/model.json")["graph_module"]
        self.graph, self.signature = program["graph"], program["signature"]
        self.shapes = {name: self._shape(value["sizes"]) for name, value in self.graph["tensor_values"].items()}
        self.places = self._places()
        self.weights: dict[str, Weight] = {}
        self.viewed = 0
        self.not_finite: list[str] = []

    def refuse(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} {reason}")

    def json(self, name: str) -> Any:
        if self.sizes.get(self.prefix + name, MAX_JSON + 1) > MAX_JSON:
            raise self.refuse(f"has no {name} of at most {MAX_JSON} bytes; export it again")
        try:
            return json.loads(self.archive.read(self.prefix + name))
        except (ValueError, RecursionError) as error:
            raise self.refuse(f"has a {name} that is no JSON: {error}") from error

    def _shape(self, sizes: Any) -> Shape:
        """Sizes as numbers; those left open count with the value that the model was exported with."""
        numbers = tuple(size["as_int"] if "as_int" in size else size["as_expr"]["hint"]["as_int"] for size in sizes)
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError(f"sizes {numbers}")
        return numbers

    def _places(self) -> dict[str, tuple[str, Mapping[str, Any], str]]:
        """Graph input -> (its name in the module, how its data is stored, the folder of that)."""
        stored = {
            kind: (self.json(f"data/{folder}/model_{folder}_config.json")["config"], f"data/{folder}/")
            for kind, folder in (("weight", "weights"), ("constant", "constants"))
        }
        places = {}
        for spec in self.signature["input_specs"]:
            for kind, value in spec.items():
                name = value.get("parameter_name") or value.get("buffer_name") or value.get("tensor_constant_name")
                found = [(config[name], folder) for config, folder in stored.values() if name in config]
                if kind == "parameter" and not found:
                    raise self.refuse(f"has no data for the parameter {name!r}; export it again")
                if kind != "user_input" and found:
                    places[value["arg"]["name"]] = (name, *found[0])
        return places

    def spec(self, wanted: Sequence[int] | None) -> ModelSpec:
        inputs = [spec["user_input"]["arg"] for spec in self.signature["input_specs"] if "user_input" in spec]
        images = [argument["as_tensor"]["name"] for argument in inputs if "as_tensor" in argument]
        if not images or len(self.shapes[images[0]]) < 2 or 0 in self.shapes[images[0]]:
            raise self.refuse("takes no batch of images as its input")
        image = self.shapes[images[0]]
        if wanted is not None and tuple(wanted) != image[1:]:
            raise ConfigError(f"input shape {tuple(wanted)} does not fit {self.path}, exported for {image[1:]}")
        self.recorder, self.batch, self.of_image = GraphRecorder(), image[0], {images[0]}
        for node in self.graph["nodes"]:
            self._record(node)
        specs = [spec["parameter"]["arg"]["name"] for spec in self.signature["input_specs"] if "parameter" in spec]
        parameters = {self.weight(name) for name in specs}
        return self.recorder.spec(self.path.stem, image[1:], sum(weight.size for weight in parameters))

    def _record(self, node: Mapping[str, Any]) -> None:
        target = node["target"]
        name = _module_path(node) or node.get("name") or target
        arguments = {entry["name"]: self._value(entry["arg"]) for entry in node["inputs"]}
        outputs = [self._value(output) for output in node["outputs"]]
        if not self.of_image.isdisjoint(_names(arguments.values())):
            self.of_image.update(_names(outputs))
        self.recorder.batch = self.batch if not self.of_image.isdisjoint(_names(outputs)) else 1
        match = _TARGET.fullmatch(target)
        if match is None:
            if not _PYTHON.fullmatch(target):
                self.recorder.uncounted(name, target[:100])
            return
        operation, overload = match.groups()
        if conv := _CONV.fullmatch(operation):
            self._conv(name, arguments, outputs, int(conv.group(2)), conv.group(1) is not None)
        elif operation in ("convolution", "_convolution"):
            self._conv(name, arguments, outputs, len(arguments["stride"]), arguments["transposed"])
        elif operation in _OPERATIONS:
            _OPERATIONS[operation](self, name, arguments, outputs)
        elif not _is_free(operation, overload):
            self.recorder.uncounted(name, f"aten.{operation}.{overload}")

    def _value(self, argument: Mapping[str, Any]) -> Any:
        """An argument of a node; tensors as their names, sizes that the graph computes as None."""
        ((kind, value),) = argument.items()
        if kind == "as_tensor":
            return value["name"]
        if kind in ("as_tensors", "as_optional_tensors"):
            return [tensor.get("name") or tensor.get("as_tensor", {}).get("name") for tensor in value]
        if kind == "as_sym_ints":
            return [size.get("as_int") for size in value]
        return value if kind in ("as_int", "as_ints", "as_bool", "as_float", "as_floats", "as_string") else None

    def weight(self, name: str) -> Weight:
        """The stored tensor that a graph input is; for a value that the graph computes, one with unknown nonzeros."""
        if name not in self.weights:
            if name in self.places:
                label, place, folder = self.places[name]
                # Tied weights are one entry of the archive, and one weight here.
                entry = f"{folder}{place['path_name']} at {place['tensor_meta']['storage_offset']}"
                self.weights[name] = Weight(entry, self.shapes[name], self._nonzeros(label, place, folder, name))
            else:
                self.weights[name] = Weight(name, self.shapes[name], None)
        return self.weights[name]

    def optional(self, name: str | None) -> Weight | None:
        return None if name is None else self.weight(name)

    def _nonzeros(self, label: str, place: Mapping[str, Any], folder: str, name: str) -> int:
        meta = place["tensor_meta"]
        if place["use_pickle"]:
            raise self.refuse(f"holds {label!r} as a pickle, which is never read; export the model with plain tensors")
        dtype, entry = _DTYPES[meta["dtype"]], f"{self.prefix}{folder}{place['path_name']}"
        data = bytearray(self.archive.read(entry))
        sizes, strides = self._shape(meta["sizes"]), self._shape(meta["strides"])
        offset = self._shape([meta["storage_offset"]])[0]
        if sizes != self.shapes[name] or not view_fits(sizes, strides, offset, len(data) // dtype.itemsize):
            raise self.refuse(f"holds {label!r} of sizes {sizes} at {offset} in {len(data)} bytes, which does not fit")
        self.viewed += len(data)
        if self.viewed > MAX_VIEWS * sum(self.sizes.values()):
            raise self.refuse(f"shows the same bytes as weights over {MAX_VIEWS} times")
        if 0 in sizes:
            return 0
        storage = torch.frombuffer(data, dtype=dtype, count=len(data) // dtype.itemsize)
        tensor = storage.as_strided(sizes, strides, offset)
        if not is_finite(tensor):
            self.not_finite.append(label)
        return int(torch.count_nonzero(tensor))

    def _conv(self, name: str, given: Mapping[str, Any], outputs: list[str], space: int, transposed: bool) -> None:
        x, y = self.shapes[given["input"]], self.shapes[outputs[0]]
        weight = self.weight(given["weight"])
        stride, dilation = _sizes(given.get("stride"), space, 1), _sizes(given.get("dilation"), space, 1)
        padding = given.get("padding")
        if isinstance(padding, str):
            spans = [gap * (size - 1) for gap, size in zip(dilation, weight.shape[2:], strict=True)]
            total = tuple(spans) if padding == "same" else (0,) * space
        else:
            total = tuple(2 * size for size in _sizes(padding, space, 0))
        self.recorder.conv(
            *(name, x, y, weight, self.optional(given.get("bias"))),
            stride=stride,
            padding=total,
            dilation=dilation,
            groups=given.get("groups") or 1,
            transposed=transposed,
        )

    def linear(self, name: str, given: Mapping[str, Any], outputs: list[str]) -> None:
        x, y = self.shapes[given["input"]], self.shapes[outputs[0]]
        self.recorder.linear(name, x, y, self.weight(given["weight"]), self.optional(given.get("bias")))

    def product(self, name: str, given: Mapping[str, Any], outputs: list[str]) -> None:
        """mm, bmm, matmul, mv, dot and their sums: the factors are the last two tensors, the second may be stored."""
        *bias, left, right = (value for value in given.values() if isinstance(value, str) and value in self.shapes)
        shapes = self.shapes[left], self.shapes[right]
        if right not in self.places or len(shapes[1]) != 2 or len(shapes[0]) < 2:
            return self.recorder.matmul(name, *shapes)
        stored = self.weight(bias[0]) if bias and bias[0] in self.places else None
        return self.recorder.linear(name, shapes[0], self.shapes[outputs[0]], self.weight(right), stored)

    def einsum(self, name: str, given: Mapping[str, Any], outputs: list[str]) -> None:
        self.recorder.einsum(name, given["equation"], [self.shapes[tensor] for tensor in given["tensors"]])

    def attention(self, name: str, given: Mapping[str, Any], outputs: list[str]) -> None:
        query, key, value = (self.shapes[given[argument]] for argument in ("query", "key", "value"))
        self.recorder.matmul(name, query, (*key[:-2], key[-1], key[-2]))
        self.recorder.matmul(name, (*query[:-1], key[-2]), value)

    def norm(self, name: str, given: Mapping[str, Any], outputs: list[str]) -> None:
        weights = [self.weight(given[part]) for part in ("weight", "bias") if given.get(part)]
        x = self.shapes[given["input"]]
        self.recorder.free(name, "norm", x, x, *weights)

    def embedding(self, name: str, given: Mapping[str, Any], outputs: list[str]) -> None:
        x, y = self.shapes[given["indices"]], self.shapes[outputs[0]]
        self.recorder.free(name, "embedding", x, y, self.weight(given["weight"]))


def _module_path(node: Mapping[str, Any]) -> str:
    """The path of the innermost module that the operation was called in: ``key,path,class`` joined by semicolons."""
    stack = node.get("metadata", {}).get("nn_module_stack", "")
    parts = stack.rpartition(";")[2].split(",")
    return parts[1] if len(parts) == 3 else ""


def _names(values: Iterable[Any]) -> set[str]:
    """The tensors among the values, by name; strings that are none do no harm."""
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return {item for item in flat if isinstance(item, str)}


def _sizes(value: Any, count: int, default: int) -> Shape:
    numbers = (value,) if isinstance(value, int) else tuple(value or (default,))
    numbers = numbers * count if len(numbers) == 1 else numbers
    if len(numbers) != count or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError(f"{numbers} where {count} sizes were expected")
    return numbers


def _is_free(operation: str, overload: str) -> bool:
    """Whether ``describe`` takes the operation for free: only its tags are looked up, it is never called."""
    plain = operation.rstrip("_")
    if plain in FREE_OPERATIONS or operation in FREE_OPERATIONS or plain in _COMPOSITES or operation in _COMPOSITES:
        return True
    packet = getattr(torch.ops.aten, operation, None)
    function = getattr(packet, overload, None) if packet is not None else None
    if not isinstance(function, torch._ops.OpOverload):
        return False
    return function.is_view or torch.Tag.pointwise in function.tags


_OPERATIONS: dict[str, Callable[[_Reader, str, Mapping[str, Any], list[str]], None]] = {
    "linear": _Reader.linear,
    **dict.fromkeys(("mm", "bmm", "matmul", "mv", "dot", "addmm", "baddbmm"), _Reader.product),
    "einsum": _Reader.einsum,
    "scaled_dot_product_attention": _Reader.attention,
    **dict.fromkeys(("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"), _Reader.norm),
    "embedding": _Reader.embedding,
}
"""Operations beside convolutions that ``describe`` lists, with how each is counted."""
