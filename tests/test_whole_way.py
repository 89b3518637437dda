"""The whole way on real images, once a session: train, convert, checkpoint, analyze, report. The figures must agree.

Every later stage of the project joins here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lcnn_analyze import Report, analyze
from lcnn_core import LookupLayer, count_layer, counted_speedup, describe, load, load_dataset

LOOKUPS = ("lookup-10x", "lookup-16x")


@pytest.fixture(scope="module")
def report(quickstart: Path) -> Report:
    return Report.from_json((quickstart / "report.json").read_text())


def share_right(model: nn.Module) -> float:
    """Accuracy on the test images, without the project's own evaluation."""
    test = load_dataset("digits").test
    with torch.no_grad():
        answers = torch.cat([model(images).argmax(1) for images in test.images.split(50)])
    return float((answers == test.labels).double().mean())


def macs_by_hand(model: nn.Module, shape: tuple[int, ...]) -> int:
    """MACs under ``published``, from weights and the shapes that pass: a hook and multiplications, nothing shared."""
    total = 0

    def hook(module, args, output):
        nonlocal total
        (x,), y = args, output
        if isinstance(module, nn.Conv2d):
            total += y[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()
        elif isinstance(module, LookupLayer):
            positions = y[0, 0].numel() if y.ndim == 4 else 1
            total += positions * int((module.coefficients != 0).sum())
            if module.dictionary is not None:
                (top, left) = module.padding
                total += int((module.dictionary != 0).sum()) * (x.shape[2] + 2 * top) * (x.shape[3] + 2 * left)

    handles = [module.register_forward_hook(hook) for module in model.modules()]
    with torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return total


def test_lookup_networks_are_within_a_point_of_the_dense_one(quickstart: Path):
    dense = share_right(load(quickstart / "dense.pt").build())
    assert dense >= 0.97
    for name, least in zip(LOOKUPS, (10, 16), strict=True):
        checkpoint = load(quickstart / f"{name}.pt")
        assert counted_speedup(describe(checkpoint.build(), checkpoint.input_shape).layers) >= least
    assert dense - share_right(load(quickstart / "lookup-10x.pt").build()) <= 0.01


@pytest.mark.parametrize("name", ["dense", *LOOKUPS])
def test_figures_agree_from_weights_to_page(name: str, quickstart: Path, report: Report):
    checkpoint = load(quickstart / f"{name}.pt")
    model = checkpoint.build()
    shown = next(entry for entry in report.models if entry.name == name)
    spec = describe(model, checkpoint.input_shape)
    total = macs_by_hand(model, checkpoint.input_shape)
    assert sum(count_layer(layer).total for layer in spec.layers) == total
    assert shown.costs.totals["macs"] == total
    assert shown.twin.speedup == pytest.approx(counted_speedup(spec.layers))
    accuracy = {metric["name"]: metric["value"] for metric in checkpoint.metrics}
    assert accuracy["top1"] == pytest.approx(share_right(model))
    assert {entry.metric: entry.percent for entry in shown.accuracy}["top-1"] == pytest.approx(100 * accuracy["top1"])
    assert analyze(quickstart / f"{name}.pt").model.costs == shown.costs


def test_every_dense_twin_was_recounted_and_agrees(report: Report):
    for model in report.models:
        assert model.cross_check is not None
        assert model.cross_check.agree


def test_the_page_carries_the_report(quickstart: Path, report: Report):
    page = (quickstart / "report.html").read_text()
    embedded = re.search(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert Report.from_json(json.dumps(json.loads(embedded[1]))) == report
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_saved_model_goes_on_in_both_formats(quickstart: Path, tmp_path: Path):
    from lcnn_core import save

    checkpoint = load(quickstart / "lookup-10x.pt")
    save(tmp_path / "copy.safetensors", checkpoint)
    image = load_dataset("digits").test.images[:4]
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "copy.safetensors").build()(image), checkpoint.build()(image))


def test_compiled_and_exported_networks_answer_alike(quickstart: Path, tmp_path: Path):
    import onnxruntime

    from lcnn_core import compile, export_onnx

    images = load_dataset("digits").test.images[:64]
    for name in ("dense", *LOOKUPS):
        model = load(quickstart / f"{name}.pt").build()
        with torch.no_grad():
            expected = model.double()(images.double())
            answers = [compile(model.float(), images[:1])(images)]
        export_onnx(model, images[:1], tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
        feed = session.get_inputs()[0].name
        answers.append(torch.cat([torch.from_numpy(session.run(None, {feed: i[None].numpy()})[0]) for i in images]))
        for answer in answers:
            assert float((answer - expected).abs().max() / expected.abs().max()) <= 1e-5


def test_folder_is_named_and_holds_what_it_says(quickstart: Path):
    assert {"report.html", "report.md", "report.json", "spectrum.png", "spectrum.svg", "dense.pt"} <= {
        path.name for path in quickstart.iterdir()
    }
    out = (quickstart.parent / "stdout.txt").read_text()
    assert "lcnn-quickstart/report.html" in out.replace("\\", "/")


def test_quickstart_refuses_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        [sys.executable, "-m", "lcnn_analyze", "quickstart", "-o", str(tmp_path / "file" / "x")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 5
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "file" / "x") in done.stderr
