"""Ways of writing a forward pass: steps in place and other names of a tensor, hooks, arguments, what is an image."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_cases import error
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.engine import CompiledModel, compile, libraries, load, save
from lcnn_core.engine.library import NativePlan
from lcnn_core.errors import ShapeError
from lcnn_core.layers import LookupConv2d

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")


class Net(nn.Module):
    """``body`` between the layers that it may call: 3 to 8 channels, 8 to 8, 648 features to 8."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.more = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.relu = nn.Linear(648, 8), nn.ReLU(inplace=True)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def check(model: nn.Module, shape: tuple[int, ...] = (2, 3, 9, 9), batches: tuple[int, ...] = (1, 2, 3)) -> Any:
    compiled = compile(model.eval(), torch.randn(*shape))
    for batch in batches:
        assert error(model, compiled, torch.randn(batch, *shape[1:])) <= 1e-5
    return compiled


def in_place(step: Callable[[Any, Tensor], Any]) -> Callable[[Any, Tensor], Tensor]:
    def body(s: Any, x: Tensor) -> Tensor:
        a = s.conv(x)
        soft = torch.softmax(a, 1)
        step(s, a)
        return s.more(a) + soft * a

    return body


def add_to(s: Any, a: Tensor) -> None:
    a += 1.5


def scale(s: Any, a: Tensor) -> None:
    a *= torch.sigmoid(a.mean((2, 3), keepdim=True))


STEPS: dict[str, Callable[[Any, Tensor], Any]] = {
    "relu": lambda s, a: F.relu(a, inplace=True),
    "relu by keyword": lambda s, a: s.relu(input=a),
    "leaky_relu": lambda s, a: F.leaky_relu(a, 0.3, inplace=True),
    "elu": lambda s, a: F.elu(a, inplace=True),
    "selu": lambda s, a: F.selu(a, inplace=True),
    "hardtanh": lambda s, a: F.hardtanh(a, -0.2, 0.3, inplace=True),
    "clamp_": lambda s, a: a.clamp_(-0.1, max=0.4),
    "clamp_ from below": lambda s, a: a.clamp_(min=-0.1),
    "add_": lambda s, a: a.add_(1.0),
    "add_ with alpha": lambda s, a: a.add_(a, alpha=2),
    "mul_": lambda s, a: a.mul_(torch.sigmoid(a)),
    "+=": add_to,
    "*=": scale,
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_in_place_that_others_read_before_and_after(name: str) -> None:
    assert isinstance(check(Net(in_place(STEPS[name]))), CompiledModel)


@pytest.mark.parametrize("kind", [
    nn.SELU, nn.Mish, nn.CELU, nn.SiLU, nn.Hardswish, nn.ReLU6, nn.LeakyReLU, nn.Dropout, nn.Dropout3d, nn.RReLU
])  # fmt: skip
def test_layers_in_place_covered_or_not(kind: type[nn.Module]) -> None:
    check(nn.Sequential(nn.Conv2d(3, 8, 3), kind(inplace=True), nn.Conv2d(8, 4, 3)))


def second_name(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x)
    b = a
    a += 1.0
    return s.more(b)


def through_identity(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x)
    F.relu(F.dropout(a, 0.3, s.training), inplace=True)
    return s.more(a)


def through_flatten(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x)
    flat = torch.flatten(a, 1)
    F.relu(a, inplace=True)
    return s.fc(flat)


def through_a_flat_name(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x)
    F.relu(a.flatten(1), inplace=True)
    return s.more(a)


def through_a_slice(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x)
    F.relu(a[:, :4], inplace=True)
    return s.more(a)


def through_chunks(s: Any, x: Tensor) -> Tensor:
    first, second = s.conv(x).chunk(2, 1)
    return torch.cat([s.relu(first), second], 1)


def a_copy_is_another_tensor(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x).transpose(2, 3)
    F.relu(a.contiguous(), inplace=True)
    return s.more(a)


def a_view_changed_by_addition(s: Any, x: Tensor) -> Tensor:
    a = s.conv(x)
    flat = a.view(a.size(0), -1)
    a += s.fc(flat)[:, :, None, None]
    return s.more(a) + s.fc(flat)[:, :, None, None]


@pytest.mark.parametrize("body", [
    second_name, through_identity, through_flatten, through_a_flat_name, through_a_slice, through_chunks,
    a_copy_is_another_tensor, a_view_changed_by_addition,
])  # fmt: skip
def test_other_names_of_a_tensor_see_what_is_done_in_place(body: Callable[[Any, Tensor], Tensor]) -> None:
    check(Net(body))


class Untraceable(nn.Module):
    """Its part changes the input that the residual addition then reads."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 3, 3, padding=1))
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return self.conv(y + x) if float(x.sum()) == float(x.sum()) else y


def test_a_part_that_changes_its_input_stays_as_it_is() -> None:
    plan = check(Untraceable()).plan
    assert [step.name for step in plan.steps if step.macs] == ["conv.0"]


class Shared(nn.Module):
    """Calls a part of an untraceable module besides the module."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Untraceable()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner.conv(x))


def test_a_layer_that_an_untraceable_module_calls_too() -> None:
    check(Shared())


def hooks(model: nn.Module) -> None:
    model.register_forward_hook(lambda module, inputs, output: output * 2)
    model.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


@pytest.mark.parametrize("where", [
    lambda m: m, lambda m: m[0], lambda m: m[1], lambda m: m[1][0],
], ids=["model", "layer", "block", "layer in a block"])  # fmt: skip
def test_hooks_are_kept(where: Callable[[Any], nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()), nn.Conv2d(8, 4, 3))
    hooks(where(model))
    check(model)


@pytest.mark.parametrize("body", [
    lambda s, x: F.avg_pool2d(s.conv(x), 2, 2, 0, False, True, 3),
    lambda s, x: F.max_pool2d(s.conv(x), [2]),
    lambda s, x: F.max_pool2d(input=s.conv(x), kernel_size=(3, 2), stride=[2]),
    lambda s, x: s.conv(x).mean(3),
    lambda s, x: torch.mean(s.conv(x), dim=1, keepdim=True),
    lambda s, x: s.conv(x).mean([-1, -2]),
    lambda s, x: torch.cat(torch.chunk(s.conv(x), 2, 1), 1),
    lambda s, x: torch.cat(tensors=[s.conv(x), x], dim=1),
    lambda s, x: torch.flatten(input=s.conv(x), start_dim=1),
    lambda s, x: torch.add(input=s.conv(x), other=s.conv(x)),
    lambda s, x: torch.add(s.conv(x), s.conv(x), alpha=2),
    lambda s, x: torch.mul(input=s.conv(x), other=s.conv(x).mean((2, 3), keepdim=True)),
    lambda s, x: torch.clamp(s.conv(x), -0.1, 0.2),
    lambda s, x: s.conv(x).clamp(None, 0.2).tanh(),
    lambda s, x: F.elu(s.conv(x), 0.7) + F.leaky_relu(s.conv(x)) + F.hardtanh(s.conv(x), max_val=0.1),
])  # fmt: skip
def test_arguments_by_position_and_by_keyword(body: Callable[[Any, Tensor], Any]) -> None:
    check(Net(body))


@pytest.mark.parametrize("body", [
    lambda s, x: F.relu(s.conv(x).sum(0, keepdim=True)),
    lambda s, x: s.more(s.conv(x)[0:1]),
    lambda s, x: F.relu(s.conv(x).transpose(0, 1)).transpose(0, 1),
    lambda s, x: s.more(torch.cat([s.conv(x), s.conv(x)], 0)),
    lambda s, x: F.relu(s.fc(s.conv(x).flatten(1)).t()).t(),
])  # fmt: skip
@pytest.mark.parametrize("example", [1, 2, 8])
def test_a_first_dimension_that_is_no_batch(body: Callable[[Any, Tensor], Any], example: int) -> None:
    check(Net(body), (example, 3, 9, 9))


def test_a_model_of_one_batch_size_says_so() -> None:
    model = Net(lambda s, x: s.fc(s.conv(x).view(2, -1)) + 0)
    compiled = check(model, batches=(2,))
    with pytest.raises(ShapeError, match="3 images; the model itself runs no other number than the example's, 2"):
        compiled(torch.randn(3, 3, 9, 9))


def test_a_model_that_draws_numbers_draws_them() -> None:
    model = Net(lambda s, x: F.dropout(s.conv(x), 0.5)).eval()
    compiled, x = compile(model, torch.randn(1, 3, 9, 9)), torch.randn(1, 3, 9, 9)
    assert any(step.native for step in compiled.plan.steps)
    dropped = (compiled(x) == 0).float().mean()
    assert 0.3 < float(dropped) < 0.7
    assert not torch.equal(compiled(x), compiled(x))


class Behind(nn.Module):
    """Changes its input by a way that tracing cannot see."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x.data += 1.0
        return self.more(x)


def test_what_gives_other_outputs_than_the_model_is_not_used() -> None:
    plan = check(Behind()).plan
    assert [step.name for step in plan.steps if step.macs] == ["conv.0", "more.0"]
    assert [step.name for step in plan.fallbacks] == ["Behind"]


@pytest.mark.parametrize(("model", "shape"), [
    (nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.MaxPool2d(3, 2, 1)), (1, 3, 2, 8)),
    (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(80)), (1, 1, 80, 80)),
    (nn.Sequential(nn.Conv2d(1, 2, (5000, 1)), nn.ReLU()), (1, 1, 5010, 2)),
    (nn.Sequential(nn.Conv2d(1, 2, 3, padding=(5000, 0)), nn.AdaptiveMaxPool2d(2)), (1, 1, 3, 4)),
])  # fmt: skip
def test_shapes_at_the_limits_of_a_plan(model: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    check(model, shape, (1, 2))


def test_copies_and_compiled_parts(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval(), torch.randn(2, 3, 9, 9)
    compiled = compile(model, x)
    assert torch.equal(copy.deepcopy(compiled)(x), compiled(x))
    save(compiled, tmp_path / "model.lcnn")
    assert torch.equal(copy.deepcopy(load(tmp_path / "model.lcnn"))(x), compiled(x))
    outer = nn.Sequential(compiled, nn.Conv2d(8, 4, 3)).eval()
    assert torch.allclose(compile(outer, x)(x), outer(x), atol=1e-5)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (lambda s, x: s.more(s.conv(x)), Tensor),
        (lambda s, x: (s.more(y := s.conv(x)), y), tuple),
        (lambda s, x: [s.conv(x)], list),
        (lambda s, x: [y := s.conv(x), s.fc(s.relu(s.more(y)).flatten(1))], list),
        (lambda s, x: (y := s.conv(x), y), tuple),
        (lambda s, x: {"a": s.conv(x)}, dict),
    ],
)
def test_what_is_returned_is_of_the_same_kind_and_has_no_gradient(
    body: Callable[[Any, Tensor], Any], kind: type
) -> None:
    """Called directly where the model is one plan, part by part where it is not: another batch, strides, gradients."""
    model = Net(body).eval()
    compiled = compile(model, torch.randn(1, 3, 9, 9))
    for x in (
        torch.randn(2, 3, 9, 9),
        torch.randn(1, 3, 9, 9, requires_grad=True),
        torch.randn(3, 9, 9, 3).permute(0, 3, 1, 2),
    ):
        found, expected = compiled(x), model(x)
        assert type(found) is type(expected)
        assert isinstance(found, kind)
        pairs = zip(*(list(v.values()) if isinstance(v, dict) else [v] if isinstance(v, Tensor) else v
                      for v in (found, expected)), strict=True)  # fmt: skip
        for ours, theirs in pairs:
            assert not ours.requires_grad
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-5)


def test_what_pytorch_makes_is_returned_as_it_is() -> None:
    """Named results and sizes are PyTorch's; lists and dictionaries within others are plain."""
    model = Net(lambda s, x: {"top": [(y := s.conv(x)).max(1), y.shape], "y": (y,)}).eval()
    found = compile(model, x := torch.randn(2, 3, 9, 9))(x)
    expected = model(x)
    assert type(found) is dict
    assert [type(value) for value in found.values()] == [list, tuple]
    assert type(found["top"][0]) is type(expected["top"][0])
    assert type(found["top"][1]) is torch.Size
    torch.testing.assert_close(found["top"][0].values, expected["top"][0].values.detach(), rtol=1e-4, atol=1e-5)


def test_outputs_are_float32_on_the_cpu_whatever_torch_makes_by_default() -> None:
    model, x = nn.Conv2d(3, 8, 3).eval(), torch.randn(2, 3, 64, 64)
    compiled = compile(model, x)
    expected = compiled(x)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = compiled(x)
        with torch.device("meta"):
            again = compiled(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)
    assert torch.equal(again, expected)


def test_threads_follow_torchs_as_far_as_there_is_work(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    run = NativePlan.run
    monkeypatch.setattr(NativePlan, "run", lambda s, x, y, n, threads: asked.append(threads) or run(s, x, y, n, 1))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    model = nn.Conv2d(8, 16, 3, padding=1, bias=False).eval()
    compiled = compile(model, torch.randn(1, 8, 16, 16))
    assert 0.29e6 < compiled.plan.macs < 0.34e6  # a little for what pads rows, and 0.03 MB to move
    asked.clear()
    for batch in (1, 4, 10, 100):
        compiled(torch.randn(batch, 8, 16, 16))
    assert asked == [1, 2, 4, 8]
    asked.clear()
    compile(nn.MaxPool2d(2), x := torch.randn(4, 16, 256, 256))(x)  # nothing to multiply, 42 MB to move
    assert asked[-1] == 6
    asked.clear()
    compile(model, torch.randn(1, 8, 16, 16), threads=3)(torch.randn(1, 8, 16, 16))
    assert asked[-1] == 3


@pytest.mark.parametrize(("kernel", "made"), [(1, (4, 5, 4)), (3, (4, 9, 7))])
def test_a_pruned_dictionary_goes_where_the_stride_goes_under_a_pointwise_kernel(
    kernel: int, made: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    layer = LookupConv2d(16, 24, kernel, 2, kernel // 2, dictionary_size=4, threshold=0.0)
    with torch.no_grad():
        assert layer.dictionary is not None
        layer.dictionary.mul_(torch.rand(layer.dictionary.shape) < 0.3)
        layer.coefficients.mul_(torch.rand(layer.coefficients.shape) < 0.3)
    compiled = check(layer, (2, 16, 9, 7))
    first = next(step for step in compiled.plan.steps if step.kind == "lookup")
    assert first.output_shape == made
