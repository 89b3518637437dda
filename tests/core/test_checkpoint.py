"""Checkpoints: round trips in every format, files that are not what they say, atomic writing."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import resource
import struct
import tempfile
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lcnn_core.checkpoint import FORMATS, Checkpoint, Normalization, load, load_into, save
from lcnn_core.convert import convert
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.files import atomic_write
from lcnn_core.layers import LookupLayer
from lcnn_core.models import MODELS, build
from lcnn_core.spec import LookupConfig

SUFFIXES = list(FORMATS)
every_format = pytest.mark.parametrize("suffix", SUFFIXES)


def trained(name: str = "digits-resnet-lcnn", **arguments) -> nn.Module:
    """A model whose batch statistics and weights are not those of a fresh one."""
    model = build(name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def full(model: nn.Module | None = None, **arguments) -> Checkpoint:
    return Checkpoint.from_model(
        trained(**arguments) if model is None else model,
        architecture="digits-resnet-lcnn",
        arguments=arguments,
        normalization=Normalization((0.3,), (0.25,)),
        class_names=[str(digit) for digit in range(10)],
        metrics=[{"name": "top1", "value": 0.987, "dataset": "digits", "split": "test", "count": 450}],
        provenance={"command": "lcnn train digits", "seed": 3, "versions": {"torch": "2.13"}},
    )


def edited(tmp_path: Path, suffix: str, **changes) -> Path:
    """A checkpoint file whose document was changed by hand; a value of None removes the field."""
    path = tmp_path / f"edited{suffix}"
    save(path, full())
    document, tensors = FORMATS[suffix].read(path)
    document = {key: value for key, value in (document | changes).items() if value is not None}
    tensors = document.pop("state_dict", tensors)
    with path.open("wb") as file:
        FORMATS[suffix].write(file, document, tensors)
    return path


# --- round trips


@every_format
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith(("small", "digits"))])
def test_every_small_architecture_comes_back_with_equal_outputs(name, suffix, tmp_path):
    model = trained(name, num_classes=6)
    path = tmp_path / f"model{suffix}"
    save(path, Checkpoint.from_model(model, architecture=name, arguments={"num_classes": 6}))
    loaded = load(path)
    x = torch.randn(2, *loaded.input_shape)
    rebuilt = loaded.build()
    assert not rebuilt.training
    assert torch.equal(rebuilt(x), model(x))
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in rebuilt.parameters())


@every_format
def test_everything_that_was_saved_comes_back(suffix, tmp_path):
    checkpoint = full(stages=(3, "dense", "identity"))
    save(tmp_path / f"model{suffix}", checkpoint)
    loaded = load(tmp_path / f"model{suffix}")
    assert loaded == checkpoint
    assert loaded.arguments["stages"] == [3, "dense", "identity"]
    assert loaded.arguments["shortcut"] == "B"
    assert loaded.normalization == Normalization((0.3,), (0.25,))
    assert loaded.class_names == tuple("0123456789")
    assert loaded.metrics[0]["value"] == 0.987
    assert loaded.provenance["versions"] == {"torch": "2.13"}
    assert loaded.input_shape == (1, 8, 8)
    assert loaded.format_version == 1
    assert loaded.state_dict.keys() == checkpoint.state_dict.keys()
    for name, tensor in checkpoint.state_dict.items():
        assert torch.equal(loaded.state_dict[name], tensor)
        assert loaded.state_dict[name].dtype == tensor.dtype


@every_format
def test_converted_models_come_back_layer_for_layer(suffix, tmp_path):
    dense = trained("digits-resnet")
    overrides = {"layer1.0.conv1": None, "fc": LookupConfig(None), "layer3.0.conv1": LookupConfig(9, threshold=0.02)}
    model, _ = convert(dense, LookupConfig(5, lookups_per_position=3), overrides)
    path = tmp_path / f"model{suffix}"
    save(path, Checkpoint.from_model(model, architecture="digits-resnet"))
    rebuilt = load(path).build()
    x = torch.randn(4, 1, 8, 8)
    assert torch.equal(rebuilt(x), model(x))
    for name, module in model.named_modules():
        other = rebuilt.get_submodule(name)
        assert type(other) is type(module)
        if isinstance(module, LookupLayer):
            assert other.config == module.config


def test_a_lookup_architecture_with_a_layer_made_dense_comes_back():
    model = trained("digits-resnet-lcnn", stages="dense")
    assert torch.equal(full(model, stages=4).build()(x := torch.randn(1, 1, 8, 8)), model(x))


def test_aliases_are_stored_as_architecture_and_depth():
    with pytest.raises(ConfigError, match="resnet10 has no option 'depth'"):
        Checkpoint.from_model(nn.Linear(1, 1), architecture="resnet10", arguments={"depth": 10})
    arguments = {"stem": "small", "in_channels": 1, "num_classes": 2}
    checkpoint = Checkpoint.from_model(build("resnet10", **arguments), architecture="resnet10", arguments=arguments)
    assert checkpoint.architecture == "resnet"
    assert checkpoint.arguments["depth"] == 10
    assert checkpoint.input_shape == (1, 28, 28)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: build("digits-resnet", num_classes=3), r"layer 'fc' expects a weight of shape \(10, 64\)"),
        (
            lambda: nn.DataParallel(build("digits-resnet")),
            r"'conv1.weight', .* missing and 'module.bn1.bias', .* unexp",
        ),
        (lambda: convert(Own(), LookupConfig(3))[0], r"the model has no layer 'body.0'"),
    ],
)
def test_a_model_that_is_not_its_architecture_is_not_saved(model, message):
    with pytest.raises(ConfigError, match=rf"the model is not the digits-resnet that it is saved as: .*{message}"):
        Checkpoint.from_model(model(), architecture="digits-resnet")


@every_format
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_come_back(suffix, dtype, tmp_path):
    model = trained().to(dtype)
    save(tmp_path / f"model{suffix}", Checkpoint.from_model(model, architecture="digits-resnet-lcnn"))
    rebuilt = load(tmp_path / f"model{suffix}").build()
    assert {p.dtype for p in rebuilt.parameters()} == {dtype}
    assert torch.equal(rebuilt.fc.weight, model.fc.weight)


@every_format
def test_coefficients_that_count_as_zero_are_saved_as_zero(suffix, tmp_path):
    model = trained("digits-resnet-lcnn", threshold_scale=0.3)
    before = model.layer2[0].conv1.coefficients.clone()
    x = torch.randn(1, 1, 8, 8)
    expected = model(x)
    save(tmp_path / f"model{suffix}", full(model, threshold_scale=0.3))
    assert torch.equal(model.layer2[0].conv1.coefficients, before)
    loaded = load(tmp_path / f"model{suffix}")
    saved = loaded.state_dict["layer2.0.conv1.coefficients"]
    small = before.abs() <= model.layer2[0].conv1.threshold
    assert 0.2 < small.float().mean() < 0.4
    assert torch.equal(saved != 0, ~small)
    assert torch.equal(saved[~small], before[~small])
    assert torch.equal(loaded.build()(x), expected)


def test_a_checkpoint_is_a_snapshot():
    model = trained()
    checkpoint = full(model)
    kept = {name: tensor.clone() for name, tensor in checkpoint.state_dict.items()}
    rebuilt = checkpoint.build()
    for parameter in (*model.parameters(), *rebuilt.parameters()):
        nn.init.zeros_(parameter)
    assert all(torch.equal(kept[name], tensor) for name, tensor in checkpoint.state_dict.items())


def test_building_draws_no_random_numbers():
    checkpoint = full()
    state = torch.get_rng_state()
    checkpoint.build()
    assert torch.equal(torch.get_rng_state(), state)


@every_format
def test_the_same_checkpoint_gives_the_same_bytes(suffix, tmp_path):
    checkpoint = full()
    for name in ("one", "two"):
        save(tmp_path / f"{name}{suffix}", checkpoint)
    assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()


@every_format
def test_plain_torch_and_safetensors_read_the_weights(suffix, tmp_path):
    model = trained()
    path = tmp_path / f"model{suffix}"
    save(path, full(model))
    weights = (
        torch.load(path, weights_only=True)["state_dict"] if suffix == ".pt" else safetensors.torch.load_file(path)
    )
    assert torch.equal(weights["fc.weight"], model.fc.weight)


@every_format
def test_nan_weights_are_kept(suffix, tmp_path):
    """A checkpoint stores what the model holds; judging it is for training and evaluation."""
    model = trained()
    with torch.no_grad():
        model.fc.weight[0, 0] = math.nan
        model.layer1[0].conv1.coefficients[0, 0, 0, 0] = math.nan
    save(tmp_path / f"model{suffix}", full(model))
    rebuilt = load(tmp_path / f"model{suffix}").build()
    assert rebuilt.fc.weight[0, 0].isnan()
    assert rebuilt.layer1[0].conv1.coefficients[0, 0, 0, 0].isnan()


# --- the user's own models


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.again = self.body[0]

    def forward(self, x):
        return self.again(self.body(self.conv(x)))


@every_format
def test_custom_models_are_loaded_into_the_users_module(suffix, tmp_path):
    model, _ = convert(Own().eval(), LookupConfig(4))
    path = tmp_path / f"own{suffix}"
    save(path, Checkpoint.from_model(model, input_shape=(1, 9, 9)))
    loaded = load(path)
    assert loaded.architecture == "custom"
    with pytest.raises(
        CheckpointError, match=r"custom model, .* make the model and call load_into\(model, checkpoint\)"
    ):
        loaded.build()
    target = Own().double()
    load_into(target, loaded)
    assert target.training
    assert target.again is target.body[0]
    assert target.conv.weight.dtype == torch.float64
    x = torch.randn(2, 1, 9, 9)
    assert torch.allclose(target(x.double()), model(x).double(), atol=1e-6)


def test_load_into_a_model_that_has_the_layers_already():
    model, _ = convert(Own(), LookupConfig(4))
    target, _ = convert(Own(), LookupConfig(4))
    layer = target.body[0]
    load_into(target, Checkpoint.from_model(model, input_shape=(1, 9, 9)))
    assert target.body[0] is layer
    assert torch.equal(layer.coefficients, model.body[0].effective_coefficients())


def test_a_failed_load_into_leaves_the_model_as_it_was():
    model, _ = convert(Own(), LookupConfig(4))
    checkpoint = Checkpoint.from_model(model, input_shape=(1, 9, 9))

    class Wider(Own):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 8, 3)

    target = Wider()
    before, weights = repr(target), {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(
        CheckpointError,
        match=r"do not fit Wider: layer 'conv' expects a weight of shape \(8, 2, 3, 3\), .* holds \(8, 1, 3, 3\)",
    ):
        load_into(target, checkpoint)
    assert repr(target) == before
    assert all(torch.equal(weights[key], value) for key, value in target.state_dict().items())
    with pytest.raises(CheckpointError, match=r"lookup layers do not fit the model: the model has no layer 'body.0'"):
        load_into(nn.Sequential(nn.Conv2d(1, 8, 3)), checkpoint)


# --- what a checkpoint takes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"metrics": [{"value": math.nan}]},
            r"metrics\[0\]\['value'\] is nan \(float\); expected text, a finite number",
        ),
        ({"provenance": {"path": Path("x")}}, r"provenance\['path'\] is .*Path"),
        ({"provenance": {3: "x"}}, r"provenance has the key 3; expected text"),
        ({"class_names": [torch.tensor(1)]}, r"class_names\[0\] is tensor\(1\) \(Tensor\)"),
        ({"input_shape": (1, 0, 8)}, r"input_shape is \(1, 0, 8\); expected whole numbers of 1 or more"),
        ({"input_shape": None}, r"input_shape is missing; a custom model needs it"),
        ({"architecture": "resnt"}, r"unknown architecture 'resnt'; did you mean resnet"),
        ({"architecture": "resnet", "arguments": {"widths": 3}}, r"resnet has no option 'widths'"),
    ],
)
def test_what_is_not_plain_data_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        Checkpoint.from_model(nn.Linear(2, 2), **{"input_shape": (2,), **changes})


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (3, r"state_dict\['w'\] is a int; expected an ordinary tensor"),
        (torch.empty(2, device="meta"), r"state_dict\['w'\] is a torch.strided tensor on meta"),
        (torch.eye(2).to_sparse(), r"state_dict\['w'\] is a torch.sparse_coo tensor on cpu"),
    ],
)
def test_weights_must_be_ordinary_tensors(tensor, message):
    with pytest.raises(ConfigError, match=message):
        Checkpoint("custom", {}, {}, (2,), {"w": tensor})


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.1, 0.2), (1.0,), "differ in length"),
        ((0.1,), (0.0,), "expected finite numbers, std above 0"),
        ((math.nan,), (1.0,), "expected finite numbers, std above 0"),
    ],
)
def test_normalizations_that_cannot_be(mean, std, message):
    with pytest.raises(ConfigError, match=message):
        Normalization(mean, std)


# --- files that are not what they say


def refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)
    assert path.name in str(caught.value)


@every_format
def test_files_that_are_absent_empty_or_something_else(suffix, tmp_path):
    refused(tmp_path / f"absent{suffix}", r"does not exist; expected a checkpoint file \(.pt or .safetensors\)")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    refused(folder, "is a folder; expected a checkpoint file")
    for name, content in {
        "empty": b"",
        "text": b"epoch,loss\n1,0.5\n" * 40,
        "zip": b"PK\3\4",
        "nul": bytes(64),
    }.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        refused(path, r"expected|is damaged|is no whole safetensors file|without its end|cannot be loaded|has 4 bytes")


def test_unknown_suffixes_name_the_known_ones(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    refused(tmp_path / "model.bin", r"has the suffix '.bin'; expected .pt or .safetensors")
    with pytest.raises(ConfigError, match=r"its suffix is '.bin'; expected .pt or .safetensors"):
        save(tmp_path / "other.bin", full())
    assert not (tmp_path / "other.bin").exists()


@every_format
def test_truncation_anywhere_is_told(suffix, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    save(whole, full())
    content = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for share in range(1, 40):
        path.write_bytes(content[: len(content) * share // 40])
        with pytest.raises(CheckpointError, match=r"cut"):
            load(path)
    path.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"cut"):
        load(path)


@every_format
def test_damaged_bytes_never_raise_anything_else(suffix, tmp_path):
    whole = tmp_path / f"whole{suffix}"
    save(whole, full(widths=[2, 2, 2]))
    content = whole.read_bytes()
    path = tmp_path / f"hit{suffix}"
    generator = torch.Generator().manual_seed(0)
    for position in torch.randint(len(content), (80,), generator=generator).tolist():
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        with contextlib.suppress(CheckpointError):
            load(path).build()


class Marker:
    """A pickle of this creates a file when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["archive", "legacy", "bare", "in a list"])
def test_a_pickle_that_would_run_code_does_not_run(form, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    evil = {"format": "lcnn-checkpoint", "format_version": 1, "state_dict": {}, "architecture": Marker(marker)}
    if form == "bare":
        path.write_bytes(pickle.dumps(evil))
    else:
        evil["provenance"] = [Marker(marker)] if form == "in a list" else {}
        torch.save(evil, path, _use_new_zipfile_serialization=form != "legacy")
    torch.load(path, weights_only=False) if form == "archive" else None
    assert marker.exists() is (form == "archive"), "the file must be one that runs code when read without care"
    marker.unlink(missing_ok=True)
    refused(path, r"evil.pt")
    assert not marker.exists()


def test_archives_of_other_kinds_are_refused(tmp_path):
    torch.save(build("digits-resnet").state_dict(), tmp_path / "bare.pt")
    refused(tmp_path / "bare.pt", r"holds no state_dict; expected a file written by")
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "nested.pt")
    refused(tmp_path / "nested.pt", r"is no LCNN checkpoint; expected a file written by")
    torch.save(full().build(), tmp_path / "module.pt")
    refused(tmp_path / "module.pt", r"it is never read in an unsafe way")
    torch.save({"state_dict": {}}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "old.pt", r"expected a .pt archive written by")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "bare.safetensors")
    refused(tmp_path / "bare.safetensors", r"has no 'lcnn' metadata")
    safetensors.torch.save_file({"w": torch.ones(1)}, tmp_path / "list.safetensors", {"lcnn": "[" * 100_000})
    refused(tmp_path / "list.safetensors", r"its 'lcnn' metadata is no JSON")


@every_format
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, r"has format_version 2; this release reads 1; update lcnn"),
        ({"format_version": "1"}, r"has format_version '1'"),
        ({"format": "other"}, r"is no LCNN checkpoint"),
        ({"lookups": None}, r"has no 'lookups'; the file is damaged"),
        ({"architecture": ["resnet"]}, r"'architecture' is a list"),
        ({"input_shape": [1, -8, 8]}, r"holds a value that no checkpoint has: input_shape is \(1, -8, 8\)"),
        ({"input_shape": ["a"]}, r"input_shape is \('a',\)"),
        ({"normalization": {"mean": [0.1]}}, r"missing 1 required positional argument: 'std'"),
        ({"normalization": {"mean": ["x"], "std": [1.0]}}, r"could not convert string to float"),
        ({"normalization": {"mean": [10**400], "std": [1.0]}}, r"int too large to convert to float"),
        ({"provenance": {"all": [[[0] * 60] * 60] * 60}}, r"provenance holds over 200000 values"),
        ({"lookups": {"fc": {"dictionary_size": 0}}}, r"dictionary_size is 0; expected a whole number of 1 or more"),
        ({"lookups": {"fc": 3}}, r"holds a value that no checkpoint has"),
        ({"lookups": {"fc": {"dictionary_size": 3, "rank": 1}}}, r"unexpected keyword argument 'rank'"),
        ({"metrics": [3]}, r"holds a value that no checkpoint has"),
    ],
)
def test_documents_with_wrong_fields_are_refused(suffix, changes, message, tmp_path):
    refused(edited(tmp_path, suffix, **changes), message)


@every_format
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnett"}, r"architecture cannot be built: unknown architecture 'resnett'; did you mean"),
        ({"arguments": {"depth": 18}}, r"architecture cannot be built: digits-resnet-lcnn has no option 'depth'"),
        ({"arguments": {"widths": 3}}, r"architecture cannot be built: widths is 3"),
        (
            {"arguments": {"blocks": [10**9, 1, 1]}},
            r"built: blocks are 1000000002, and there are \d+ tensors",
        ),
        ({"arguments": {"blocks": 10**9}}, r"cannot be built: blocks are 1000000000, and there are \d+ tensors"),
        ({"arguments": {"num_classes": 2**62}}, r"architecture cannot be built: "),
        ({"lookups": {"conv9": {"dictionary_size": 3}}}, r"cannot be built: the model has no layer 'conv9'"),
        ({"lookups": {"bn1": {"dictionary_size": 3}}}, r"cannot be built: layer 'bn1' is a BatchNorm2d"),
        (
            {"arguments": {"num_classes": 7}},
            r"do not fit digits-resnet-lcnn: layer 'fc' expects a weight of shape \(7, 64\), .* holds \(10, 64\)",
        ),
        (
            {"lookups": {}},
            r"do not fit digits-resnet-lcnn: 'conv1.weight', 'layer1.0.conv1.weight', 'layer1.0.conv2.weight' "
            r"and 6 more missing and 'conv1.coefficients', .* more unexpected; expected exactly",
        ),
    ],
)
def test_weights_that_do_not_fit_name_the_layer_and_both_shapes(suffix, changes, message, tmp_path):
    loaded = load(edited(tmp_path, suffix, **changes))
    with pytest.raises(CheckpointError, match=message):
        loaded.build()


def test_weights_of_another_kind_of_number_are_refused():
    checkpoint = full()
    weights = dict(checkpoint.state_dict) | {"fc.weight": torch.ones(10, 64, dtype=torch.int64)}
    changed = Checkpoint("digits-resnet-lcnn", {}, checkpoint.lookups, (1, 8, 8), weights)
    with pytest.raises(CheckpointError, match=r"layer 'fc' expects a weight of torch.float32, .* holds torch.int64"):
        changed.build()


def test_safetensors_that_overlap_or_lie_about_their_size_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, full())
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])

    def write(changed: dict) -> None:
        text = json.dumps(changed).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])

    overlapping = json.loads(json.dumps(header))
    overlapping["fc.bias"]["data_offsets"] = header["bn1.bias"]["data_offsets"]
    write(overlapping)
    refused(path, "is no whole safetensors file")
    header["fc.bias"]["shape"] = [1 << 40]
    write(header)
    refused(path, "is no whole safetensors file")


# --- writing


@every_format
def test_saving_replaces_the_old_file_and_leaves_nothing_else(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"old")
    save(str(path), full())
    assert load(str(path)) == full()
    assert os.listdir(tmp_path) == [path.name]


def test_atomic_write_keeps_the_old_file_on_any_error(tmp_path):
    path = tmp_path / "report.html"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            file.flush()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["report.html"]


def test_atomic_write_shows_nothing_before_it_is_done(tmp_path):
    path = tmp_path / "x"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_an_error_of_the_callers_own_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"), atomic_write(tmp_path / "x"):
        (tmp_path / "absent").read_bytes()
    assert not os.listdir(tmp_path)


def test_permissions_follow_the_umask_and_an_old_files_stay(tmp_path):
    path, mask = tmp_path / "x", os.umask(0o027)
    try:
        with atomic_write(path) as file:
            file.write(b"1")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o600)
        with atomic_write(path) as file:
            file.write(b"2")
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(mask)


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_write(tmp_path / "link") as file:
        file.write(b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"1"


def test_devices_and_pipes_are_written_not_replaced(tmp_path):
    reader, writer = os.pipe()
    with atomic_write(f"/dev/fd/{writer}") as file:
        file.write(b"through")
    os.close(writer)
    assert os.read(reader, 100) == b"through"
    os.close(reader)


@every_format
@pytest.mark.parametrize("place", ["missing/model", "file/model", "folder"])
def test_places_that_cannot_be_written_are_named(suffix, place, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / f"folder{suffix}").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(OSError, match=rf"cannot write '.*{place}{suffix}': .*; choose a file in a folder"):
        save(tmp_path / f"{place}{suffix}", full())
    assert sorted(os.listdir(tmp_path)) == before


def test_a_folder_without_permission_is_named():
    """As an unprivileged user: root writes anywhere."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)
        with pytest.raises(PermissionError, match=r"x.pt': Permission denied; choose a file in a folder you can write"):
            save(folder / "x.pt", full())
    finally:
        os.seteuid(user)
        folder.rmdir()


@every_format
def test_a_full_disk_leaves_the_old_checkpoint(suffix, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails half way."""
    path = tmp_path / f"model{suffix}"
    checkpoint = full()
    save(path, checkpoint)
    before = path.read_bytes()
    assert len(before) > 60_000
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        with pytest.raises(OSError, match=rf"cannot write '{path}': File too large; choose a file"):
            save(path, checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
