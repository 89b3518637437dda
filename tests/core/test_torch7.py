"""Torch7 files: values and networks against an independent writer and torch's own convolutions; damage and cycles."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch7_files import Func, Obj, Writer, conv, lookup, sequential

from lcnn_core.checkpoint import torch7, torch7_layers
from lcnn_core.checkpoint.opening import open_model
from lcnn_core.counting import count_layer
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError, ShapeError

RNG = np.random.default_rng(7)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def t7(tmp_path):
    def write(value, order="<", cuda=False):
        path = tmp_path / "model.t7"
        path.write_bytes(value if isinstance(value, bytes) else Writer(order, cuda).dump(value))
        return path

    return write


# --- values


@pytest.mark.parametrize("order", ["<", ">"])
def test_every_kind_of_value_in_both_byte_orders(t7, order):
    shared = {"x": 1}
    value = {"n": -2.5, "s": "größe", "yes": True, "no": False, "a": shared, "b": shared, 1: "one", "none": None}
    read = torch7.read(t7(value, order))
    assert {key: read.items[key] for key in ("n", "s", "yes", "no", 1, "none")} == {
        **{"n": -2.5, "s": "größe", "yes": True, "no": False, 1: "one", "none": None}
    }
    assert read.items["a"] is read.items["b"]
    assert read.items["a"].items == {"x": 1.0}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "i2", "u1", "i1"])
def test_tensors_of_every_type(t7, order, dtype):
    array = (RNG.standard_normal((3, 4)) * 50).astype(dtype)
    read = torch7.read(t7({"t": array, "transposed": array.T}, order)).items
    assert torch.equal(read["t"], torch.from_numpy(array))
    assert torch.equal(read["transposed"], torch.from_numpy(array.T.copy()))


def test_cuda_tensors_are_read_as_their_numbers(t7):
    array = floats(2, 2)
    assert torch.equal(torch7.read(t7([array], cuda=True)).array()[0], torch.from_numpy(array))


def test_empty_tensors_and_tensors_without_storage(t7):
    writer = Writer()
    writer.ints(4, 1)
    for text in ("V 1", "torch.FloatTensor"):
        writer.text(text)
    writer.ints(0)
    writer.longs(1)
    writer.value(None)
    assert torch7.read(t7(bytes(writer.out))).shape == (0,)


def test_unknown_classes_and_functions_are_data(t7):
    value = Obj("os.execute", {"callback": Func(b"\x1bLua rm -rf", {"up": 1}), "old": Func(b"x", tag=6)})
    read = torch7.read(t7([value, Obj("nn.Legacy", {"a": 1}, version=None), Func(b"abc", tag=7)])).array()
    assert (read[0].class_name, read[1].class_name) == ("os.execute", "nn.Legacy")
    assert read[0].fields["callback"].size == 11
    assert read[0].fields["callback"].upvalues.items == {"up": 1.0}
    assert read[2].size == 3


def test_cycles_are_kept_as_cycles(t7):
    table: dict = {"name": "loop"}
    table["self"] = table
    read = torch7.read(t7(table))
    assert read.items["self"] is read


# --- damage


def test_truncation_at_every_offset_is_a_checkpoint_error(t7):
    whole = Writer().dump({"layer": lookup(floats(2, 3), floats(4, 2, 1, 1), floats(4), 0.1), "f": Func(b"code")})
    torch7.read(t7(whole))
    for end in range(len(whole)):
        with pytest.raises(CheckpointError):
            torch7.read(t7(whole[:end]))


def tensor_bytes(sizes, strides, offset, entries, room=None) -> bytes:
    writer = Writer()
    writer.ints(4, 1)
    writer.text("V 1")
    writer.text("torch.FloatTensor")
    writer.ints(len(sizes))
    writer.longs(*sizes, *strides, offset)
    writer.ints(4, 2)
    writer.text("V 1")
    writer.text("torch.FloatStorage")
    writer.longs(entries)
    writer.out += bytes(4 * (entries if room is None else room))
    return bytes(writer.out)


@pytest.mark.parametrize(
    ("sizes", "strides", "offset", "entries", "room", "message"),
    [
        ((2, 3), (3, 1), 2, 6, None, r"sizes \(2, 3\), strides \(3, 1\) at 2 on a storage of 6 entries"),
        ((1 << 62, 1 << 62), (0, 0), 1, 4, None, "each entry once"),
        ((1 << 40,), (0,), 1, 1, None, "each entry once"),
        ((4,), (-1,), 4, 4, None, "strides"),
        ((-1,), (1,), 1, 4, None, "sizes"),
        ((4,), (1,), 0, 4, None, "at 0"),
        ((4,), (1,), 1, 1 << 60, 4, f"claims {1 << 62} more bytes where it has 16"),
        ((4,), (1,), 1, 1 << 62, 4, "more bytes"),
        ((4,), (1,), 1, -1, 4, "claims -4 more bytes"),
    ],
)
def test_tensors_that_reach_beyond_their_storage(t7, sizes, strides, offset, entries, room, message):
    with pytest.raises(CheckpointError, match=message):
        torch7.read(t7(tensor_bytes(sizes, strides, offset, entries, room)))


def test_one_storage_seen_over_and_over_is_refused(t7):
    writer = Writer()
    writer.ints(3, 1, 1000)
    for index in range(1000):
        writer.value(index + 1)
        body = tensor_bytes((40_000,), (1,), 1, 40_000)
        if not index:
            writer.out += body.replace(struct.pack("<2i", 4, 1), struct.pack("<2i", 4, 7), 1)
        else:
            head = body[: body.index(struct.pack("<2i", 4, 2))]
            writer.out += struct.pack("<2i", 4, 10 + index) + head[8:] + struct.pack("<2i", 4, 2)
    with pytest.raises(CheckpointError, match="over and over"):
        torch7.read(t7(bytes(writer.out)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"starts with b''"),
        (b"4\n1\n3\nV 1\n", "ASCII form of Torch7; expected the binary form"),
        (b"\x89PNG\r\n", "no Torch7 value"),
        (struct.pack("<5i", 3, 1, 1, 9, 0), "has a value of type 9"),
        (struct.pack("<3i", 3, 1, -1), "a table of -1 entries"),
        (struct.pack("<3i", 3, 1, 1 << 30), "a table of 1073741824 entries with 0 bytes left"),
        (struct.pack("<2i", 2, -4), "claims -4 more bytes"),
        (struct.pack("<2i", 2, 1 << 30), "a string of 1073741824 bytes"),
        (struct.pack("<5i", 3, 1, 1, 0, 0), "a key that is nil"),
        (struct.pack("<3id", 3, 1, 1, 0) , "value of type|a key"),
        (struct.pack("<4id", 3, 1, 1, 1, float("nan")) + bytes(8), "a key that is nil, not a number"),
        (struct.pack("<7i", 3, 1, 1, 5, 1, 4, 1), "refers to value 1 as a object"),
    ],
)  # fmt: skip
def test_bytes_that_are_no_torch7_file(t7, data, message):
    with pytest.raises(CheckpointError, match=message):
        torch7.read(t7(data))


def test_depth_and_number_of_values_are_bounded(t7):
    deep = b"".join(struct.pack("<3i", 3, index + 1, 1) + struct.pack("<2i", 5, 1) for index in range(5000))
    with pytest.raises(CheckpointError, match="over 200 deep"):
        torch7.read(t7(deep))
    many = struct.pack("<3i", 3, 1, 600_000) + 600_000 * (struct.pack("<2i", 5, 1) + struct.pack("<2i", 5, 0))
    with pytest.raises(CheckpointError, match="over 1000000 values"):
        torch7.read(t7(many))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.t7 cannot be read: No such file"):
        torch7.read(tmp_path / "none.t7")


# --- networks


def network(t7, *modules, **options) -> torch.nn.Module:
    return torch7_layers.to_module(torch7.read(t7(sequential(*modules), **options)), "model.t7")


def test_the_published_layer_computes_what_its_two_convolutions_do(t7):
    dictionary, p, bias = floats(3, 4), floats(5, 3, 3, 3), floats(5)
    net = network(t7, lookup(dictionary, p, bias, 0.5, stride=2, pad=1))
    x = torch.randn(2, 4, 9, 9)
    kept = torch.from_numpy(np.where(np.abs(p) > 0.5, p, 0))
    response = F.conv2d(x, torch.from_numpy(dictionary).reshape(3, 4, 1, 1))
    expected = F.conv2d(response, kept, torch.from_numpy(bias), stride=2, padding=1)
    torch.testing.assert_close(net(x), expected)
    (layer,) = describe(net, (4, 9, 9)).layers
    count = count_layer(layer)
    assert layer.kind == "lookup_conv"
    assert count.lookups == 25 * int((np.abs(p) > 0.5).sum())
    assert count.dictionary == 3 * 4 * 11 * 11


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_convolutional_network_with_branches(t7, order):
    w1, b1, w2, w3, w4 = floats(6, 2, 3, 3), floats(6), floats(6, 6, 1, 1), floats(10, 6 * 4 * 4), floats(10)
    mean, var, scale, shift = floats(6), np.abs(floats(6)) + 0.5, floats(6), floats(6)
    norm = {"running_mean": mean, "running_var": var, "weight": scale, "bias": shift, "eps": 1e-3}
    branches = Obj("nn.ConcatTable", {"modules": [conv(w2), Obj("nn.Identity")]})
    net = network(
        t7,
        conv(w1, b1, pad=1),
        Obj("nn.SpatialBatchNormalization", norm),
        Obj("nn.ReLU", {"inplace": True}),
        Obj("cudnn.SpatialMaxPooling", {"kW": 2, "kH": 2, "dW": 2, "dH": 2, "ceil_mode": True}),
        branches,
        Obj("nn.CAddTable"),
        Obj("nn.View", {"size": np.array([6 * 4 * 4])}),
        Obj("nn.Dropout", {"p": 0.5}),
        Obj("nn.Linear", {"weight": w3, "bias": w4}),
        order=order,
    )
    x = torch.randn(3, 2, 8, 8)
    t = [torch.from_numpy(array) for array in (w1, b1, w2, w3, w4, mean, var, scale, shift)]
    y = F.relu(F.batch_norm(F.conv2d(x, t[0], t[1], padding=1), t[5], t[6], t[7], t[8], eps=1e-3))
    y = F.max_pool2d(y, 2, ceil_mode=True)
    y = F.linear((F.conv2d(y, t[2]) + y).flatten(1), t[3], t[4])
    torch.testing.assert_close(net(x), y)


def test_groups_join_concat_and_shared_modules(t7):
    shared = conv(floats(4, 4, 1, 1))
    grouped = conv(floats(4, 2, 3, 3), pad=1)
    grouped.class_name, grouped.fields["nInputPlane"], grouped.fields["groups"] = "cudnn.SpatialConvolution", 4, 2
    concat = Obj("nn.Concat", {"dimension": 2, "modules": [shared, shared, grouped]})
    table = Obj(
        "nn.ConcatTable", {"modules": [Obj("nn.Identity"), Obj("nn.SpatialAveragePooling", {"kW": 1, "kH": 1})]}
    )
    net = network(t7, concat, table, Obj("nn.JoinTable", {"dimension": 2}))
    assert net[0][0] is net[0][1]
    assert net(torch.randn(2, 4, 5, 5)).shape == (2, 24, 5, 5)


def test_modules_of_one_tensor_share_its_memory(t7):
    weight = floats(5, 5)
    layers = [Obj("nn.Linear", {"weight": weight}) for _ in range(4)]
    net = network(t7, *layers)
    assert len({layer.weight.data_ptr() for layer in net}) == 1


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        (lambda net: {"model": net, "epoch": 3}, None),
        (lambda net: [net, "history"], None),
        (lambda net: Obj("nn.DataParallelTable", {"modules": [net, net]}), None),
        (lambda net: {"weights": 1}, "holds no network"),
        (lambda net: "text", "holds no network"),
        (lambda net: Obj("nn.SpatialFancyConvolution"), "'nn.SpatialFancyConvolution' is not known"),
        (lambda net: Obj("evil.Sequential", {"modules": [net]}), "'evil.Sequential' is not known"),
    ],
)
def test_where_the_network_is_looked_for(t7, wrapped, message):
    path = t7(wrapped(sequential(conv(floats(2, 3, 1, 1)))))
    if message is None:
        assert torch7_layers.to_module(torch7.read(path), "x")(torch.zeros(1, 3, 2, 2)).shape == (1, 2, 2, 2)
    else:
        with pytest.raises(CheckpointError, match=f"model.t7: .*{re.escape(message)}"):
            open_model(path)


def changed(layer: Obj, **fields) -> Obj:
    layer.fields |= fields
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lookup(floats(3, 4), floats(5, 6, 3, 3), None, 0.1),
            "lookups into 6 of them: an index outside the dictionary",
        ),
        (changed(lookup(floats(3, 4), floats(5, 3, 1, 1), None, 0.1), sparseTh=-1.0), "sparseTh -1.0"),
        (changed(lookup(floats(3, 4), floats(5, 3, 1, 1), None, 0.1), sparseTh=float("inf")), "sparseTh inf"),
        (changed(lookup(floats(3, 4), floats(5, 3, 1, 1), None, 0.1), poolconv=conv(floats(3, 4, 2, 2))), "no 1x1"),
        (changed(conv(floats(2, 3, 1, 1)), nOutputPlane=5), r"has the weight \(2, 3\); expected numbers of shape \(5,"),
        (changed(conv(floats(2, 3, 1, 1)), kW=1e300), "kW"),
        (changed(conv(floats(2, 3, 1, 1)), dW=0), "has dW 0.0; expected a whole number of 1 or more"),
        (changed(conv(floats(2, 3, 1, 1)), padW=-1), "padW -1.0"),
        (changed(conv(floats(2, 3, 1, 1)), padW=float("nan")), "padW nan"),
        (changed(conv(floats(2, 3, 1, 1)), padW=1e6, padH=0), "expected 1024 or less"),
        (changed(conv(floats(2, 3, 1, 1)), groups=2), "groups 2"),
        (changed(conv(floats(2, 3, 1, 1)), weight="none"), "has the weight 'none'"),
        (Obj("nn.SpatialMaxPooling", {"kW": 2, "kH": 2, "padW": 2, "padH": 2}), "at most half"),
        (Obj("nn.Sequential", {}), "no list of modules"),
        (Obj("nn.Linear", {}), "no weight of two dimensions"),
        (Obj("nn.SpatialBatchNormalization", {}), "no running_mean"),
        (Obj("nn.View", {"size": 3}), "no list of sizes"),
    ],
)
def test_layers_whose_fields_do_not_fit(t7, layer, message):
    with pytest.raises(CheckpointError, match=re.escape(message) if "\\" not in message else message):
        network(t7, layer)


def test_a_module_inside_itself_and_one_doubled_beyond_measure(t7):
    loop = sequential(Obj("nn.ReLU"))
    loop.fields["modules"].append(loop)
    with pytest.raises(CheckpointError, match="contains itself"):
        network(t7, loop)
    bomb = Obj("nn.ReLU")
    for _ in range(40):
        bomb = sequential(bomb, bomb)
    with pytest.raises(CheckpointError, match="expected at most 10000"):
        network(t7, bomb)
    wide = changed(conv(floats(1, 1, 1, 1)), padW=1000, padH=1000)
    with pytest.raises(CheckpointError, match="expected at most 10000 and 1024"):
        network(t7, wide)


def test_weights_that_are_not_finite_are_counted_and_reported(t7):
    weight = floats(2, 3, 1, 1)
    weight[0, 0] = np.nan
    opened = open_model(t7(sequential(conv(weight))), input_shape=(3, 4, 4))
    assert opened.notes == ("1 tensors hold NaN or infinity, 0.weight first; they count as nonzero",)
    (layer,) = describe(opened.model, opened.input_shape).layers
    assert layer.weight_nnz == 6


def test_a_table_where_a_tensor_is_expected_is_a_shape_error(t7):
    net = network(t7, Obj("nn.ConcatTable", {"modules": [Obj("nn.Identity")]}), conv(floats(2, 3, 1, 1)))
    with pytest.raises(ShapeError, match="does not run through the model"):
        describe(net, (3, 4, 4))


def test_values_that_would_fill_the_memory_are_refused_before_anything_is_computed(t7):
    """400 kB of weights for 100,000 channels: on 224 x 224 pixels their values are 20 GB."""
    path = t7(sequential(conv(np.ones((100_000, 1, 1, 1), np.float32)), Obj("nn.ReLU")))
    with pytest.raises(CheckpointError, match=r"would take \d{11} bytes for the values of one image of shape \(1, 224"):
        open_model(path, input_shape=(1, 224, 224))
    opened = open_model(path, input_shape=(1, 4, 4))
    assert describe(opened.model, (1, 4, 4)).activation_bytes < 1 << 26
