"""The tutorial's Python runs as it stands, block after block, in one process and one scratch folder."""

from __future__ import annotations

import re
from pathlib import Path

TUTORIAL = Path(__file__).parent.parent / "reports/tutorial.md"


def test_every_block_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = TUTORIAL.read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    names: dict = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(TUTORIAL), "exec"), names)  # lines as in the file, for tracebacks
    assert (tmp_path / "both.html").stat().st_size > 10_000
    assert {"analyze", "compare", "Report", "pack"} <= set(names)


def test_links_exist():
    targets = re.findall(r"\]\(([^)]+)\)", TUTORIAL.read_text())
    assert targets
    assert all((TUTORIAL.parent / target).exists() for target in targets)
