"""The start-up benchmark: what it runs, and that a failing program is named."""

from __future__ import annotations

import pytest

from lcnn_analyze.bench import startup
from lcnn_core import CheckpointError, ConfigError


def test_every_program_counts_the_model_that_was_asked_for():
    named = startup.scripts("digits-resnet")
    assert [script.name for script in named] == ["import torch", "analyze", "fvcore", "ptflops", "torchinfo"]
    assert all("'digits-resnet'" in script.code for script in named[1:])
    with pytest.raises(ConfigError, match="unknown architecture 'digits-resnt'; did you mean digits-resnet"):
        startup.scripts("digits-resnt")
    with pytest.raises(CheckpointError, match=r"no\.pt does not exist; give a checkpoint or the name"):
        startup.scripts("no.pt")


def test_a_process_is_measured_and_a_failure_named():
    use = startup.run(startup.Script("busy", "sys", "x = bytearray(64 << 20); sum(range(1_000_000))"))
    assert 0 < use.cpu < 10
    assert 64 < use.memory < 64 + 400
    with pytest.raises(RuntimeError, match="broken failed: ValueError: no such thing"):
        startup.run(startup.Script("broken", "sys", "raise ValueError('no such thing')"))


def test_medians_are_taken_of_interleaved_runs(monkeypatch):
    order = []

    def fake(script):
        order.append(script.name)
        return startup.Usage(len(order), len(order), len(order))

    monkeypatch.setattr(startup, "run", fake)
    both = [startup.Script("a", "sys", ""), startup.Script("b", "sys", "")]
    usages = startup.measure(both, 3)
    assert order == ["a", "b"] * 3
    assert (usages["a"].wall, usages["b"].memory) == (3, 4)
