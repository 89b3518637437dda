"""export_onnx: what ONNX Runtime computes from the file is what the model computes in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lcnn_core.onnx
from lcnn_core.errors import ConfigError, ShapeError, UnsupportedLayerError
from lcnn_core.layers import LookupConv2d, LookupLinear
from lcnn_core.onnx import OPSET, export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """Both forms of a lookup layer, groups, a stem without dictionary, a residual add and a pool to one pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = LookupConv2d(3, 8, 3, stride=2, padding=1, dictionary_size=None, threshold=0.05)
        self.norm = nn.BatchNorm2d(8)
        self.small = LookupConv2d(8, 8, 3, padding=1, dictionary_size=2, bias=False)
        self.large = LookupConv2d(8, 8, 3, padding=2, dilation=2, groups=2, dictionary_size=8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = LookupLinear(8, 5, dictionary_size=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(self.pool(F.relu(self.large(self.small(x)) + x)).flatten(1))


def run(path, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": x.numpy()})[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    torch.manual_seed(0)
    model = Net().train()
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    before = copy.deepcopy(model)
    return model, before, path, export_onnx(model, torch.randn(1, 3, 12, 12), path)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_runtime_gives_the_same_outputs_at_any_batch(exported, batch):
    model, _, path, _ = exported
    x = torch.randn(batch, 3, 12, 12)
    expected = copy.deepcopy(model).double().eval()(x.double()).detach().numpy()
    assert np.abs(run(path, x) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_each_lookup_layer_takes_the_form_of_fewer_macs(exported):
    _, _, path, layers = exported
    forms = {layer.name: layer.form for layer in layers}
    assert forms == {"stem": "dense", "small": "two_layers", "large": "dense", "head": "two_layers"}
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node].count("Conv") == 4
    assert [node.op_type for node in graph.node].count("Gemm") + [node.op_type for node in graph.node].count(
        "MatMul"
    ) == 2


def test_the_file_holds_standard_operators_and_all_weights(exported):
    _, _, path, _ = exported
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
    assert {node.op_type for node in model.graph.node} <= {
        "Conv",
        "Relu",
        "Add",
        "ReduceMean",
        "Reshape",
        "Gemm",
        "MatMul",
    }
    assert [path.name for path in path.parent.iterdir()] == ["model.onnx"]


def test_the_model_is_left_as_it_was(exported):
    model, before, _, _ = exported
    assert model.training
    for (name, tensor), (_, old) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert torch.equal(tensor, old), name


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(lcnn_core.onnx, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs onnx and onnxscript; install them: pip install 'lcnn\[bench\]'"):
        export_onnx(Net(), torch.randn(1, 3, 12, 12), tmp_path / "model.onnx")


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ShapeError, match=r"example input has shape \(3,\); expected \(batch, channels"):
        export_onnx(Net(), torch.randn(3), tmp_path / "model.onnx")
    with pytest.raises(ShapeError, match=r"\(4, 12, 12\) does not run through the model"):
        export_onnx(Net(), torch.randn(1, 4, 12, 12), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_captured_is_named(tmp_path):
    with pytest.raises(UnsupportedLayerError, match="Branching cannot be exported to ONNX: "):
        export_onnx(Branching(), torch.randn(1, 3, 4, 4), tmp_path / "model.onnx")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(OSError, match="cannot write"):
        export_onnx(LookupConv2d(3, 4, 1, dictionary_size=2), torch.randn(1, 3, 4, 4), tmp_path / "no" / "model.onnx")
