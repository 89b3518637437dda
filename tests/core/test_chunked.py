"""Steps on a large P in chunks: the same numbers and gradients as one product over all of it, without its copies."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lcnn_core import LookupConv2d, LookupLinear, chunked
from lcnn_core import functional as lf

EPS = 0.3


@pytest.fixture(params=[1, 7, 64, 10**6])
def small_chunks(request, monkeypatch):
    """Chunks of so many entries, for every P: shorter than a row, uneven, several, all of P at once."""
    monkeypatch.setattr(chunked, "LARGE", 1)
    monkeypatch.setattr(chunked, "MULTIPLIED", request.param)
    monkeypatch.setattr(chunked, "SUMMED", request.param)


def by_masks(x, coefficients, bias, threshold):
    """In float64, by where() instead of hardshrink."""
    kept = torch.where(coefficients.abs() > threshold, coefficients, torch.zeros_like(coefficients))
    return F.linear(x, kept, bias)


@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3)], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_thresholded_linear(small_chunks, lead, biased):
    torch.manual_seed(0)
    values = torch.randn(*lead, 11), torch.randn(9, 11), torch.randn(9) if biased else None
    values[1][0, :3] = torch.tensor([EPS, -EPS, 0.0])
    inputs = [None if value is None else value.requires_grad_() for value in values]
    wanted = [None if value is None else value.detach().double().requires_grad_() for value in values]
    y, expected = lf.thresholded_linear(*inputs, EPS), by_masks(*wanted, torch.tensor(EPS).item())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    y.backward(upstream)
    expected.backward(upstream.double())
    for given, right in zip(inputs, wanted, strict=True):
        if given is not None:
            torch.testing.assert_close(given.grad.double(), right.grad, rtol=1e-5, atol=1e-5)
    assert not inputs[1].grad[0, :3].any()


def test_gradients_by_differences(small_chunks):
    torch.manual_seed(0)
    x, p = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (3, 4))
    assert torch.autograd.gradcheck(lambda x, p: lf.thresholded_linear(x, p, None, 0.01), (x, p))


def test_the_sum_of_magnitudes(small_chunks):
    p = torch.randn(9, 11, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        p[0, :3] = torch.tensor([EPS, -EPS, 0.0])
    term = lf.l1_term(p, EPS, 0.7)
    used = [value for value in p.flatten().tolist() if abs(value) > EPS]
    assert term.item() == pytest.approx(0.7 * sum(map(abs, used)))
    term.backward()
    torch.testing.assert_close(p.grad, torch.where(p.detach().abs() > EPS, 0.7 * p.detach().sign(), 0.0))


@pytest.mark.parametrize("frozen", ["x", "coefficients"])
def test_no_gradient_where_none_is_wanted(small_chunks, frozen):
    x, p = (torch.randn(n, 6, requires_grad=name != frozen) for n, name in ((3, "x"), (4, "coefficients")))
    lf.thresholded_linear(x, p, None, 0.1).sum().backward()
    plain = torch.where(p.abs() > 0.1, p, 0.0)
    if frozen == "x":
        torch.testing.assert_close(p.grad, (p.abs() > 0.1) * x.sum(0))
    else:
        torch.testing.assert_close(x.grad, plain.sum(0).expand(3, 6))
    assert (x if frozen == "x" else p).grad is None


@pytest.mark.parametrize(
    "layer", [LookupConv2d(5, 8, 4, bias=False, dictionary_size=3), LookupLinear(7, 8, False, dictionary_size=3)]
)
def test_what_follows_may_work_in_place(small_chunks, layer):
    x = torch.randn(2, 5, 4, 4) if isinstance(layer, LookupConv2d) else torch.randn(2, 7)
    torch.nn.Sequential(layer, torch.nn.ReLU(inplace=True))(x).sum().backward()
    assert layer.coefficients.grad is not None


def test_nan_stays(small_chunks):
    p = torch.full((3, 4), 0.01)
    p[1, 2] = torch.nan
    assert lf.thresholded_linear(torch.ones(2, 4), p, None, EPS).isnan().tolist() == [[False, True, False]] * 2


@pytest.mark.parametrize("layer", [LookupConv2d(5, 8, 4, dictionary_size=3), LookupLinear(7, 8, dictionary_size=3)])
def test_layers_give_the_same_in_chunks(layer, monkeypatch):
    x = torch.randn(2, 5, 4, 4) if isinstance(layer, LookupConv2d) else torch.randn(2, 7)

    def step():
        layer.zero_grad()
        y = layer(x)
        (y.square().sum() + layer.l1_term()).backward()
        return y, *(p.grad.clone() for p in layer.parameters())

    whole = step()
    calls = []
    monkeypatch.setattr(chunked, "LARGE", 1)
    monkeypatch.setattr(chunked, "MULTIPLIED", 16)
    real = chunked.ThresholdedLinear.apply
    monkeypatch.setattr(chunked.ThresholdedLinear, "apply", lambda *args: calls.append(args) or real(*args))
    torch.testing.assert_close(step(), whole, rtol=1e-5, atol=1e-6)
    assert len(calls) == 1


@pytest.mark.parametrize("change", [{"lookups_per_position": 1}, {"masked_gradient": False}], ids=str)
def test_what_thresholds_alone_do_not_say_goes_the_plain_way(change, monkeypatch):
    monkeypatch.setattr(chunked, "LARGE", 1)
    layer = LookupLinear(7, 8, dictionary_size=3)
    for name, value in change.items():
        setattr(layer, name, value)
    x = torch.randn(2, 7)
    torch.testing.assert_close(
        layer(x), F.linear(F.linear(x, layer.dictionary), layer.effective_coefficients(), layer.bias)
    )


def test_not_where_it_would_not_pay_or_not_be_seen(monkeypatch):
    large = torch.empty(1).expand(chunked.LARGE)
    assert chunked.is_large(large)
    assert not chunked.is_large(large[1:])
    assert not chunked.is_large(large.to("meta"))
    assert not chunked.is_large(large.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert not chunked.is_large(large)
    monkeypatch.setattr(chunked, "LARGE", 1)
    layer = LookupLinear(7, 8, dictionary_size=3)
    program = torch.export.export(layer, (torch.randn(2, 7),))
    assert "hardshrink" in str(program.graph)
    torch.testing.assert_close(program.module()(torch.ones(2, 7)), layer(torch.ones(2, 7)))


def test_no_second_array_of_the_size_of_p():
    p = torch.randn(256, chunked.LARGE // 256, requires_grad=True)
    x = torch.randn(4, p.shape[1])

    def largest(step):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            step()
        return max(event.self_cpu_memory_usage for event in seen.events())

    size = 4 * p.numel()
    with torch.no_grad():
        assert largest(lambda: F.linear(x, F.hardshrink(p, 0.1))) >= size
        assert largest(lambda: lf.thresholded_linear(x, p, None, 0.1)) < size // 2
        assert largest(lambda: lf.l1_term(p, 0.1, 1.0)) < size // 16

    def step():
        p.grad = None
        (lf.thresholded_linear(x, p, None, 0.1).sum() + lf.l1_term(p, 0.1, 1.0)).backward()

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    assert sum(event.self_cpu_memory_usage >= size for event in seen.events()) == 2, "the gradient of each term"
