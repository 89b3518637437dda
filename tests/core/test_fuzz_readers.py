"""Every reader against damaged and made-up files: CheckpointError or ConfigError, or a model; never anything else.

Small good files of each format are changed byte by byte, cut, and pieced together; pickles, Torch7 values, headers and
graphs are also made from their grammar. What fuzzing found is in ``FOUND``.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from test_pickles import MAGIC, number, tensor_pickle, text
from test_state_dicts import safetensors_bytes
from torch import nn
from torch7_files import Obj, Writer, conv, lookup, sequential

from lcnn_core.checkpoint import Checkpoint, save
from lcnn_core.checkpoint.opening import INPUTS, open_model
from lcnn_core.counting import count_layer
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.models import build
from lcnn_core.spec import ModelSpec

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
"""Files a test makes; FUZZ_EXAMPLES=100000 looks for new findings."""

fuzz = settings(
    max_examples=EXAMPLES,
    derandomize=EXAMPLES == 40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def to_bytes(write) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def small_onnx() -> bytes:
    weight = numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", (1, 1, 2, 2)), ("y", None))
    ]
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def small_pt2() -> bytes:
    exported = torch.export.export(nn.Conv2d(1, 2, 1).eval(), (torch.zeros(1, 1, 2, 2),))
    return to_bytes(lambda out: torch.export.save(exported, out))


def small_checkpoint(tmp_path, suffix: str) -> bytes:
    path = tmp_path / f"own{suffix}"
    model = build("small-resnet", widths=(1,), blocks=(1,))
    save(path, Checkpoint.from_model(model, architecture="small-resnet", arguments={"widths": (1,), "blocks": (1,)}))
    return path.read_bytes()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> dict[str, list[bytes]]:
    """Good small files by suffix."""
    folder = tmp_path_factory.mktemp("seeds")
    state = {"w": torch.ones(2, 1), "b": torch.ones(2)}
    layer = lookup(np.ones((2, 1), np.float32), np.ones((3, 2, 1, 1), np.float32), np.ones(3, np.float32), 0.5)
    files = {
        ".pt": [
            small_checkpoint(folder, ".pt"),
            to_bytes(lambda out: torch.save({"state_dict": state, "epoch": 1}, out)),
            to_bytes(lambda out: torch.save(state, out, _use_new_zipfile_serialization=False)),
        ],
        ".safetensors": [small_checkpoint(folder, ".safetensors"), safetensors.torch.save(state)],
        ".onnx": [small_onnx()],
        ".pt2": [small_pt2()],
        ".t7": [Writer(order).dump(sequential(layer, Obj("nn.ReLU"))) for order in "<>"],
    }
    for suffix, contents in files.items():
        for content in contents:
            opened(folder, suffix, content)
    return files


def opened(folder, suffix: str, content: bytes):
    """Open and count the bytes; None for a file that is refused as it should be. All else that is raised fails."""
    path = folder / f"fuzzed{suffix}"
    path.write_bytes(content)
    try:
        found = open_model(path)
    except (CheckpointError, ConfigError) as error:
        message = str(error)
    else:
        if isinstance(found.model, ModelSpec):
            assert all(count_layer(layer).total >= 0 for layer in found.model.layers)
        return found
    assert "\n" not in message
    assert len(message) < 2000
    return None


SUFFIXES = [".pt", ".safetensors", ".onnx", ".pt2", ".t7"]
edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "set", "insert", "delete", "repeat", "number"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 255),
        st.integers(1, 12),
    ),
    min_size=1,
    max_size=4,
)
EXTREMES = [0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def edited(data: bytes, changes) -> bytes:
    out = bytearray(data)
    for kind, where, value, length in changes:
        at = int(where * (len(out) + 1))
        if kind == "flip" and at < len(out):
            out[at] ^= 1 << value % 8
        elif kind == "set":
            out[at : at + 1] = bytes([value])
        elif kind == "insert":
            out[at:at] = bytes([value]) * length
        elif kind == "delete":
            del out[at : at + length]
        elif kind == "repeat":
            out[at:at] = out[at : at + 8 * length]
        elif kind == "number":
            size = 4 if value % 2 else 8
            out[at : at + size] = struct.pack("<Q", EXTREMES[value % len(EXTREMES)])[:size]
    return bytes(out)


def test_the_list_of_formats_is_the_list_of_inputs():
    assert {INPUTS[suffix] for suffix in SUFFIXES} == set(INPUTS.values())


@pytest.mark.parametrize("suffix", SUFFIXES)
@fuzz
@given(data=st.data(), changes=edits)
def test_changed_bytes(suffix, data, changes, seeds, tmp_path):
    seed = data.draw(st.sampled_from(seeds[suffix]))
    opened(tmp_path, suffix, edited(seed, changes))


@pytest.mark.parametrize("suffix", SUFFIXES)
@fuzz
@given(data=st.data(), where=st.floats(0, 1))
def test_cut_bytes(suffix, data, where, seeds, tmp_path):
    seed = data.draw(st.sampled_from(seeds[suffix]))
    opened(tmp_path, suffix, seed[: int(where * len(seed))])


@pytest.mark.parametrize("suffix", SUFFIXES)
@fuzz
@given(content=st.binary(max_size=200))
def test_any_bytes(suffix, content, tmp_path):
    assert opened(tmp_path, suffix, content) is None


# --- pickles from their grammar


def pieces() -> st.SearchStrategy[bytes]:
    """Opcodes that torch's unpickler knows, each whole, with arguments of the kinds that checkpoints hold."""
    names = st.sampled_from(["storage", "0", "cpu", "weight", "state_dict", "__class__", "device"])
    globals_ = st.sampled_from(
        ["collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter", "torch Size",
         "torch FloatStorage", "torch LongStorage", "torch float16", "torch device", "collections Counter",
         "__builtin__ set", "torch._utils _rebuild_tensor_v3", "torch.storage UntypedStorage", "torch Tensor"]
    )  # fmt: skip
    simple = [bytes([opcode]) for opcode in b"()]}N\x88\x89t\x85\x86\x87RbQsuae.02\x81\x93\x94"]
    return st.one_of(
        st.sampled_from(simple),
        names.map(lambda name: b"X" + text(name)),
        globals_.map(lambda name: f"c{name.replace(' ', chr(10))}\n".encode()),
        st.integers(-(1 << 70), 1 << 70).map(number),
        st.integers(0, 5).map(number),
        st.integers(0, 6).map(lambda i: b"q" + bytes([i])),
        st.integers(0, 6).map(lambda i: b"h" + bytes([i])),
        st.builds(
            lambda numel, size, stride, offset: tensor_pickle(numel, size, stride, offset)[2:-1],
            *(st.integers(0, 9), st.tuples(st.integers(0, 9)), st.tuples(st.integers(0, 3)), st.integers(0, 4)),
        ),
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@settings(fuzz, max_examples=4 * EXAMPLES)
@given(ops=st.lists(pieces(), max_size=25))
def test_pickles_made_of_opcodes(zipped, ops, tmp_path):
    data = b"\x80\x02" + b"".join(ops) + b"."
    if zipped:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name, content in (("a/data.pkl", data), ("a/version", b"3\n"), ("a/data/0", bytes(16))):
                archive.writestr(name, content)
        opened(tmp_path, ".pt", out.getvalue())
    else:
        head = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {"little_endian": True}))
        storage = struct.pack("<q", 4) + bytes(16)
        opened(tmp_path, ".pt", head + data + pickle.dumps(["0"], 2) + storage)


# --- Torch7 values from their grammar

arrays = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda shape: np.ones((*shape, 1, 1), np.float32))
names = st.sampled_from(
    ["modules", "weight", "bias", "poolconv", "alignconv", "sparseTh", "nInputPlane", "nOutputPlane", "kW", "kH", "dW",
     "padW", "size", "running_mean", "running_var", "groups", "model", "dimension", "eps"]
)  # fmt: skip
classes = st.sampled_from(
    ["nn.Sequential", "nn.SpatialConvolution", "nn.Linear", "nn.ReLU", "nn.View", "nn.ConcatTable", "nn.CAddTable",
     "nn.SpatialBatchNormalization", "nn.SpatialMaxPooling", "nn.Concat", "nn.DataParallelTable", "any.thing"]
)  # fmt: skip
numbers = st.one_of(st.integers(-2, 4), st.floats(width=64), st.sampled_from([1e18, 2**31, 2**63]))
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        numbers,
        st.text(max_size=4),
        arrays,
        arrays.map(lambda a: a.reshape(-1)),
        arrays.map(conv),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(names, inner, max_size=4),
        st.builds(Obj, classes, st.dictionaries(names, inner, max_size=6)),
        st.lists(inner, max_size=3).map(lambda modules: sequential(*modules)),
        st.builds(lookup, arrays.map(lambda a: a[:, :, 0, 0]), arrays, st.none(), numbers),
    ),
    max_leaves=12,
)


@settings(fuzz, max_examples=4 * EXAMPLES)
@given(value=values, order=st.sampled_from("<>"), changes=st.one_of(st.just([]), edits))
def test_torch7_values_of_any_shape(value, order, changes, tmp_path):
    opened(tmp_path, ".t7", edited(Writer(order).dump(value), changes))


# --- safetensors headers and archive JSON from their grammar

small = st.integers(-1, 9) | st.sampled_from(EXTREMES)
entries = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "I64", "BOOL", "F8_E4M3", "X"]), "shape": st.lists(small, max_size=3)},
    optional={"data_offsets": st.lists(small, min_size=1, max_size=3), "extra": st.none()},
)
headers = st.dictionaries(st.sampled_from(["a", "b", "", "__metadata__"]), entries | st.none() | st.text(max_size=3))


@fuzz
@given(header=headers, size=st.integers(0, 40), metadata=st.none() | st.dictionaries(st.just("lcnn"), st.text()))
@example(header={}, size=0, metadata={"lcnn": "[" * 3000})
def test_safetensors_headers(header, size, metadata, tmp_path):
    document = header if metadata is None else {**header, "__metadata__": metadata}
    opened(tmp_path, ".safetensors", safetensors_bytes(json.dumps(document), bytes(size)))


json_values = st.recursive(
    st.none() | st.booleans() | small | st.sampled_from(["weight", "x", "as_tensor"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["name", "as_int", "arg"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(fuzz, max_examples=2 * EXAMPLES)
@given(data=st.data(), replacement=json_values)
def test_one_value_of_an_archives_json_replaced(data, replacement, seeds, tmp_path):
    with zipfile.ZipFile(io.BytesIO(seeds[".pt2"][0])) as archive:
        contents = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    chosen = data.draw(
        st.sampled_from([name for name in contents if name.endswith(("model.json", "weights_config.json"))])
    )
    document = json.loads(contents[chosen])
    spot, key = document, None
    while isinstance(spot, dict | list) and spot:
        keys = list(spot) if isinstance(spot, dict) else range(len(spot))
        parent, key = spot, data.draw(st.sampled_from(keys))
        spot = spot[key]
        if data.draw(st.integers(0, 4)) == 0:
            break
    parent[key] = replacement
    contents[chosen] = json.dumps(document).encode()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    opened(tmp_path, ".pt2", out.getvalue())


# --- ONNX graphs from their grammar

sizes = st.integers(-1, 4) | st.sampled_from([1 << 31, 1 << 40, (1 << 63) - 1])
operators = st.sampled_from(
    """Conv ConvTranspose Gemm MatMul Einsum Reshape Expand ConstantOfShape Range Shape Concat Gather Slice Transpose
    BatchNormalization Relu Constant Split Tile DequantizeLinear Pad""".split()  # noqa: SIM905
)
value_names = st.sampled_from(["x", "w", "s", "a", "b", "y", ""])
attributes = st.fixed_dictionaries(
    {},
    optional={
        "pads": st.lists(sizes, min_size=1, max_size=4),
        "strides": st.lists(sizes, min_size=1, max_size=2),
        "dilations": st.lists(sizes, min_size=1, max_size=2),
        "group": sizes,
        "perm": st.lists(st.integers(-2, 4), min_size=1, max_size=4),
        "auto_pad": st.sampled_from(["SAME_UPPER", "VALID", "odd"]),
        "equation": st.sampled_from(["ij,jk->ik", "ij->i", "bij,bjk->bik", "...a,ab->...b"]),
        "transA": st.integers(0, 1),
        "axis": sizes,
        "value_ints": st.lists(sizes, min_size=1, max_size=3),
        "to": st.integers(0, 30),
    },
)
nodes = st.lists(
    st.tuples(operators, st.lists(value_names, max_size=5), st.lists(value_names, min_size=1, max_size=2), attributes),
    min_size=1,
    max_size=5,
)


@settings(fuzz, max_examples=4 * EXAMPLES)
@given(
    nodes=nodes,
    shape=st.lists(sizes, max_size=5),
    weight=st.lists(st.integers(0, 3), max_size=4),
    lengths=st.lists(sizes),
)
def test_onnx_graphs(nodes, shape, weight, lengths, tmp_path):
    made = [helper.make_node(operator, given, out, **kw) for operator, given, out, kw in nodes]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [
        numpy_helper.from_array(np.ones(weight, np.float32), "w"),
        numpy_helper.from_array(np.array(lengths, np.int64), "s"),
    ]
    graph = helper.make_graph(made, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    opened(tmp_path, ".onnx", model.SerializeToString())


# --- what fuzzing found


def tensor_as_a_key() -> bytes:
    """atheris, t7: the check for NaN keys compared a tensor with itself."""
    writer = Writer()
    writer.ints(3, 9, 1)
    writer.value(np.ones(2))
    writer.value(None)
    return bytes(writer.out)


def a_text_longer_than_memory() -> bytes:
    """In the older form, a text that says it has 2 ** 62 bytes: Python would allocate them before reading."""
    return pickle.dumps(MAGIC, 2) + b"\x80\x02\x8d" + struct.pack("<Q", 1 << 62) + b"text."


FOUND = [(".t7", tensor_as_a_key), (".pt", a_text_longer_than_memory)]
"""Every file that fuzzing made and a reader once got wrong."""


@pytest.mark.parametrize(("suffix", "make"), FOUND)
def test_what_fuzzing_found_stays_fixed(suffix, make, tmp_path):
    assert opened(tmp_path, suffix, make()) is None
