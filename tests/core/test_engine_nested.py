"""Models whose Python torch.fx cannot trace: PyTorch runs that, the engine what it calls, with the same outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_cases import error
from torch import Tensor, nn

from lcnn_core.engine import compile, libraries, save
from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupConv2d

pytestmark = pytest.mark.skipif(not libraries(), reason="no native library was built")


def block(width: int, filters: int) -> nn.Module:
    return nn.Sequential(
        LookupConv2d(width, filters, 3, padding=1, dictionary_size=3, threshold=0.0), nn.BatchNorm2d(filters), nn.ReLU()
    )


class Branching(nn.Module):
    """Takes another way by the values and by the size of its input, loops over a list, reads a part's own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bright, self.dark = block(3, 8), block(8, 8), block(8, 8)
        self.more = nn.ModuleList([block(8, 8), block(8, 8)])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y = self.bright(y) if x.mean() > 0 else self.dark(y)
        for part in self.more:
            y = self.relu(y + part(y))
        if y.shape[-1] > 10:
            y = nn.functional.max_pool2d(y, 2)
        return nn.functional.conv2d(y, self.first[0].dictionary.sum() * y.new_ones(2, 8, 1, 1))


@pytest.mark.parametrize("shift", [1.0, -1.0])
@pytest.mark.parametrize("shape", [(1, 3, 16, 12), (3, 3, 16, 12), (2, 3, 9, 8)])
def test_a_model_that_branches_on_values(shift: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Branching().eval()
    compiled = compile(model, torch.randn(1, 3, 16, 12) + 1)
    assert error(model, compiled, torch.randn(*shape) + shift) <= 1e-5


def test_the_plan_says_what_runs_where() -> None:
    plan = compile(Branching().eval(), torch.randn(1, 3, 16, 12) + 1).plan
    assert [step.name for step in plan.fallbacks] == ["Branching"]
    layers = [step.name for step in plan.steps if step.macs]
    assert layers == ["first.0", "bright.0", "more.0.0", "more.1.0"]
    assert plan.isa == next(iter(libraries()))
    assert plan.macs > 0


class Router(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = block(8, 8), block(8, 8)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        return self.small(x) if float(x.max()) < scale else self.large(x)


class Routed(nn.Module):
    """Can be traced but for one module inside, which again calls modules that can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = block(3, 8), Router(), block(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.router(self.stem(x), 0.5) + 1.0)


def test_one_module_inside_that_cannot_be_traced(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = Routed().eval()
    compiled = compile(model, torch.randn(2, 3, 8, 8))
    for scale in (1.0, 1e-3):
        assert error(model, compiled, scale * torch.randn(5, 3, 8, 8)) <= 1e-5
    steps = {step.name: step.native for step in compiled.plan.steps if step.macs or not step.native}
    assert steps == {"stem.0": True, "router": False, "add": False, "head.0": True, "router.large.0": True}
    with pytest.raises(ConfigError, match="in PyTorch run: router, add"):
        save(compiled, tmp_path / "model.lcnn")


class Opaque(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_a_model_with_nothing_to_run_natively_is_run_by_pytorch() -> None:
    with pytest.warns(UserWarning, match="not captured: torch.fx cannot trace this model"):
        compiled = compile(Opaque(), torch.randn(2, 3))
    x = torch.randn(2, 3)
    assert torch.equal(compiled(x), Opaque()(x))
