"""``lcnn bench --libraries``: every native library, and another build's, on the same plans."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import lcnn_analyze.cli.bench
import lcnn_core.engine
from lcnn_analyze.bench import libraries as libraries_module
from lcnn_analyze.bench.libraries import OTHER, library_report, library_times
from lcnn_analyze.bench.roofline import measure_peaks
from lcnn_analyze.bench.suites import Configuration
from lcnn_analyze.cli.app import single_command
from lcnn_analyze.cli.errors import run
from lcnn_core import ConfigError, LcnnError
from lcnn_core.engine.library import libraries, library_folder, library_in_use

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")
CPU = Path("/proc/cpuinfo")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    configuration = Configuration("tiny", "digits-resnet-lcnn", lambda name: 0.1)
    monkeypatch.setattr(libraries_module, "PUBLISHED", (configuration,))
    return configuration


def bench(*arguments: str) -> int:
    return run("lcnn", single_command("bench", lcnn_analyze.cli.bench.bench), [*arguments, "--rounds", "2"])


def test_every_library_is_timed_on_the_same_plan():
    report = library_report((1, 3), (1,), 2, library_folder())
    names = [time.library for time in report.times[: len(report.times) // 2]]
    assert names == [*libraries(), *(isa + OTHER for isa in libraries())]
    assert [(time.network, time.batch, time.threads) for time in report.times[:: len(names)]] == [
        ("tiny", 1, 1), ("tiny", 3, 1)
    ]  # fmt: skip
    first, *others = report.times[: len(names)]
    assert first.ratio == 1
    for time in others:
        assert time.ratio == time.latency.median / first.latency.median


def test_the_library_in_use_comes_first(monkeypatch):
    last = list(libraries())[-1]
    monkeypatch.setenv("LCNN_ISA", last)
    assert library_in_use() == last
    assert library_report((1,), (1,), 1).times[0].library == last
    peaks = measure_peaks(0.001)
    assert peaks is not None
    assert peaks.library == last
    several = measure_peaks(0.001, (1 << 16, 1 << 20), cores=2)
    assert several is not None
    assert several.cores == 2
    assert [read.size for read in several.reading] == [1 << 16, 1 << 20]
    assert min(several.matrix_gmacs, several.lookup_gmacs, *(read.gbytes for read in several.reading)) > 0


def test_the_command_prints_and_writes(tmp_path, capsys):
    folder = library_folder()
    assert bench("--libraries", "--against", str(folder), "--batch", "1", "-q") == 0
    shown = capsys.readouterr().out
    assert f"other build: {folder}" in shown.replace("\n", "")
    rows = re.findall(r"tiny +1 +1 +(\w+(?:, other build)?) +[\d.]+ +[\d.]+ to [\d.]+ +[\d.]+", shown)
    assert rows == [*libraries(), *(isa + OTHER for isa in libraries())]
    path = tmp_path / "libraries.json"
    assert bench("--libraries", "--batch", "1", "-q", "-o", str(path)) == 0
    data = json.loads(path.read_text())
    assert [time["library"] for time in data["times"]] == list(libraries())
    assert data["machine"]["processor"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--against", "{empty}"), "has no native library that runs here; expected a folder of"),
    (("--libraries", "--threads", "9999"), "threads is 9999; expected 1 to"),
    (("--libraries", "--batch", "0"), "--batch is '0'; expected"),
    (("--libraries", "--kernels"), "--kernels and --libraries are two reports; ask for one at a time"),
    (("--libraries", "model.pt"), "MODEL does not go with --libraries; leave it out"),
    (("--training", "--suite", "published"), "--suite does not go with --training; leave it out"),
])  # fmt: skip
def test_what_cannot_be_timed_is_one_line(arguments, message, tmp_path, capsys):
    assert bench(*(argument.format(empty=tmp_path) for argument in arguments)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert message in captured.err


@pytest.mark.parametrize("off", [1e-3, float("nan")])
def test_no_time_where_outputs_disagree(tiny, off):
    model = torch.nn.Conv2d(1, 2, 3)
    with tiny.open() as trial, torch.no_grad(), pytest.raises(LcnnError, match="outputs of b and a disagree; no time"):
        library_times(trial, {"a": model, "b": lambda x: model(x) * (1 + off)}, 1, 1, 1)


@pytest.mark.parametrize("source", [None, Path(torch.__file__).parent / "lib" / "libc10.so"], ids=["damaged", "other"])
def test_what_is_no_library_of_the_engine_is_one_line(source, tmp_path, capsys):
    path = tmp_path / f"liblcnn_{next(iter(libraries()))}.so"
    path.write_bytes(source.read_bytes() if source else b"\x7fELF")
    assert bench("--against", str(tmp_path)) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert f"{path} is no library of this engine" in captured.err
    assert captured.err.endswith("; build it again\n")


def test_a_build_that_reads_other_plans_is_one_line(monkeypatch, capsys):
    real = lcnn_core.engine.load

    def load(path, *, folder=None, **options):
        if folder is not None:
            words = bytearray(path.read_bytes())
            words[8] += 1  # the version
            path.write_bytes(words)
        return real(path, folder=folder, **options)

    monkeypatch.setattr(lcnn_core.engine, "load", load)
    assert bench("--against", str(library_folder()), "-q") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert re.search(
        r"the \w+ library in \S+ cannot read these plans: .* version \d+; this library reads", captured.err
    )


def test_a_folder_is_what_it_is_when_asked(tmp_path, monkeypatch):
    folder = library_folder()
    monkeypatch.chdir(folder)
    assert list(libraries(".")) == list(libraries(str(folder))) == list(libraries())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"'\.' has no native library that runs here"):
        libraries(".")


def test_without_a_library_there_is_nothing_to_time(monkeypatch, capsys):
    monkeypatch.setattr(libraries_module, "engine_room", lambda: None)
    assert bench("--libraries") == 2
    assert "there is no native library to time; reinstall lcnn where" in capsys.readouterr().err


@pytest.mark.skipif(not {"avx512", "avx512_wide"} <= set(libraries()), reason="this processor has no AVX-512")
def test_wide_lookups_come_first_where_they_pay():
    def field(name: str) -> str:
        found = re.search(rf"^{name}\s*:\s*(.+)$", CPU.read_text(), re.MULTILINE)
        assert found
        return found[1]

    wide = field("vendor_id") == "AuthenticAMD" or "avx512_fp16" in field("flags").split()
    assert list(libraries())[:2] == (["avx512_wide", "avx512"] if wide else ["avx512", "avx512_wide"])
