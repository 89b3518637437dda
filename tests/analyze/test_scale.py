"""Networks of thousands of layers: time grows with their number and no faster, and the page stays usable."""

from __future__ import annotations

import sys

import pytest
from torch import nn

from lcnn_analyze import RENDERERS, analyze
from lcnn_core import LookupConv2d


def network(layers: int) -> nn.Sequential:
    """Lookup layers in blocks of ten."""
    return nn.Sequential(
        *(
            nn.Sequential(*(LookupConv2d(4, 4, 3, padding=1, dictionary_size=2) for _ in range(10)))
            for _ in range(layers // 10)
        )
    )


def calls_of_our_code(work) -> int:
    """Function calls made by ``lcnn_core`` and ``lcnn_analyze``: the same on every machine."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        count += event == "call" and "/lcnn_" in frame.f_code.co_filename

    sys.setprofile(trace)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("format", ["html", "json", "table"])
def test_work_grows_with_the_number_of_layers(format):
    def work(layers):
        model = network(layers)
        return calls_of_our_code(lambda: RENDERERS[format].render(analyze(model, (4, 4, 4))))

    small, large = work(50), work(200)
    assert large < 4.1 * small


def test_two_thousand_layers_take_four_times_the_calls_of_five_hundred():
    def work(layers):
        model = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(layers)))
        report = []
        calls = calls_of_our_code(lambda: report.append(analyze(model, (2, 4, 4))))
        assert len(report[0].model.costs.layers) == layers
        return calls

    assert work(2000) < 4.1 * work(500)
