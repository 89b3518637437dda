"""The command line: files end to end, formats, exit codes, one-line errors, and what it does not load."""

from __future__ import annotations

import io
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from analyze_runs import save_sparse
from handmade import both

from lcnn_analyze import RENDERERS, Report
from lcnn_analyze.cli import analyze as analyze_module
from lcnn_analyze.cli.app import COMMANDS, load_command
from lcnn_analyze.cli.errors import EXIT_CODES
from lcnn_analyze.cli.output import print_report
from lcnn_analyze.cost import checks
from lcnn_core import LcnnError, TrainingError, UnsupportedLayerError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """dense.pt and lookup.safetensors, small networks for 8x8 images with accuracies."""
    where = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for file, name, accuracy in (
        ("dense.pt", "digits-resnet", 0.978),
        ("lookup.safetensors", "digits-resnet-lcnn", 0.971),
    ):
        metrics = [{"name": "top1", "value": accuracy, "dataset": "digits", "count": 450}]
        save_sparse(where / file, name, 0.1, metrics=metrics)
    return where


def test_one_file_gives_a_table(analyze):
    code, out, err = analyze("lookup.safetensors")
    assert (code, err) == (0, "")
    assert "lookup (digits-resnet-lcnn), 1 x 8 x 8 input" in out
    assert "layer1.0.conv1" in out
    assert "command" in out
    assert "analyze lookup.safetensors" in out
    assert "sha256" in out
    assert "\x1b" not in out


def test_several_files_are_compared_with_a_spectrum(analyze):
    code, out, _ = analyze("dense.pt", "lookup.safetensors", "--check")
    assert code == 0
    assert "Comparison" in out
    assert "Spectrum: top-1 on digits against counted speedup over digits-resnet" in out
    assert "0.7 points below the dense network" in out
    assert out.count("agrees: 1,058,432 MACs") == 4


@pytest.mark.parametrize("renderer", RENDERERS.values(), ids=RENDERERS)
def test_every_format_by_option_and_by_suffix(analyze, folder, renderer, tmp_path):
    by_suffix, by_option = tmp_path / f"report{renderer.suffixes[0]}", tmp_path / "report.other"
    code, out, err = analyze("lookup.safetensors", "-o", str(by_suffix))
    assert (code, out, err) == (0, "", f"wrote {by_suffix}\n")
    code, out, err = analyze("lookup.safetensors", "-q", "-f", renderer.name, "-o", str(by_option))
    assert (code, out, err) == (0, "", "")
    # the two differ by the command they name only
    commands = [
        f"analyze lookup.safetensors -o {by_suffix}",
        f"analyze lookup.safetensors -q -f {renderer.name} -o {by_option}",
    ]
    contents = [path.read_bytes() for path in (by_suffix, by_option)]
    if renderer.name in ("json", "csv", "png", "svg"):
        assert contents[0].replace(commands[0].encode(), commands[1].encode()) == contents[1]
    if renderer.text:
        code, out, _ = analyze("lookup.safetensors", "-f", renderer.name)
        assert (code, out[-1]) == (0, "\n")


def test_a_report_renders_again_from_its_json_alone(analyze, tmp_path):
    kept = tmp_path / "report.json"
    kept.write_text(both().to_json() + "\n", encoding="utf-8")
    assert analyze(str(kept), "--json")[1] == kept.read_text(encoding="utf-8")
    assert analyze(str(kept), "-f", "html")[1].encode() == RENDERERS["html"].render(both())
    code, out, _ = analyze(str(kept), "dense.pt", "--json")
    made = Report.from_json(out)
    assert (code, [model.name for model in made.models]) == (0, ["dense", "lookup", "dense (2)"])
    assert made.command == f"analyze {kept} dense.pt --json"


def test_architectures_need_no_file(analyze):
    code, out, _ = analyze("alexnet-lcnn", "--baseline", "resnet18", "--convention", "output-resolution", "--json")
    made = Report.from_json(out)
    assert code == 0
    assert made.convention.name == "output-resolution"
    assert made.model.reference.name == "resnet18"


def test_a_folder_that_is_called_like_an_architecture_is_in_no_ones_way(analyze, folder):
    """A run's folder often is: the checkpoint's own reference, a named one and the architecture itself are meant."""
    (folder / "digits-resnet").mkdir()
    try:
        for arguments in (
            ["lookup.safetensors"],
            ["lookup.safetensors", "--baseline", "digits-resnet"],
            ["digits-resnet"],
        ):
            code, out, err = analyze(*arguments)
            assert (code, err) == (0, "")
            assert "vs digits-resnet" in out
    finally:
        (folder / "digits-resnet").rmdir()


def test_plot_beside_the_table(analyze, tmp_path):
    code, out, err = analyze("dense.pt", "lookup.safetensors", "--plot", str(tmp_path / "s.png"))
    assert (code, err) == (0, f"wrote {tmp_path / 's.png'}\n")
    assert "Comparison" in out
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


def test_files_of_one_stem_are_told_apart_by_path(analyze, folder, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "best.pt").write_bytes((folder / "dense.pt").read_bytes())
    _, out, _ = analyze(str(tmp_path / "a/best.pt"), str(tmp_path / "b/best.pt"), "--json")
    assert [model.name for model in Report.from_json(out).models] == [
        str(tmp_path / "a/best"),
        str(tmp_path / "b/best"),
    ]


def test_a_failed_check_is_exit_1_and_names_the_layer(analyze, monkeypatch):
    real = checks.dense_macs_by_layer

    def off_by_one(costs):
        counted = real(costs)
        return {**counted, "fc": counted["fc"] + 1}

    monkeypatch.setattr("lcnn_analyze.crosscheck.dense_macs_by_layer", off_by_one)
    code, out, err = analyze("dense.pt", "--check", "-q")
    assert code == 1
    assert "Comparison" not in out
    assert "check: dense: fvcore" in err
    assert "fc ours 641, theirs 640" in err


# Errors: one line on stderr, nothing on stdout, the right code

ERRORS = [
    (["nosuch.pt"], 3, "nosuch.pt does not exist"),
    (["."], 3, ". is a folder"),
    (["dense.pt", "--baseline", "."], 3, ". is a folder"),
    (["empty.pt"], 3, "empty.pt"),
    (["text.pt"], 3, "text.pt"),
    (["cut.pt"], 3, "cut.pt"),
    (["cut.safetensors"], 3, "cut.safetensors"),
    (["picture.jpg"], 3, "picture.jpg"),
    (["nosuch.json"], 3, "nosuch.json cannot be read"),
    (["bad.json"], 3, "not a report"),
    (["binary.json"], 3, "binary.json is not text"),
    (["resnet19"], 2, "unknown architecture 'resnet19'; did you mean"),
    ([], 2, "Missing argument 'MODEL'; see `analyze --help`"),
    (["dense.pt", "--formt", "md"], 2, "No such option: --formt"),
    (["dense.pt", "-f", "xml"], 2, "--format is 'xml'; expected one of table, json"),
    (["dense.pt", "-f", "png"], 2, "--format png is a picture; give a file"),
    (["dense.pt", "--json", "-f", "md"], 2, "--json and --format md contradict each other"),
    (["dense.pt", "--convention", "x"], 2, "--convention is 'x'; expected one of published"),
    (["dense.pt", "--baseline", "x"], 2, "unknown architecture 'x'"),
    (["dense.pt", "--input-shape", "3,8,8"], 2, "--input-shape is '3,8,8'; expected sizes"),
    (["dense.pt", "--input-shape", "3x8x8"], 2, "(3, 8, 8) does not run through the model"),
    (["dense.pt", "--input-shape", "0x8x8"], 2, "--input-shape is '0x8x8'"),
    (["dense.pt", "-o", "x.pdf"], 2, "output file 'x.pdf' ends in '.pdf'"),
    (["dense.pt", "--plot", "x.html"], 2, "--plot is 'x.html'; expected a file that ends in .png or .svg"),
    (["digits-resnet", "--plot", "x.png"], 2, "no model carries an accuracy"),
    (["dense.pt", "-o", "no/such/x.md"], 5, "cannot write 'no/such/x.md'"),
    (["dense.pt", "-o"], 2, "Option '-o' requires an argument"),
    (["dense.pt", "--check=yes"], 2, "does not take a value"),
]


@pytest.fixture(scope="session")
def damaged(folder) -> Path:
    whole = (folder / "dense.pt").read_bytes()
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("not a checkpoint\n")
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.safetensors").write_bytes((folder / "lookup.safetensors").read_bytes()[:200])
    (folder / "picture.jpg").write_bytes(b"\xff\xd8")
    (folder / "bad.json").write_text("{}")
    (folder / "binary.json").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS, ids=[" ".join(case[0]) or "none" for case in ERRORS])
def test_errors_are_one_line_with_the_right_code(analyze, damaged, arguments, code, message):
    before = sorted(damaged.iterdir())
    got, out, err = analyze(*arguments)
    assert (got, out) == (code, "")
    assert err.startswith("analyze: ")
    assert err.count("\n") == 1
    assert message in err
    assert "Traceback" not in err
    assert sorted(damaged.iterdir()) == before, "something was left behind"


def test_strict_refuses_a_partial_count(analyze, monkeypatch):
    def partial(*args, **kwargs):
        assert kwargs["strict"]
        raise UnsupportedLayerError("counted in part")

    monkeypatch.setattr(analyze_module, "analyze_model", partial)
    assert analyze("dense.pt", "--strict") == (4, "", "analyze: counted in part\n")


def test_every_library_error_has_a_code():
    for kind in [LcnnError, *LcnnError.__subclasses__(), OSError, MemoryError]:
        assert any(issubclass(kind, known) for known in EXIT_CODES)
    assert next(code for kind, code in EXIT_CODES.items() if issubclass(TrainingError, kind)) == 5


def test_a_file_that_stood_there_survives_a_failure(analyze, tmp_path):
    target = tmp_path / "report.md"
    target.write_text("precious")
    assert analyze("dense.pt", "digits-resnet", "nosuch.pt", "-o", str(target))[0] == 3
    assert target.read_text() == "precious"


def test_messages_hold_no_control_characters(analyze):
    code, _, err = analyze("\x1b[31m\nred.pt")
    assert code == 3
    assert err.count("\n") == 1
    assert "\x1b" not in err


# In a process of its own


def lcnn(*arguments: str, **options) -> subprocess.CompletedProcess:
    code = "from lcnn_analyze.cli.app import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, **options)


HEAVY = ("torch", "numpy", "pandas", "matplotlib", "jinja2", "fvcore")


@pytest.mark.parametrize("arguments", [["--help"], ["analyze", "--help"], ["--version"], []])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print(*[m for m in {HEAVY} if m in sys.modules], file=sys.stderr))\n"
        "from lcnn_analyze.cli.app import main; main()"
    )
    ran = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr.strip()) == (0, "")
    assert "lcnn" in ran.stdout or "MODEL" in ran.stdout


def test_help_is_quick():
    """Processor time of the best of five, so that a busy machine fails nothing."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert lcnn("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_listed_and_has_help(name):
    shown = lcnn("--help").stdout
    assert name in shown
    command = load_command(name)
    assert command.name == name
    assert command.help


def test_a_misspelt_command_is_one_line():
    ran = lcnn("analyse")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "lcnn: No such command 'analyse'. Did you mean 'analyze'?; see `lcnn --help`\n"


def test_a_reader_that_leaves_early_is_no_error(folder):
    code = "from lcnn_analyze.cli.app import main; main()"
    command = f'{sys.executable} -c "{code}" analyze {folder}/dense.pt {folder}/lookup.safetensors --json | head -c 20'
    ran = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout == '{\n  "schema_version"'


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_gets_colour_and_no_color_takes_it_away(monkeypatch, environment, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in {**environment, "COLUMNS": "70"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", Terminal())
    print_report(both(), RENDERERS["table"])
    shown = sys.stdout.getvalue()
    assert ("\x1b[" in shown) == coloured
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line)) for line in shown.splitlines()) <= 70


def test_output_that_the_encoding_lacks_is_replaced(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    print_report(both(), RENDERERS["table"])
    assert b"body.0" in raw.getvalue()
    assert b"?" in raw.getvalue()


def test_ctx_carries_what_was_typed(analyze):
    _, out, _ = analyze("dense.pt", "--json", "--baseline", "digits-resnet-lcnn")
    assert json.loads(out)["command"] == "analyze dense.pt --json --baseline digits-resnet-lcnn"
