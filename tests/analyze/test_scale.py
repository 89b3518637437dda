"""Networks of thousands of layers: time grows with their number and no faster, and the page stays usable."""

from __future__ import annotations

import sys
import time

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


def test_two_thousand_layers_take_four_times_five_hundred():
    """CPU time: four times as much is linear, sixteen times quadratic."""
    times = []
    for layers in (500, 2000):
        model = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(layers)))
        start = time.process_time()
        report = analyze(model, (2, 4, 4))
        times.append(time.process_time() - start)
        assert len(report.model.costs.layers) == layers
    assert times[1] < 8 * times[0]


def test_the_page_stays_under_its_bounds():
    """300 kB up to 200 layers, at most 1.5 kB for each further one."""
    at_200, at_400 = (len(RENDERERS["html"].render(analyze(network(n), (4, 4, 4)))) for n in (200, 400))
    assert at_200 < 300_000
    assert at_400 - at_200 < 200 * 1_500
