"""The engine's tests on libraries built with AddressSanitizer and UndefinedBehaviorSanitizer, every report an error.

One command: ``pytest -m slow tests/core/test_engine_sanitized.py``. Needs CMake and GCC with its sanitizers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
MISSING = [tool for tool in ("cmake", "gcc") if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
FILES = [f"test_engine{part}.py" for part in ("", "_beside", "_shifted", "_linear", "_native", "_team")]
ELSEWHERE = "not runs_out_of_memory"
"""Left out: a test that bounds the memory of a process, of which the sanitizer's shadow takes terabytes."""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a Python that loads the sanitized libraries."""
    made = tmp_path_factory.mktemp("sanitized")
    subprocess.run(["cmake", "-S", ROOT, "-B", made, "-DLCNN_SANITIZE=ON"], check=True)
    subprocess.run(["cmake", "--build", made, "-j", "2"], check=True)

    def runtime(name: str) -> str:
        return subprocess.run(
            ["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()

    return {
        **os.environ,
        "LCNN_LIBRARY_FOLDER": str(made),
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')}",
        "ASAN_OPTIONS": "detect_leaks=0",  # of Python's own
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


@pytest.mark.parametrize("file", FILES)
def test_no_report(environment: dict[str, str], file: str) -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-k", ELSEWHERE, str(Path(__file__).parent / file)]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]


def test_a_read_out_of_bounds_would_be_reported(environment: dict[str, str], tmp_path: Path) -> None:
    """That the runtime is in place: a C file with one, built the same way and called from the same Python."""
    (tmp_path / "bad.c").write_text(
        "#include <stdlib.h>\nint bad(int i) { char* p = malloc(4); int x = p[i]; free(p); return x; }"
    )
    flags = ["-g", "-fsanitize=address", "-shared", "-fPIC"]
    subprocess.run(["gcc", *flags, tmp_path / "bad.c", "-o", tmp_path / "bad.so"], check=True)
    program = f"import ctypes; ctypes.CDLL({str(tmp_path / 'bad.so')!r}).bad(5)"
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ran.returncode != 0
    assert "heap-buffer-overflow" in ran.stderr
