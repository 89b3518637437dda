"""ONNX graphs: counts equal those of the exported module, nonzeros are its weights'; hostile files are refused."""

from __future__ import annotations

import struct

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from lcnn_core.checkpoint.onnx import read_spec
from lcnn_core.checkpoint.opening import open_model
from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.checkpoint.zoo import build_named
from lcnn_core.counting import count_layer
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupConv2d
from lcnn_core.onnx import export_onnx
from lcnn_core.spec import ModelSpec

RNG = np.random.default_rng(3)


class Net(nn.Module):
    """Every counted operator: grouped, dilated, transposed and 1-d convolutions, linear layers, products, an einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.line = nn.Conv1d(4, 6, 3)
        self.head = nn.Linear(6, 5)
        self.tokens = nn.Linear(6, 6, bias=False)

    def forward(self, x):
        x = self.up(torch.relu(self.grouped(F.relu(self.norm(self.stem(x))))))
        x = self.line(x.flatten(2)).transpose(1, 2)
        attention = torch.softmax(x @ self.tokens(x).transpose(1, 2), -1)
        x = torch.einsum("bij,bjk->bik", attention, x)
        return self.head(x.mean(1))


def sparse(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.data[torch.rand_like(parameter) < 0.6] = 0
    return model.eval()


def figures(spec: ModelSpec) -> list[tuple[int, int, int, int]]:
    """(MACs, skipped MACs, weight entries, nonzeros) of every layer that multiplies."""
    counted = [(count_layer(layer), layer) for layer in spec.layers]
    return [(c.total, c.skipped, layer.weight_size, layer.weight_nnz or 0) for c, layer in counted if c.total]


def exported(tmp_path, model, shape, batch=1, **options):
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (torch.randn(batch, *shape),), path, **{"dynamo": False, "verbose": False, **options})
    return path


@pytest.mark.parametrize("batch", [1, 3])
def test_every_operator_counts_as_the_module_does(tmp_path, batch):
    torch.manual_seed(1)
    model = sparse(Net())
    spec, odd = read_spec(exported(tmp_path, model, (3, 16, 12), batch, do_constant_folding=False))
    assert figures(spec) == figures(describe(model, (3, 16, 12)))
    assert (spec.input_shape, spec.weights_known, spec.uncounted, odd) == ((3, 16, 12), True, (), ())
    by_name = {layer.name: layer for layer in spec.layers}
    assert by_name["stem"].padding == (2, 4)
    assert by_name["up"].transposed
    assert by_name["grouped"].groups == 4


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_graphs_that_work_out_their_own_sizes(tmp_path, name):
    model = import_torchvision().models.get_model(name).eval()
    spec, _ = read_spec(exported(tmp_path, model, (3, 96, 96)))
    assert spec.uncounted == ()
    expected = describe(build_named(f"torchvision:{name}").model, (3, 96, 96))
    assert sum(count[0] for count in figures(spec)) == sum(count[0] for count in figures(expected))


def test_windows_and_attention_of_swin_like_blocks(tmp_path):
    """torchvision's own shifted window block, whose exported graph computes with shapes throughout."""
    models = import_torchvision().models
    block = models.swin_transformer.SwinTransformerBlock(8, 2, [4, 4], [2, 2]).eval()
    spec, _ = read_spec(exported(tmp_path, block, (8, 8, 8), do_constant_folding=False))
    assert spec.uncounted == ()
    assert sum(count[0] for count in figures(spec)) == sum(count[0] for count in figures(describe(block, (8, 8, 8))))


def test_our_export_of_a_lookup_network_counts_its_lookups(tmp_path):
    layer = LookupConv2d(4, 6, 3, padding=1, dictionary_size=2, threshold=0.1, bias=False)
    model = nn.Sequential(layer, nn.ReLU(), nn.Conv2d(6, 3, 1))
    export_onnx(model, torch.randn(1, 4, 7, 7), tmp_path / "m.onnx")
    spec = open_model(tmp_path / "m.onnx", input_shape=(4, 7, 7)).model
    used = sum(total - skipped for total, skipped, _, _ in figures(spec))
    kept = int((layer.coefficients.abs() > 0.1).sum())
    # The dictionary runs on the padded or the bare input, as the exporter chose; both are one MAC per entry.
    assert used - 49 * (kept + 18) in (8 * 49, 8 * 81)


# --- graphs by hand


def tensor(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def graph(nodes, initializers, shape=(1, 3, 8, 8), inputs=()) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    made = helper.make_graph(nodes, "g", [x, *inputs], [y], initializers)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def written(tmp_path, model) -> str:
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


WEIGHT = RNG.standard_normal((4, 3, 3, 3)).astype(np.float32) * (RNG.random((4, 3, 3, 3)) < 0.5)
CONV = helper.make_node("Conv", ["x", "w"], ["y"], name="c")


def one_conv(**changes) -> onnx.ModelProto:
    model = graph([CONV], [tensor("w", WEIGHT)])
    for key, value in changes.items():
        setattr(model.graph.initializer[0], key, value)
    return model


@pytest.mark.parametrize(
    ("attributes", "positions", "padding"),
    [
        ({}, 36, (0, 0)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 16, (1, 1)),
        ({"auto_pad": "SAME_LOWER"}, 64, (2, 2)),
        ({"auto_pad": "VALID"}, 36, (0, 0)),
        ({"pads": [1, 0, 0, 2]}, 7 * 8, (1, 2)),
    ],
)
def test_every_way_to_pad(tmp_path, attributes, positions, padding):
    model = graph([helper.make_node("Conv", ["x", "w"], ["y"], **attributes)], [tensor("w", WEIGHT)])
    spec, _ = read_spec(written(tmp_path, model))
    assert spec.layers[0].padding == padding
    assert figures(spec) == [(positions * 108, positions * int((WEIGHT == 0).sum()), 108, int((WEIGHT != 0).sum()))]


def test_weights_are_seen_through_what_only_moves_them_and_quantisation(tmp_path):
    quantised = RNG.integers(0, 4, (5, 12)).astype(np.uint8)
    zero = np.array([1, 2, 3, 0, 2], np.uint8)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[0, 1, 3, 2]),
        helper.make_node("Conv", ["x", "t"], ["a"], strides=[3, 3]),
        helper.make_node("Flatten", ["a"], ["f"]),
        helper.make_node("Slice", ["f", "begin", "end", "axis"], ["s"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], axis=0),
        helper.make_node("Gemm", ["s", "d"], ["y"], transB=1),
    ]
    given = [
        *(tensor("w", WEIGHT), tensor("q", quantised), tensor("zero", zero), tensor("scale", np.ones(5, np.float32))),
        *(tensor(name, np.array([value])) for name, value in (("begin", 0), ("end", 12), ("axis", 1))),
    ]
    spec, _ = read_spec(written(tmp_path, graph(nodes, given)))
    assert [layer.weight_nnz for layer in spec.layers] == [
        int((WEIGHT != 0).sum()),
        int((quantised != zero[:, None]).sum()),
    ]


def test_open_sizes_and_shapes_that_do_not_fit(tmp_path):
    path = written(tmp_path, graph([CONV], [tensor("w", WEIGHT)], shape=("n", 3, "h", "w")))
    with pytest.raises(ConfigError, match=r"leaves its input open, \(\?, 3, \?, \?\); give the input shape"):
        read_spec(path)
    assert read_spec(path, (3, 5, 6))[0].layers[0].output_shape == (4, 3, 4)
    with pytest.raises(ConfigError, match=r"input shape \(1, 5, 6\) does not fit .*whose input is \(\?, 3, \?, \?\)"):
        read_spec(path, (1, 5, 6))
    with pytest.raises(ConfigError, match="does not fit"):
        read_spec(path, (3, 5))


def test_what_has_no_formula_is_named(tmp_path):
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("LSTM", ["r", "w", "w"], ["l"], name="rnn"),
        helper.make_node("Attention", ["r"], ["b"], domain="com.microsoft", name="att"),
        helper.make_node("Conv", ["b", "w"], ["y"], name="after"),
    ]
    spec, _ = read_spec(written(tmp_path, graph(nodes, [tensor("w", WEIGHT)])))
    assert [(u.name, u.operation, u.reason) for u in spec.uncounted] == [
        ("rnn", "LSTM", "no formula for this operation"),
        ("att", "com.microsoft.Attention", "no formula for this operation"),
        ("after", "Conv", "its shapes are not known"),
    ]


def test_computed_weights_leave_the_nonzeros_unknown(tmp_path):
    nodes = [helper.make_node("Exp", ["w"], ["e"]), helper.make_node("Conv", ["x", "e"], ["y"])]
    spec, _ = read_spec(written(tmp_path, graph(nodes, [tensor("w", WEIGHT)])))
    assert (spec.weights_known, spec.layers[0].weight_nnz, spec.layers[0].weight_size) == (False, None, 108)


def test_values_that_are_not_finite_are_counted_and_reported(tmp_path):
    weight = np.full((4, 3, 1, 1), np.inf, np.float32)
    path = written(tmp_path, graph([CONV], [tensor("w", weight)]))
    opened = open_model(path)
    assert opened.notes == ("1 tensors hold NaN or infinity, w first; they count as nonzero",)
    assert opened.model.layers[0].weight_nnz == 12


# --- external data


def external(tmp_path, location: str, offset: int = 0, length: int | None = None):
    model = one_conv(data_location=TensorProto.EXTERNAL)
    stored = model.graph.initializer[0]
    stored.ClearField("raw_data")
    fields = {"location": location, "offset": offset, **({} if length is None else {"length": length})}
    for key, value in fields.items():
        stored.external_data.add(key=key, value=str(value))
    folder = tmp_path / "folder"
    folder.mkdir(exist_ok=True)
    return written(folder, model)


def test_external_data_inside_the_folder(tmp_path):
    path = external(tmp_path, "w.bin", offset=8, length=432)
    (path.parent / "w.bin").write_bytes(bytes(8) + WEIGHT.astype(np.float32).tobytes() + bytes(5))
    assert read_spec(path)[0].layers[0].weight_nnz == int((WEIGHT != 0).sum())


@pytest.mark.parametrize(
    "location", ["../w.bin", "/tmp/../{}/w.bin", "link.bin", "absent.bin", "", ".", "a/../../w.bin"]
)
def test_external_data_outside_the_folder(tmp_path, location):
    (tmp_path / "w.bin").write_bytes(bytes(432))
    path = external(tmp_path, location.format(tmp_path))
    (path.parent / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(CheckpointError, match="expected a file inside"):
        read_spec(path)


@pytest.mark.parametrize(
    ("offset", "length"), [(8, None), (0, 431), (-1, 432), (1 << 62, 432), (0, 1 << 62), ("x", None)]
)
def test_external_data_that_is_not_all_there(tmp_path, offset, length):
    path = external(tmp_path, "w.bin", offset, length)
    (path.parent / "w.bin").write_bytes(bytes(436))
    with pytest.raises(CheckpointError, match=r"is not all inside|does not hold what it announces"):
        read_spec(path)


# --- damage


def test_truncation_at_every_offset_is_a_checkpoint_error_or_still_a_graph(tmp_path):
    """protobuf has no end mark: a cut between two fields leaves a smaller message, which must be read or refused."""
    whole = one_conv().SerializeToString()
    path = tmp_path / "model.onnx"
    refused = 0
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        try:
            read_spec(path)
        except CheckpointError:
            refused += 1
    assert refused > 0.95 * len(whole)


def huge(dims) -> onnx.ModelProto:
    model = one_conv()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


@pytest.mark.parametrize("dims", [(1 << 40, 3, 3, 3), (1 << 62, 1 << 62), (-4, 3, 3, 3), (4, 3, 3), (0,), (4, 3, 3, 4)])
def test_initializers_that_do_not_hold_what_they_announce(tmp_path, dims):
    path = written(tmp_path, huge(dims))
    try:
        spec, _ = read_spec(path)
    except CheckpointError:
        return
    assert [u.operation for u in spec.uncounted] == ["Conv"]


def test_a_graph_that_asks_for_a_huge_constant_is_not_given_it(tmp_path):
    size = tensor("size", np.array([1 << 20, 1 << 20, 3, 3]))
    nodes = [helper.make_node("ConstantOfShape", ["size"], ["w"]), CONV]
    spec, _ = read_spec(written(tmp_path, graph(nodes, [size])))
    assert not spec.weights_known


@pytest.mark.parametrize(
    ("data", "message"),
    [(b"", "holds no graph"), (b"\xff\xff", "no ONNX file"), (struct.pack("<q", 7), "no ONNX file|holds no graph")],
)
def test_bytes_that_are_no_graph(tmp_path, data, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        read_spec(path)
