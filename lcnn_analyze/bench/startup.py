"""``python -m lcnn_analyze.bench.startup MODEL``: what a count costs as a whole process, beside other tools' scripts.

Each row is a fresh Python process, started in turns: wall-clock time, CPU time and peak memory, medians. The other
tools count a module, so they get the usual short script: build the architecture, ``load_state_dict`` where there is a
file (.pt of this project), count.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from lcnn_core import CheckpointError, models


@dataclass(frozen=True)
class Script:
    """One program to time. ``package``: what must be installed for it."""

    name: str
    package: str
    code: str


@dataclass(frozen=True)
class Usage:
    """One run of a script, or the medians of several: seconds, seconds, MiB."""

    wall: float
    cpu: float
    memory: float


def scripts(model: str) -> tuple[Script, ...]:
    """The programs for ``model``, a checkpoint or an architecture of ours. Raises ConfigError for an unknown name."""
    start = "import torch, lcnn_core; "
    read: tuple[Script, ...] = ()
    if Path(model).suffix:
        if not Path(model).is_file():
            raise CheckpointError(f"{model} does not exist; give a checkpoint or the name of an architecture")
        start += f"c = torch.load({model!r}, weights_only=True); model = lcnn_core.build(c['architecture'], **dict("
        start += "c['arguments'])).eval(); model.load_state_dict(c['state_dict']); shape = tuple(c['input_shape']); "
        read = (Script("import torch, read the file", "torch", f"import torch; open({model!r}, 'rb').read()"),)
    else:
        models.resolve(model)
        start += f"model, shape = lcnn_core.build({model!r}).eval(), lcnn_core.input_shape_of({model!r}); "
    analyze = f"import sys; sys.argv = ['analyze', {model!r}]; from lcnn_analyze.cli.app import analyze_main as main; "
    fvcore = "from fvcore.nn import FlopCountAnalysis as F; print(F(model, torch.zeros(1, *shape)).total())"
    ptflops = "from ptflops import get_model_complexity_info as f; print(f(model, shape))"
    torchinfo = "from torchinfo import summary; summary(model, input_data=torch.zeros(1, *shape))"
    return (
        Script("import torch", "torch", "import torch"),
        *read,
        Script("analyze", "lcnn_analyze", f"{analyze}main()"),
        Script("fvcore", "fvcore", start + fvcore),
        Script("ptflops", "ptflops", start + _torchvision_first() + ptflops),
        Script("torchinfo", "torchinfo", start + torchinfo),
    )


def _torchvision_first() -> str:
    """ptflops imports torchvision, which beside a CPU-only torch needs two operators named first (the checkpoint room's
    ``import_torchvision`` does the same by trying twice, which would not be fair to time).
    """
    if not version("torch").endswith("+cpu") or find_spec("torchvision") is None or "+" in version("torchvision"):
        return ""
    define = "".join(f"t.define('{op}(Tensor d, Tensor s, float i) -> Tensor'); " for op in ("nms", "qnms"))
    return f"t = torch.library.Library('torchvision', 'DEF'); {define}"


_TELL_PEAK = "import atexit, sys; atexit.register(lambda: sys.stderr.write(open('/proc/self/status').read())); "
"""The process tells its own peak as it ends: what the system reports of a child starts with the peak of its parent."""


def run(script: Script) -> Usage:
    """One fresh process. Raises RuntimeError with the last line of its stderr where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", _TELL_PEAK + script.code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    said, _, status_text = said.rpartition("Name:\t")
    if process.returncode:
        raise RuntimeError(f"{script.name} failed: {(said.strip().splitlines() or ['no message'])[-1]}")
    peak = int(status_text.split("VmHWM:")[1].split()[0])
    return Usage(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak / 1024)


def measure(programs: Sequence[Script], rounds: int) -> dict[str, Usage]:
    """Medians of ``rounds`` interleaved runs of each program."""
    runs: dict[str, list[Usage]] = {script.name: [] for script in programs}
    for _ in range(rounds):
        for script in programs:
            runs[script.name].append(run(script))
    return {
        name: Usage(*(statistics.median(getattr(use, field) for use in uses) for field in ("wall", "cpu", "memory")))
        for name, uses in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser("python -m lcnn_analyze.bench.startup", description=__doc__)
    parser.add_argument("model", help="a checkpoint, or an architecture of lcnn_core.MODELS")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    programs = scripts(arguments.model)
    missing = [script.package for script in programs if find_spec(script.package) is None]
    if missing:
        print(f"not installed, left out: {', '.join(missing)}; pip install {' '.join(missing)}", file=sys.stderr)
    usages = measure([script for script in programs if script.package not in missing], arguments.rounds)
    bare = usages["import torch"]
    print(f"{arguments.model}, whole process, medians of {arguments.rounds} interleaved runs, {os.cpu_count()} CPUs\n")
    print("| program | wall s | of import torch | CPU s | peak MiB | over import torch, MiB |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, use in usages.items():
        more = f"{use.memory:.0f} | {use.memory - bare.memory:+.0f}"
        print(f"| {name} | {use.wall:.2f} | {use.wall / bare.wall:.2f}x | {use.cpu:.2f} | {more} |")


if __name__ == "__main__":
    main()
