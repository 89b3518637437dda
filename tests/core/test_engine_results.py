"""Results of a compiled model: each handed out once, as torch makes tensors now, whatever was made ahead."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from lcnn_core.engine import compile, libraries
from lcnn_core.engine.results import READY_BYTES, Results

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")


def test_no_call_writes_over_what_another_returned() -> None:
    compiled = compile(nn.Linear(6, 5).eval(), torch.randn(1, 6))
    inputs = [torch.randn(1 + i % 2, 6) for i in range(100)]
    made = [compiled(x) for x in inputs]
    assert len({y.data_ptr() for y in made}) == 100
    assert all(torch.equal(y, compiled(x)) for x, y in zip(inputs, made, strict=True))


def test_what_was_made_in_inference_mode_serves_outside_it() -> None:
    results = Results([(5,)])
    with torch.inference_mode():
        results.take(1)
        results.take(1)
    [y], _ = results.take(1)
    scale = torch.ones(5, requires_grad=True)
    (y.fill_(2.0) * scale).sum().backward()
    assert torch.equal(scale.grad, y[0])


def test_eight_threads_share_no_result() -> None:
    results, taken, start = Results([(3,), (2, 2)]), [], threading.Barrier(8)

    def take() -> None:
        start.wait()
        taken.extend(results.take(2) for _ in range(200))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    places = [place for made, places in taken for place in places]
    assert len(set(places)) == 2 * 8 * 200
    assert all([tuple(x.shape) for x in made] == [(2, 3), (2, 2, 2)] for made, _ in taken)
    assert all([x.data_ptr() for x in made] == list(places) for made, places in taken)


@pytest.mark.parametrize(
    ("floats", "ahead"), [(1, 31), (READY_BYTES // 40, 9), (READY_BYTES // 4 + 1, 0), (1 << 22, 0)]
)
def test_what_is_ready_stays_small(floats: int, ahead: int) -> None:
    results = Results([(floats,)])
    results.take(1)
    assert not results._ready[1]  # where batches change from call to call, one by one
    results.take(1)
    assert len(results._ready[1]) == ahead
    results.take(2)
    assert results._ready == (2, [])
