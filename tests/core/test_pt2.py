"""torch.export archives: counts equal those of the module that was exported; pickles inside are never touched."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lcnn_core.checkpoint.opening import open_model
from lcnn_core.checkpoint.pt2 import read_spec
from lcnn_core.checkpoint.torchvision_shim import import_torchvision
from lcnn_core.counting import count_layer
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.spec import ModelSpec


class Net(nn.Module):
    """Every counted operation, a tied weight, a transposed view as a weight, a buffer as a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=(1, 2), dilation=(1, 2))
        self.norm = nn.BatchNorm2d(8)
        self.same = nn.Conv2d(8, 8, 3, padding="same", groups=4, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1)
        self.line = nn.Conv1d(4, 6, 3)
        self.head, self.tokens, self.again = nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.again.weight = self.tokens.weight
        self.turned = nn.Parameter(torch.randn(3, 6).t())
        self.register_buffer("mix", torch.randn(6, 6))

    def forward(self, x):
        x = self.up(torch.relu(self.same(F.relu(self.norm(self.stem(x))))))
        x = self.line(x.flatten(2)).transpose(1, 2)
        x = F.scaled_dot_product_attention(x, self.again(self.tokens(x)), x)
        x = torch.einsum("bij,jk->bik", x, self.mix)
        return self.head(x.mean(1)) @ self.turned


def sparse(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if name.endswith("weight"):
            parameter.data[torch.rand_like(parameter) < 0.6] = 0
    return model.eval()


def saved(tmp_path, model, shape, batch=1, **options):
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(batch, *shape),), **options), path)
    return path


def figures(spec: ModelSpec) -> list[tuple[int, int, int, int]]:
    counted = [(count_layer(layer), layer) for layer in spec.layers]
    return [(c.total, c.skipped, layer.weight_size, layer.weight_nnz or 0) for c, layer in counted if c.total]


@pytest.mark.parametrize("batch", [1, 4])
def test_every_operation_counts_as_the_module_does(tmp_path, batch):
    torch.manual_seed(2)
    model = sparse(Net())
    spec, odd = read_spec(saved(tmp_path, model, (3, 16, 12), batch))
    expected = describe(model, (3, 16, 12))
    assert figures(spec) == figures(expected)
    names = [(layer.name, want.name) for layer, want in zip(spec.layers, expected.layers, strict=True)]
    assert all(name == want for name, want in names if want)  # outside any module the graph's own name is better
    assert (spec.parameters, spec.weights_known, spec.uncounted, odd) == (expected.parameters, True, (), ())
    assert sum(layer.parameters for layer in spec.layers) == spec.parameters


def test_an_open_batch(tmp_path):
    model = sparse(Net())
    batch = {"x": {0: torch.export.Dim("batch", min=2)}}
    spec, _ = read_spec(saved(tmp_path, model, (3, 16, 12), batch=3, dynamic_shapes=batch))
    assert figures(spec) == figures(describe(model, (3, 16, 12)))


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_networks(tmp_path, name):
    model = import_torchvision().models.get_model(name).eval()
    spec, _ = read_spec(saved(tmp_path, model, (3, 64, 64), 2))
    expected = describe(model, (3, 64, 64))
    assert (figures(spec), spec.parameters, spec.uncounted) == (figures(expected), expected.parameters, ())


def test_shifted_windows_with_a_batch_folded_into_them(tmp_path):
    block = import_torchvision().models.swin_transformer.SwinTransformerBlockV2(8, 2, [4, 4], [2, 2]).eval()
    spec, _ = read_spec(saved(tmp_path, block, (8, 8, 8), 2))
    assert spec.uncounted == ()
    assert sum(f[0] for f in figures(spec)) == sum(f[0] for f in figures(describe(block, (8, 8, 8))))


class Spectral(nn.Module):
    def forward(self, x):
        return torch.fft.rfft2(x).abs()


def test_what_has_no_formula_is_named(tmp_path):
    spec, _ = read_spec(saved(tmp_path, Spectral(), (1, 8, 8)))
    assert [u.operation for u in spec.uncounted] == ["aten.fft_rfft2.default"]


def test_the_shape_is_the_exported_one(tmp_path):
    path = saved(tmp_path, nn.Conv2d(3, 4, 3), (3, 8, 8))
    assert open_model(path, input_shape=(3, 8, 8)).input_shape == (3, 8, 8)
    with pytest.raises(ConfigError, match=r"input shape \(3, 9, 9\) does not fit .*exported for \(3, 8, 8\)"):
        open_model(path, input_shape=(3, 9, 9))


def test_values_that_are_not_finite_are_counted_and_reported(tmp_path):
    model = nn.Conv2d(3, 4, 1)
    nn.init.constant_(model.weight, torch.nan)
    opened = open_model(saved(tmp_path, model, (3, 2, 2)))
    assert opened.notes == ("1 tensors hold NaN or infinity, weight first; they count as nonzero",)
    assert opened.model.layers[0].weight_nnz == 12


# --- archives changed by hand


def rewritten(path, change):
    """The archive with ``change(name without its folder, bytes) -> bytes or None (left out)`` applied to each entry."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries:
            new = change(name.partition("/")[2], data)
            if new is not None:
                archive.writestr(name, new)
    path.write_bytes(out.getvalue())
    return path


def edited(entry: str, edit):
    def change(name: str, data: bytes) -> bytes | None:
        if name != entry:
            return data
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    return change


CONFIG = "data/weights/model_weights_config.json"
MODEL = "models/model.json"


def place(document):
    return document["config"]["weight"]


def meta(document):
    return place(document)["tensor_meta"]


def nodes(document):
    return document["graph_module"]["graph"]["nodes"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited(CONFIG, lambda d: place(d).update(use_pickle=True)), "holds 'weight' as a pickle, which is never read"),
        (edited(CONFIG, lambda d: place(d).update(path_name="../../etc/passwd")), "damaged: KeyError"),
        (edited(CONFIG, lambda d: place(d).update(path_name="weight_9")), "damaged: KeyError"),
        (edited(CONFIG, lambda d: meta(d).update(dtype=99)), "damaged: KeyError"),
        (edited(CONFIG, lambda d: meta(d).update(sizes=[{"as_int": 1 << 62}] * 4)), "does not fit"),
        (edited(CONFIG, lambda d: meta(d).update(strides=[{"as_int": 50}] * 4)), "does not fit"),
        (edited(CONFIG, lambda d: meta(d).update(storage_offset={"as_int": 1})), "does not fit"),
        (edited(CONFIG, lambda d: meta(d).update(storage_offset={"as_int": -1})), "damaged: ValueError"),
        (edited(CONFIG, lambda d: d.update(config=[1])), "has no data for the parameter 'weight'"),
        (edited(MODEL, lambda d: d.pop("graph_module")), "damaged: KeyError"),
        (edited(MODEL, lambda d: nodes(d)[0].pop("inputs")), "damaged: KeyError 'inputs'"),
        (edited(MODEL, lambda d: nodes(d)[0]["inputs"].clear()), "damaged: KeyError 'input'"),
        (edited(MODEL, lambda d: d["graph_module"]["signature"].update(input_specs=[])), "takes no batch of images"),
        (edited(MODEL, lambda d: d["graph_module"]["graph"]["tensor_values"].clear()), "damaged: KeyError"),
        (lambda name, data: b"[" * 200_000 if name == MODEL else data, "a models/model.json that is no JSON"),
        (lambda name, data: b"{" if name == CONFIG else data, "that is no JSON"),
        (lambda name, data: None if name == MODEL else data, r"holds no models/model.json; export it again"),
        (lambda name, data: None if name == CONFIG else data, f"has no {CONFIG}"),
        (lambda name, data: data[:-4] if name == "data/weights/weight_0" else data, "does not fit"),
    ],
)
def test_archives_that_lie(tmp_path, change, message):
    path = rewritten(saved(tmp_path, nn.Conv2d(3, 4, 3, bias=False), (3, 8, 8)), change)
    with pytest.raises(CheckpointError, match=message):
        open_model(path)


def test_the_rewritten_archive_is_a_good_one(tmp_path):
    path = rewritten(saved(tmp_path, nn.Conv2d(3, 4, 3, bias=False), (3, 8, 8)), lambda name, data: data)
    assert figures(open_model(path).model)[0][0] == 36 * 108


def test_a_node_that_names_a_python_function_runs_nothing(tmp_path):
    marker = tmp_path / "marker"

    def edit(document):
        for target in (
            "os.system",
            "torch.ops.aten.__class__.default",
            "torch.ops.aten.from_file.default",
            "builtins.open",
        ):
            entry = {"name": "input", "arg": {"as_string": f"touch {marker}"}, "kind": 1}
            nodes(document).append({"target": target, "inputs": [entry], "outputs": [], "metadata": {}, "name": target})

    path = rewritten(saved(tmp_path, nn.Conv2d(3, 4, 3), (3, 8, 8)), edited(MODEL, edit))
    spec = open_model(path).model
    assert not marker.exists()
    assert [u.operation for u in spec.uncounted] == [
        *("os.system", "aten.__class__.default", "aten.from_file.default", "builtins.open")
    ]


def test_archives_of_older_releases_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("old/serialized_exported_program.json", "{}")
        archive.writestr("old/serialized_state_dict.pt", b"pickle")
    with pytest.raises(CheckpointError, match=r"was written before torch 2\.8, with its weights pickled"):
        open_model(path)


def test_truncation_is_a_checkpoint_error(tmp_path):
    path = saved(tmp_path, nn.Conv2d(1, 1, 1), (1, 2, 2))
    whole = path.read_bytes()
    for end in [*range(0, len(whole), 17), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError):
            open_model(path)
