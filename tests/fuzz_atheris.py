"""Coverage-guided fuzzing of the readers: ``python tests/fuzz_atheris.py t7 CORPUS [libFuzzer flags]``.

Not part of the suite; needs ``pip install atheris``. First the suffix without its dot (t7, safetensors, pt, pt2, onnx),
then a folder that starts with small good files, such as those of the fixture ``seeds`` in core/test_fuzz_readers.py.
Anything but a model, CheckpointError or ConfigError is a finding: libFuzzer stops and writes it to ``crash-...``; keep
it in ``FOUND`` there. Usual flags: -max_total_time=600 -timeout=10 -rss_limit_mb=3000 -max_len=8192.
"""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lcnn_core.checkpoint"]):
    from lcnn_core.checkpoint.opening import open_model
from lcnn_core.errors import CheckpointError, ConfigError

suffix = sys.argv.pop(1)
folder = tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
path = Path(folder.name) / f"fuzzed.{suffix}"


def one_input(data: bytes) -> None:
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError, ConfigError):
        open_model(path, None if suffix in ("onnx", "pt2", "t7") else "digits-resnet")


atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
