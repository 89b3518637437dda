"""Fixtures of more than one file here."""

from __future__ import annotations

import pytest
from analyze_runs import COMMAND

from lcnn_analyze.cli.errors import run


@pytest.fixture
def analyze(folder, monkeypatch, capsys):
    """Run ``analyze ARGUMENTS`` in the ``folder`` of the file's models: (code, stdout, stderr)."""
    monkeypatch.chdir(folder)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run("analyze", COMMAND, arguments)
        return code, *capsys.readouterr()

    return call
