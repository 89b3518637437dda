"""Options of ``lcnn train`` beside the loop's own: where it starts from, settings in files, what it shows."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
import yaml
from PIL import Image
from train_runs import lcnn, log_of, losses_of

import lcnn_core
from lcnn_analyze.cli.app import app
from lcnn_analyze.cli.errors import run
from lcnn_analyze.cli.rates import MemoryFirst, rate_lines
from lcnn_analyze.cli.train_job import make_job
from lcnn_analyze.cli.train_options import OPTIONS
from lcnn_core import (
    METHODS,
    Dataset,
    FromDenseConfig,
    LookupLayer,
    Normalization,
    Split,
    TrainConfig,
    checkpoint,
    train,
)

TINY = ("--model", "digits-resnet-lcnn", "--batch-size", "128", "--lr", "0.1", "--epochs", "1", "-q")


def call(*arguments: object) -> int:
    """Any command of ``lcnn``."""
    return run("lcnn", typer.main.get_command(app), list(map(str, arguments)))


def density(path: Path, layer: str) -> float:
    coefficients = checkpoint.load(path).state_dict[f"{layer}.coefficients"]
    return float((coefficients != 0).double().mean())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    assert lcnn(*TINY, "--initial-sparsity", "layer3.0.conv1=0.5,0.25", "--log-every", 3, "-o", folder / "run") == 0
    return folder / "run"


def test_the_table_holds_every_option_of_the_config_and_typer_every_one_of_the_table() -> None:
    for config in (TrainConfig, FromDenseConfig):
        assert {field.name for field in dataclasses.fields(config)} <= {*OPTIONS, "train"}
    command = typer.main.get_command(app).get_command(None, "train")  # type: ignore[attr-defined]
    assert command is not None
    assert all(option.help and option.panel for option in OPTIONS.values())
    document = (Path(inspect.getfile(lcnn_core)).parent / "train" / "OPTIONS.md").read_text()
    named = set(re.findall(r"--([a-z][a-z0-9-]+)", document)) - {"no-python", "nproc-per-node"}
    flags = {name.replace("_", "-") for name in OPTIONS}
    assert named <= flags | {"crops", "store", "classes"}, "OPTIONS.md names an option that is none"
    assert flags <= named, "OPTIONS.md leaves one out"


# --- start -------------------------------------------------------------------------------------------------------


def test_each_layer_starts_with_its_own_share_of_zeros(trained: Path) -> None:
    assert density(trained / "last.pt", "layer3.0.conv1") <= 0.5
    assert 0.6 < density(trained / "last.pt", "layer3.1.conv1") <= 0.75
    lines = [line for line in log_of(trained) if line["event"] == "BatchFinished"]
    assert [line["batch"] for line in lines] == [3, 6, 9]
    assert [line["densities"]["layer3.0.conv1"] for line in lines] == pytest.approx([0.5] * 3, abs=0.01)
    assert lines[0]["densities"]["conv1"] == pytest.approx(0.75, abs=0.01)


def test_training_goes_on_from_a_checkpoint(trained: Path, tmp_path: Path) -> None:
    options = ("--from", trained / "best.pt", "--epochs", 1, "--batch-size", 128, "--lr", "1e-6", "--seed", 5, "-q")
    assert lcnn(*options, "-o", tmp_path / "on") == 0
    first, second = (checkpoint.load(path).state_dict for path in (trained / "best.pt", tmp_path / "on" / "best.pt"))
    for name in first:
        if not name.startswith("bn") and ".bn" not in name and "downsample" not in name:
            torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=0)
    saved = checkpoint.load(tmp_path / "on" / "best.pt")
    assert saved.provenance["from"] == str(trained / "best.pt")
    assert saved.lookups == checkpoint.load(trained / "best.pt").lookups


def test_fresh_values_keep_the_zeros_of_p(trained: Path, tmp_path: Path) -> None:
    options = ("--from", trained / "best.pt", "--epochs", 1, "--batch-size", 128, "--lr", "1e-6", "-q")
    assert lcnn(*options, "--reinit-coefficients", "-o", tmp_path / "fresh") == 0
    name = "layer3.0.conv1.coefficients"
    old, new = (checkpoint.load(path).state_dict[name] for path in (trained / "best.pt", tmp_path / "fresh/best.pt"))
    assert torch.equal(old != 0, new != 0)
    used = old != 0
    assert float((old[used] - new[used]).abs().mean()) > 0.02


def test_fresh_values_are_drawn_from_the_seed(trained: Path) -> None:
    settings = {"data": "digits", "from": str(trained / "best.pt"), "reinit_coefficients": True}
    first, again, other = (
        make_job({**settings, "seed": seed}).model.state_dict()["layer3.0.conv1.coefficients"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_loading_by_name_says_what_matched(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--load", trained / "best.pt", "--classifier", 5, "--lr", "1e-6", *TINY[:4], "--epochs", 1, "-q")
    assert lcnn(*options, "-o", tmp_path / "loaded") == 0
    err = capsys.readouterr().err
    assert re.search(r"best.pt: \d+ of \d+ tensors loaded by name; 2 not in the file \(fc.dictionary, fc.coeff", err)
    assert "1 not in the model (fc.weight)" in err
    old, new = (
        checkpoint.load(p).state_dict["conv1.coefficients"] for p in (trained / "best.pt", tmp_path / "loaded/best.pt")
    )
    torch.testing.assert_close(old, new, atol=1e-4, rtol=0)


def test_families_take_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    shown = {}
    for options in (
        ("--depth", 10),
        ("--depth", 18),
        ("--depth", 10, "--shortcut", "A"),
        ("--depth", 10, "--shortcut", "C"),
        ("--depth", 10, "--stem", "small"),
    ):
        arguments = ("--model", "resnet-lcnn", *options, "--data", "fake:8x4", "--image-size", 32, "--dry-run")
        assert lcnn(*arguments) == 0
        shown[options] = capsys.readouterr().out
    assert len(set(shown.values())) == 5
    assert re.search(r" conv1 +3x3 +3x32x32 → 64x32x32 ", shown["--depth", 10, "--stem", "small"])
    assert (
        lcnn("--model", "small-alexnet", "--data", "fake:8x4", "--image-size", 28, "--dropout", 1.5, "--dry-run") == 2
    )
    assert "dropout is 1.5; expected a number from 0 to below 1" in capsys.readouterr().err


def test_small_networks_of_any_widths_and_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    assert lcnn("--model", "digits-resnet-lcnn", "--widths", "8,24", "--blocks", "2,1", "--dry-run") == 0
    out = capsys.readouterr().out
    layers = [line.split()[0] for line in out.splitlines() if re.match(r" (layer|conv|fc)\S", line)]
    assert [name for name in layers if "conv" in name] == [
        "conv1", "layer1.0.conv1", "layer1.0.conv2", "layer1.1.conv1", "layer1.1.conv2", "layer2.0.conv1",
        "layer2.0.conv2",
    ]  # fmt: skip
    assert " 8x8x8 → 24x4x4 " in out
    assert lcnn("--model", "digits-resnet", "--widths", "8,24", "--blocks", "2", "--dry-run") == 0
    assert "layer2.1.conv2" in capsys.readouterr().out
    for options, message in (
        (("--widths", "8,24"), "widths (8, 24) and blocks (1, 1, 2) differ in length"),
        (("--widths", "8,wide"), "widths is 'wide'; expected a whole number of 1 or more"),
        (("--stem", "small"), "digits-resnet has no option 'stem'"),
    ):
        assert lcnn("--model", "digits-resnet", *options, "--dry-run") == 2
        assert message in capsys.readouterr().err


def test_more_outputs_than_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert lcnn("--model", "digits-resnet", "--num-classes", 12, "--epochs", 1, "-q", "-o", tmp_path / "m.pt") == 0
    assert checkpoint.load(tmp_path / "m.pt").arguments["num_classes"] == 12
    assert lcnn("--model", "digits-resnet", "--num-classes", 5, "-o", tmp_path / "n.pt") == 2
    assert "num_classes is 5, but digits has 10 classes; expected 10 or more" in capsys.readouterr().err
    assert lcnn("--model", "digits-resnet", "--num-classes", 0, "-o", tmp_path / "n.pt") == 2
    assert "num_classes is 0, but digits has 10 classes; expected 10 or more" in capsys.readouterr().err


# --- settings in files -------------------------------------------------------------------------------------------


def test_a_configuration_file_and_what_is_typed_beside_it(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: digits-resnet-lcnn\nstages: [4, 8, 12]\nlr: 1e-1\nepochs: 3\nbatch-size: 128\n"
        "initial_sparsity: {conv1: 0.5}\ndeterministic: true\n"
    )
    assert lcnn("--config", config, "--epochs", 1, "-q", "-o", tmp_path / "run") == 0
    saved = checkpoint.load(tmp_path / "run" / "best.pt")
    assert saved.lookups["layer2.0.conv1"].dictionary_size == 8
    assert density(tmp_path / "run" / "best.pt", "conv1") <= 0.5
    made = saved.provenance["config"]
    assert (made["lr"], made["epochs"], made["batch_size"], made["deterministic"]) == (0.1, 1, 128, True)
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (resolved["stages"], resolved["momentum"], resolved["epochs"]) == ("4,8,12", 0.9, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch: 3", "run.yaml: unknown key 'epoch'; did you mean epochs?"),
        ("resume: x", "run.yaml: unknown key 'resume'"),
        ("epochs: ten", "run.yaml: epochs is 'ten'; expected a whole number"),
        ("epochs: true", "run.yaml: epochs is True; expected a whole number"),
        ("lr: fast", "run.yaml: lr is 'fast'; expected a number"),
        ("bfloat16: 1", "run.yaml: bfloat16 is 1; expected true or false"),
        ("- a\n- b", "run.yaml holds a list; expected options, one a line, such as epochs: 30"),
        ("a: [", "run.yaml is no YAML: while parsing"),
        ("!!python/object/apply:os.system ['echo']", "run.yaml is no YAML: could not determine a constructor"),
    ],
)
def test_configurations_that_are_none(text: str, message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run.yaml").write_text(text)
    assert lcnn("--config", tmp_path / "run.yaml", "--model", "digits-resnet", "-o", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


MISTAKES = {
    "pieces": (["--batch-pieces", 3], 2, "batch_pieces is 3; expected a divisor of the batch size, 128"),
    "load and from": (["--from", "x", "--load", "y"], 2, "--load cannot go with --from"),
    "redraw nothing": (["--reinit-coefficients"], 2, "--reinit-coefficients needs weights to keep the zeros of"),
    "sparsity": (["--initial-sparsity", "much"], 2, "initial_sparsity: 'much' is not SHARE or LAYER=SHARE"),
    "no such layer": (["--initial-sparsity", "conv9=0.5"], 2, "no lookup layer is called 'conv9'; there are conv1"),
    "budget": (["--speedup", 5, "--from", "x", "--load", "y"], 2, "--load cannot go with a budget"),
    "config": (["--config", "none.yaml"], 2, "cannot read the configuration 'none.yaml': No such file"),
    "device": (["--device", "tpu"], 2, "device is 'tpu'; expected auto, cpu, cuda, cuda:N or mps"),
    "GPU": (["--device", "cuda:77"], 2, "device is 'cuda:77', which this machine does not have"),
    "size": (["--image-size", 32], 2, "image_size cannot go with digits, whose images are of one size"),
    "files": (["--load", "none.pt"], 3, "none.pt does not exist; expected a file with weights"),
    "no folder": (["--data", "imagefolder:/nowhere"], 3, "/nowhere has no folder 'train'"),
    "warmup": (["--warmup", 1], 2, "warmup is 1 epochs of 1; expected fewer than all of them"),
    "compile": (["--compile", "quick"], 2, "compile is 'quick'; expected a backend of torch.compile"),
    "blocks": (["--mixup", -1], 2, "mixup is -1.0; expected a number from 0"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    arguments, code, message = MISTAKES[case]
    monkeypatch.chdir(tmp_path)
    assert lcnn(*TINY, *arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.rglob("*.*"))


# --- what it shows -----------------------------------------------------------------------------------------------


def test_a_dry_run_prints_counts_data_and_schedule_and_writes_nothing(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--schedule", "1:0.1:5e-4,3:0.01", "--batch-pieces", 2, "--epochs", 4)
    assert lcnn(*TINY[:4], *options, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "layer3.1.conv2" in out
    assert "data: digits, images of 1 x 8 x 8: 1,150 train, 197 validation, 450 test" in out
    assert "classes: 10 (0, 1, 2, 3, 4, ...)" in out
    assert "run: 4 epochs of 1,150 images, batches of 128 in 2 pieces on 1 processes, sgd, schedule 1:0.1:0.0005" in out
    assert "  epochs 1 to 2: learning rate 0.1, weight decay 0.0005\n" in out
    assert "  epochs 3 to 4: learning rate 0.01, weight decay 0\n" in out
    assert lcnn(*TINY[:4], "--batches-per-epoch", 5, "--dry-run") == 0
    assert "run: 30 epochs of 5 batches, batches of 128" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


class SlowImages(Split):
    """Each batch takes 20 ms to read."""

    def read(self, *arguments: Any, **options: Any) -> Any:
        for batch in super().read(*arguments, **options):
            time.sleep(0.02)
            yield batch


class SlowNetwork(torch.nn.Linear):
    """Each step takes 20 ms and more."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.02)
        return super().forward(x.flatten(1))


@pytest.mark.parametrize("slow", ["reading", "training"])
def test_rates_say_whether_reading_keeps_up(slow: str) -> None:
    images, labels = torch.randn(40, 1, 2, 2), torch.arange(40) % 2
    split = (SlowImages if slow == "reading" else Split)(images, labels)
    dataset = Dataset("noise", (1, 2, 2), ("a", "b"), split, split, split, Normalization((0.0,), (1.0,)))
    network = (
        SlowNetwork(4, 2) if slow == "training" else torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    )
    (line,) = rate_lines(partial(train, network), dataset, TrainConfig(batch_size=10, lr=1e5, warmup=2))
    reading, training, both = (float(n.replace(",", "")) for n in re.findall(r"([\d.,e+]+) images/s", line))
    assert (reading <= 500) == (slow == "reading"), "10 images in 20 ms"
    assert (training <= 500) == (slow == "training")
    assert both <= 500
    verdict = "holds training back; more --workers" if slow == "reading" else "keeps up"
    assert f"waiting for images: reading {verdict}" in line


def test_rates_with_a_budget_are_those_of_the_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert lcnn("--model", "digits-resnet", "--epochs", 1, "--batches-per-epoch", 1, "-o", tmp_path / "dense") == 0
    method = METHODS["narrow"]
    seen: list[Any] = []

    def compress(dense: Any, dataset: Dataset, config: Any, listen: Any, resume: Any) -> Any:
        seen.append(config)
        return method.compress(dense, dataset, config, listen, resume)

    monkeypatch.setitem(METHODS, "narrow", dataclasses.replace(method, compress=compress))
    capsys.readouterr()
    options = ("--method", "narrow", "--speedup", 4, "--batch-size", 8, "--epochs", 3, "--dry-run", "--rates")
    assert lcnn("--from", tmp_path / "dense" / "best.pt", *options) == 0
    assert "rates: reading" in capsys.readouterr().out
    assert [(config.speedup, config.train.epochs, config.train.batch_size) for config in seen] == [(4, 1, 8)]


def test_rates_measure_forms_on_more_images_than_a_batch(tmp_path: Path, capsys: Any) -> None:
    """Once, as the run itself would; the batch in memory is too small to measure on."""
    assert lcnn("--model", "digits-resnet", "--epochs", 1, "--batches-per-epoch", 1, "-o", tmp_path / "dense") == 0
    capsys.readouterr()
    options = ("--speedup", 4, "--batch-size", 8, "--epochs", 3, "--dry-run", "--rates")
    assert lcnn("--from", tmp_path / "dense" / "best.pt", *options) == 0
    said = capsys.readouterr()
    assert "rates: reading" in said.out
    assert "warning" not in said.err


def test_images_in_memory_come_first_and_then_those_that_are_read() -> None:
    images, labels = torch.arange(40.0).reshape(40, 1, 1, 1), torch.arange(40) % 2
    kept = Split(-images[:10], labels[:10])
    mixed = MemoryFirst(Split(images, labels), kept, 3)
    assert [len(taken) for taken, _ in MemoryFirst(kept, kept, 1).read([torch.arange(13)], seed=1)] == [13]
    batches = list(torch.arange(40).split(8))  # a pass of five batches, then another
    plain = [taken.flatten().tolist() for taken, _ in mixed.read(batches)]
    assert plain == [batch.tolist() for batch in batches]  # what is measured before is read, and uses nothing up
    passes = [taken.flatten().tolist() for _ in range(2) for taken, _ in mixed.read(batches, seed=1)]
    assert passes[:3] == [kept.images[:8].flatten().tolist()] * 3
    assert passes[3:] == [batch.tolist() for batch in [*batches[3:], *batches]]


def test_rates_are_printed_with_a_dry_run_only(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--model", "digits-resnet", "--data", "fake:20x10", "--image-size", 16, "--workers", 0)
    assert lcnn(*arguments, "--batch-size", 4, "--dry-run", "--rates") == 0
    rates = r"rates: reading [\d,]+ images/s, training [\d.]+ images/s with images in memory, both at once [\d.]+ im"
    assert re.match(rates, capsys.readouterr().out.splitlines()[-1])
    assert lcnn(*arguments, "--rates") == 2
    assert "--rates measures before a run; give --dry-run too" in capsys.readouterr().err


def test_the_report_has_a_row_for_each_epoch_and_layer_and_a_picture(trained: Path) -> None:
    text = (trained / "report.md").read_text()
    finished = [line for line in log_of(trained) if line["event"] == "EpochFinished"]
    last = finished[-1]
    assert f"| 1 | {last['learning_rate']:.4g} | {last['loss']:.4f} | {last['train_accuracy']:.2%} |" in text
    for name, share in last["densities"].items():
        assert f"| {name} | {share:.2%} | {last['speedups'][name]:.2f}x |" in text
    assert f"- command: {checkpoint.load(trained / 'best.pt').provenance['command']}\n" in text.replace("\\", "")
    assert re.search(r"- versions: lcnn .*, torch 2.*\n- machine: .* cores, .*\n- settings: config.yaml", text)
    model = checkpoint.load(trained / "last.pt").build()
    layers = {name for name, module in model.named_modules() if isinstance(module, LookupLayer)}
    assert set(last["speedups"]) == layers
    picture = np.asarray(Image.open(trained / "curves.png").convert("RGB"))
    assert picture.std() > 5
    # By hand, of one layer: 3x3, 64 to 64 channels on 2 x 2 positions, padded by one on each side.
    layer = model.get_submodule("layer3.1.conv2")
    macs = int(layer.coefficients.count_nonzero()) * 4 + int(layer.dictionary.count_nonzero()) * 16  # type: ignore[union-attr]
    assert last["speedups"]["layer3.1.conv2"] == pytest.approx(64 * 64 * 9 * 4 / macs)


def test_tensorboard_files_hold_the_figures_of_the_log(tmp_path: Path) -> None:
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert lcnn(*TINY, "--tensorboard", "--log-every", 1, "-o", tmp_path / "run") == 0
    events = loading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("batch/loss")] == pytest.approx(losses_of(tmp_path / "run"))
    last = log_of(tmp_path / "run")[-2]
    assert events.Scalars("epoch/validation_top1")[-1].value == pytest.approx(last["validation"]["top1"])
    assert events.Scalars("density/conv1")[-1].value == pytest.approx(last["densities"]["conv1"])


# --- evaluate ----------------------------------------------------------------------------------------------------


def test_evaluation_class_by_class_against_scikit_learn(trained: Path, tmp_path: Path, capsys: Any) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    from lcnn_core import evaluate_classes, load_dataset

    path, test = trained / "best.pt", load_dataset("digits").test
    model = checkpoint.load(path).build()
    answers = model(test.images).argmax(1)  # type: ignore[attr-defined]
    found = evaluate_classes(model, test, 64)
    np.testing.assert_array_equal(found.confusion.numpy(), confusion_matrix(test.labels, answers))
    precision, recall, _, count = precision_recall_fscore_support(test.labels, answers, zero_division=np.nan)
    assert call("evaluate", path, "--classes", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["classes"]
    assert [row["count"] for row in rows] == count.tolist()
    for row, p, r in zip(rows, precision, recall, strict=True):
        assert row["recall"] == pytest.approx(r)
        assert row["precision"] is None if np.isnan(p) else row["precision"] == pytest.approx(p)
    assert call("evaluate", path, "--classes", "--confusion", tmp_path / "c.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["class", "precision", "recall", "images"]
    assert lines[2].split()[0] == "0"
    assert len(lines) == 12
    assert np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).std() > 5


def test_another_picture_than_png_is_refused_before_anything_is_stored(
    trained: Path, tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes((trained / "best.pt").read_bytes())
    assert call("evaluate", path, "--store", "--confusion", tmp_path / "c.gif") == 2
    assert "c.gif'; expected a file that ends in .png" in capsys.readouterr().err
    assert path.read_bytes() == (trained / "best.pt").read_bytes()


def test_what_was_measured_is_stored_for_the_spectrum(trained: Path, tmp_path: Path, capsys: Any) -> None:
    from lcnn_analyze import analyze

    path = tmp_path / "m.pt"
    path.write_bytes((trained / "best.pt").read_bytes())
    for _ in range(2):
        assert call("evaluate", path, "--store", "--store-as", "scanned", "--json") == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored = [m for m in checkpoint.load(path).metrics if m["dataset"] == "scanned (test)"]
    assert [(m["name"], m["value"]) for m in stored] == [("top1", found["top1"]), ("top5", found["top5"])]
    assert "scanned (test)" in {accuracy.dataset for accuracy in analyze(path).models[0].accuracy}


def test_a_bare_state_dict_and_another_source(trained: Path, tmp_path: Path, capsys: Any) -> None:
    saved = checkpoint.load(trained / "best.pt")
    torch.save(checkpoint.load(trained / "best.pt").state_dict, tmp_path / "bare.pth")
    assert call("evaluate", tmp_path / "bare.pth", "--arch", "digits-resnet-lcnn", "--store") == 2
    assert "bare.pth is no checkpoint of this project" in capsys.readouterr().err
    assert call("evaluate", tmp_path / "bare.pth", "--arch", "digits-resnet-lcnn", "--json") == 0
    bare = json.loads(capsys.readouterr().out)
    assert call("evaluate", trained / "best.pt", "--json") == 0
    own = json.loads(capsys.readouterr().out)
    assert bare["top1"] == own["top1"]
    assert saved.normalization is not None


def test_crops_on_image_files(tmp_path: Path, capsys: Any) -> None:
    data = ("--data", "fake:20x2")
    options = ("--model", "digits-resnet", *data, "--image-size", 16, "--epochs", 1, "--batch-size", 10, "--workers", 0)
    assert lcnn(*options, "-q", "-o", tmp_path / "m.pt") == 0
    capsys.readouterr()
    losses = {}
    for crops in (1, 5, 10):
        assert (
            call("evaluate", tmp_path / "m.pt", *data, "--crops", crops, "--workers", 0, "--json", "--split", "train")
            == 0
        )
        found = json.loads(capsys.readouterr().out)
        assert (found["count"], found["crops"], found["unreadable"]) == (20, crops, 0)
        losses[crops] = found["loss"]
    assert len(set(losses.values())) == 3
    assert call("evaluate", tmp_path / "m.pt", *data, "--crops", 3) == 2
    assert "crops is 3; expected one of 1, 5, 10" in capsys.readouterr().err


# --- the published networks --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("model", ["alexnet", "alexnet-lcnn", "resnet18", "resnet18-lcnn"])
def test_every_family_at_full_size_from_jpegs(model: str, tmp_path: Path, capsys: Any) -> None:
    """224 pixels, 1,000 classes, the published sizes: 20 steps, evaluation, count."""
    data = ("--data", "fake:80x1000")
    options = ("--epochs", 1, "--batches-per-epoch", 20, "--batch-size", 4, "--lr", "1e-3", "--log-every", 1, "-q")
    assert lcnn("--model", model, *data, *options, "-o", tmp_path / "run") == 0
    losses = losses_of(tmp_path / "run")
    assert len(losses) == 20
    assert all(np.isfinite(losses))
    saved = checkpoint.load(tmp_path / "run" / "best.pt")
    assert saved.input_shape == (3, 224, 224)
    capsys.readouterr()
    assert call("evaluate", tmp_path / "run" / "best.pt", *data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["count"] == 8
    assert call("analyze", tmp_path / "run" / "best.pt", "--format", "json") == 0
    assert '"architecture"' in capsys.readouterr().out
