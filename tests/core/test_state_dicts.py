"""State dicts from anywhere: nests, prefixes, masks, lookups, recognition; counts against numbers made by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import prune

from lcnn_core.checkpoint import Checkpoint, Normalization, save
from lcnn_core.checkpoint.opening import INPUTS, Opened, open_model
from lcnn_core.counting import count_layer
from lcnn_core.describe import describe
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.models import build


def layers(opened: Opened):
    assert isinstance(opened.model, nn.Module)
    return describe(opened.model, opened.input_shape).layers


def saved(tmp_path, value, name="c.pt"):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(value, path)
    else:
        torch.save(value, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "best": 0.5},
        lambda state: {"model": state, "ema": {"other": state}},
        lambda state: {"model_state_dict": {f"module.{name}": t for name, t in state.items()}},
        lambda state: {"model": {"state_dict": {f"module._orig_mod.{name}": t for name, t in state.items()}}},
        lambda state: {
            "model_ema": {f"module.{name}": t for name, t in state.items()} | {"n_averaged": torch.tensor(5)}
        },
        lambda state: {"epoch": 1, "ema_state_dict": state},
        lambda state: {"state_dict": {f"model.{name}": t for name, t in state.items()}, "hparams": {"lr": 0.1}},
    ],
)
@pytest.mark.parametrize("architecture", ["digits-resnet", "small-alexnet"])
def test_weights_are_found_in_nests_and_under_prefixes(tmp_path, wrap, architecture):
    model = build(architecture, num_classes=7).eval()
    opened = open_model(saved(tmp_path, wrap(model.state_dict())), architecture)
    x = torch.randn(2, *opened.input_shape)
    assert torch.equal(opened.model(x), model(x))
    assert opened.architecture == architecture
    assert opened.checkpoint is None


def test_names_that_are_no_text_are_passed_over(tmp_path):
    state = {**build("small-alexnet").state_dict(), 7: torch.ones(3)}
    assert open_model(saved(tmp_path, state), "small-alexnet").architecture == "small-alexnet"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_tensor_under_hundreds_of_names_is_refused_before_it_is_copied(tmp_path, dtype):
    one = torch.ones(512, 512, dtype=dtype)
    path = saved(tmp_path, {f"l{number}.weight": one for number in range(300)})
    assert path.stat().st_size < 2 << 20
    with pytest.raises(CheckpointError, match=r"its names show the same bytes over 16 times; save it again"):
        open_model(path)
    tied = {"a.weight": one, "b.weight": one}
    with pytest.raises(CheckpointError, match="of no architecture known here"):  # twice is usual
        open_model(saved(tmp_path, tied))


def test_lists_within_lists_are_short_in_a_file_only(tmp_path):
    nested: list = [0] * 10
    for _ in range(8):
        nested = [nested] * 10
    whole = Checkpoint.from_model(build("small-alexnet"), architecture="small-alexnet")
    save(tmp_path / "c.pt", whole)
    document = torch.load(tmp_path / "c.pt", weights_only=True) | {"provenance": {"history": nested}}
    torch.save(document, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="provenance holds over 200000 values; expected a few that describe it"):
        open_model(tmp_path / "c.pt")


def test_an_image_too_large_for_the_memory_is_refused_before_it_is_run(tmp_path):
    shape = (1, 40_000, 40_000)
    whole = Checkpoint.from_model(build("small-alexnet"), architecture="small-alexnet", input_shape=shape)
    save(tmp_path / "c.pt", whole)
    with pytest.raises(CheckpointError, match=r"bytes for the values of one image of shape .*; give a smaller"):
        open_model(tmp_path / "c.pt")


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".pth.tar", ".safetensors"])
def test_every_usual_suffix(tmp_path, suffix):
    model = build("small-alexnet").eval()
    opened = open_model(saved(tmp_path, model.state_dict(), f"c{suffix}"))
    assert opened.architecture == "small-alexnet"
    x = torch.randn(1, 1, 28, 28)
    assert torch.equal(opened.model(x), model(x))


@pytest.mark.parametrize(
    ("architecture", "arguments", "recognised"),
    [
        ("small-alexnet", {"num_classes": 3, "in_channels": 2}, "small-alexnet"),
        ("resnet18", {"num_classes": 5, "in_channels": 1}, "resnet18"),
        ("resnet50", {}, "resnet50"),
        ("resnet10-lcnn", {}, "resnet8-lcnn"),
        ("small-alexnet-lcnn", {"num_classes": 4}, "small-alexnet-lcnn"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_our_architectures_are_recognised(tmp_path, architecture, arguments, recognised, suffix):
    model = build(architecture, **arguments).eval()
    opened = open_model(saved(tmp_path, model.state_dict(), f"c{suffix}"))
    assert opened.architecture == recognised
    state = opened.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_two_that_fit_for_different_images_are_left_to_the_user(tmp_path):
    path = saved(tmp_path, build("small-resnet").state_dict())
    with pytest.raises(CheckpointError, match=r"fits small-resnet and digits-resnet, for different images; .* --arch"):
        open_model(path)
    assert open_model(path, "digits-resnet").input_shape == (1, 8, 8)
    assert open_model(path, "small-resnet", (1, 32, 32)).input_shape == (1, 32, 32)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_torchvision_architectures_are_recognised_with_other_classes(tmp_path, name):
    models = pytest.importorskip("lcnn_core.checkpoint.torchvision_shim").import_torchvision().models
    model = models.get_model(name, num_classes=9).eval()
    opened = open_model(saved(tmp_path, model.state_dict(), "c.safetensors"))
    assert (opened.architecture, opened.input_shape) == (f"torchvision:{name}", (3, 224, 224))
    assert all(torch.equal(t, opened.model.state_dict()[n]) for n, t in model.state_dict().items())


def test_old_state_dicts_without_batch_counters(tmp_path):
    state = {n: t for n, t in build("resnet18").state_dict().items() if "num_batches" not in n}
    assert open_model(saved(tmp_path, state)).architecture == "resnet18"


def test_pruned_weights_are_the_product_with_their_mask(tmp_path):
    model = build("small-alexnet").eval()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs[:2]:
        prune.l1_unstructured(conv, "weight", amount=0.75)
    opened = open_model(saved(tmp_path, {"state_dict": model.state_dict()}))
    x = torch.randn(1, 1, 28, 28)
    torch.testing.assert_close(opened.model(x), model(x))
    counted = [layer for layer in layers(opened) if layer.kind == "conv"]
    for layer, conv in zip(counted, convs, strict=True):
        nonzeros = int((conv.weight != 0).sum())
        positions = layer.output_shape[1] * layer.output_shape[2]
        assert layer.weight_nnz == nonzeros
        assert count_layer(layer).skipped == (conv.weight.numel() - nonzeros) * positions
    assert "2 weights are pruned by masks" in " ".join(opened.notes)


def test_masks_that_do_not_fit(tmp_path):
    state = {"a.weight_orig": torch.ones(2, 2), "a.weight_mask": torch.ones(2)}
    with pytest.raises(CheckpointError, match=r"a.weight_orig \(2, 2\) and a.weight_mask \(2,\) must have equal shape"):
        open_model(saved(tmp_path, state), "resnet18")


def test_bare_lookup_weights_count_every_stored_coefficient(tmp_path):
    model = build("digits-resnet-lcnn").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("coefficients"):
                parameter[torch.rand_like(parameter) < 0.5] = 0
    opened = open_model(saved(tmp_path, model.state_dict()), "digits-resnet-lcnn")
    assert "holds no thresholds" in opened.notes[-1]
    state = model.state_dict()
    lookups = [layer for layer in layers(opened) if layer.lookup]
    assert lookups
    for layer in lookups:
        assert layer.lookup.threshold == 0
        assert layer.lookup.coefficients_nnz == int(torch.count_nonzero(state[f"{layer.name}.coefficients"]))


def test_lookup_weights_of_another_network(tmp_path):
    """torchvision's ResNet-18 with two layers turned into lookups: found by its dense twin."""
    state = build("resnet18").state_dict()
    state["layer1.0.conv1.dictionary"], state["layer1.0.conv1.coefficients"] = (
        torch.randn(4, 64),
        torch.ones(64, 4, 3, 3),
    )
    state["conv1.coefficients"] = torch.ones(64, 3, 7, 7)
    del state["layer1.0.conv1.weight"], state["conv1.weight"]
    spec = describe(open_model(saved(tmp_path, state)).model, (3, 224, 224))
    by_name = {layer.name: layer for layer in spec.layers}
    assert by_name["conv1"].lookup.identity
    assert count_layer(by_name["layer1.0.conv1"]).lookups == 64 * 4 * 9 * 56 * 56


def test_an_index_outside_the_dictionary(tmp_path):
    state = build("digits-resnet-lcnn").state_dict()
    name = next(name for name in state if name.endswith("dictionary"))
    state[name] = state[name][:-1]
    with pytest.raises(
        CheckpointError, match=r"looks up \d+ rows of a dictionary of shape \(\d+, \d+\): an index outside"
    ):
        open_model(saved(tmp_path, state), "digits-resnet-lcnn")


def test_half_precision_and_values_that_are_not_finite(tmp_path):
    state = {n: t.half() if t.is_floating_point() else t for n, t in build("small-alexnet").state_dict().items()}
    name = next(iter(state))
    state[name].view(-1)[:2] = torch.tensor([torch.nan, -torch.inf])
    opened = open_model(saved(tmp_path, state))
    assert opened.notes == (f"1 tensors hold NaN or infinity, {name} first; they count as nonzero",)
    assert layers(opened)[0].weight_nnz == state[name].numel()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_numbers_of_few_bits_are_read(tmp_path, dtype):
    state = build("digits-resnet").state_dict()
    state["fc.weight"].view(-1)[:2] = torch.tensor([0.0, torch.nan])
    path = tmp_path / "small.pt"
    torch.save({name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}, path)
    opened = open_model(path, "digits-resnet")
    assert opened.notes == ("1 tensors hold NaN or infinity, fc.weight first; they count as nonzero",)
    assert int(opened.model.fc.weight.count_nonzero()) == int(state["fc.weight"].to(dtype).float().count_nonzero())


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"epoch": 3, "lr": 0.1}, r"holds a dict with 'epoch', 'lr'; expected a state dict, bare or under"),
        ([1, 2], "holds a list"),
        ({}, "a dict with nothing in it; expected a state dict"),
        ({"state_dict": {"model": {"net": {"module": {"w": 1}}}}}, "expected a state dict"),
        (
            {"strange.weight": torch.ones(2, 2)},
            "holds 1 tensors, 'strange.weight' first, of no architecture known here",
        ),
    ],
)
def test_files_without_a_state_dict(tmp_path, value, message):
    with pytest.raises(CheckpointError, match=message):
        open_model(saved(tmp_path, value))


def test_wrong_names_shapes_and_options(tmp_path):
    path = saved(tmp_path, build("resnet18").state_dict())
    with pytest.raises(CheckpointError, match=r"weights do not fit resnet34 in .*c.pt: .* missing"):
        open_model(path, "resnet34")
    with pytest.raises(ConfigError, match=r"unknown architecture 'resnet19'; .*did you mean"):
        open_model(path, "resnet19")
    with pytest.raises(ConfigError, match="resnet18 has no option 'width'"):
        open_model(path, "resnet18", width=3)
    with pytest.raises(CheckpointError, match=r"layer 'fc' expects a weight of shape \(4, 512\)"):
        open_model(path, "resnet18", num_classes=4)


# --- our own checkpoints, other inputs


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_our_checkpoints_bring_everything(tmp_path, suffix):
    model = build("digits-resnet-lcnn").eval()
    path = tmp_path / f"c{suffix}"
    save(
        path,
        Checkpoint.from_model(model, architecture="digits-resnet-lcnn", normalization=Normalization((0.5,), (0.2,))),
    )
    opened = open_model(path)
    assert opened.checkpoint.normalization == Normalization((0.5,), (0.2,))
    assert (opened.architecture, opened.input_shape, opened.path) == ("digits-resnet-lcnn", (1, 8, 8), path)
    x = torch.randn(1, 1, 8, 8)
    assert torch.equal(opened.model(x), model(x))


def test_a_custom_checkpoint_needs_its_architecture(tmp_path):
    path = tmp_path / "c.pt"
    model = build("small-alexnet").eval()
    save(path, Checkpoint.from_model(model, input_shape=(1, 28, 28)))
    with pytest.raises(CheckpointError, match="holds a custom model; name its architecture with --arch"):
        open_model(path)
    x = torch.randn(1, 1, 28, 28)
    assert torch.equal(open_model(path, "small-alexnet").model(x), model(x))


def test_names_of_architectures_and_paths_that_are_neither(tmp_path, monkeypatch):
    opened = open_model("digits-resnet")
    assert all(parameter.is_meta for parameter in opened.model.parameters())
    assert (opened.path, opened.input_shape) == (None, (1, 8, 8))
    assert open_model("digits-resnet", input_shape=(1, 16, 16), num_classes=3).input_shape == (1, 16, 16)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_model(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a folder"):
        open_model(tmp_path)
    (tmp_path / "digits-resnet").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_model("digits-resnet").path is None
    for folder in (Path("digits-resnet"), "./digits-resnet", "digits-resnet/"):
        with pytest.raises(CheckpointError, match="digits-resnet is a folder"):
            open_model(folder)
    (tmp_path / "model.h5").touch()
    with pytest.raises(CheckpointError, match=r"has the suffix '.h5'; expected one of .pt, .pth"):
        open_model(tmp_path / "model.h5")


@pytest.mark.parametrize("suffix", INPUTS)
@pytest.mark.parametrize(
    "content", [b"", b"\x00", b"PK\x03\x04", b"\x80\x02.", b"{}", b"\x08\x07", bytes(300), b"\xff" * 300]
)
def test_every_input_refuses_what_it_is_not(tmp_path, suffix, content):
    path = tmp_path / f"c{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=str(path)):
        open_model(path)


# --- safetensors headers


def safetensors_bytes(header: str, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ONE = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, "no whole safetensors"),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8, "no whole safetensors"),
        (f"{{{ONE},{ONE}}}", 8, "a header with the entry 'a' twice"),
        ("{" + ONE.replace('"shape"', '"dtype":"F32","shape"') + "}", 8, "twice|no whole safetensors"),
        ({"a": entry([3], 0, 8)}, 8, "no whole safetensors"),
        ({"a": entry([2], 0, 8)}, 4, "no whole safetensors"),
        ({"a": entry([2], 0, 8)}, 12, "no whole safetensors"),
        ({"a": entry([1 << 62, 4], 0, 8)}, 8, "no whole safetensors"),
        ({"a": entry([1 << 32, 1 << 32], 0, 0)}, 0, "no whole safetensors"),
        ({"a": entry([2], 8, 0)}, 8, "no whole safetensors"),
        ({"a": entry([2], 0, 8, "F3")}, 8, "no whole safetensors"),
        ("[" * 100_000, 0, "no whole safetensors"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path, header, size, message):
    path = tmp_path / "c.safetensors"
    path.write_bytes(safetensors_bytes(header if isinstance(header, str) else json.dumps(header), bytes(size)))
    with pytest.raises(CheckpointError, match=message):
        open_model(path, "resnet18")


def test_a_header_longer_than_its_file(tmp_path):
    path = tmp_path / "c.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(CheckpointError, match="no whole safetensors"):
        open_model(path)


def test_truncated_safetensors_at_every_offset(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(4.0)}, "c.safetensors")
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match="no whole safetensors file"):
            open_model(path)
