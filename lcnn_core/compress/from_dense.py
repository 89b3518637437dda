"""Start from dense: D and P from a trained network's filters, pruned together to a counted budget while it teaches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lcnn_core.compress.allocation import Option
from lcnn_core.compress.calibration import LEAST_IMAGES, calibration_images
from lcnn_core.compress.control import Budget
from lcnn_core.compress.ledger import Ledger
from lcnn_core.compress.ranking import RANKINGS
from lcnn_core.compress.resumed import kept_sizes
from lcnn_core.compress.shares import LAYER_BUDGETS, measured_choices, measured_shares, uniform_shares
from lcnn_core.compress.teacher import COMPRESSION, check_dense, check_target, taught_by
from lcnn_core.convert import convert
from lcnn_core.data import Dataset
from lcnn_core.errors import ConfigError
from lcnn_core.layers import LookupLayer
from lcnn_core.spec import LookupConfig, default_threshold
from lcnn_core.train import Processes, TrainConfig, TrainResult, train
from lcnn_core.train.events import Listener, ignore, telling

FORMS = ("measured", "mixed", "lookup", "sparse")
STARTS = ("dense", "scratch")
THRESHOLDS = ("hard", "soft")
DICTIONARIES = ("sparse", "dense")
CALIBRATION = 512
"""Images on which layer budgets and forms are measured."""
RATIOS = (0.125, 0.25, 0.5)
"""Dictionary sizes over input channels that are tried where forms are measured."""


@dataclass(frozen=True)
class FromDenseConfig:
    """speedup: counted, over the dense twin, ``published`` convention; it is met exactly or by a hair more.

    dictionary_ratio: k over the input channels, of layers that get a dictionary. None stands for one of ``RATIOS``
        where forms are measured; else for 0.5 at 10x, falling with the root of the speedup (0.29 at 30x), of dense
        dictionaries for what half of the budget buys, at most 0.5. Ratios of 1 or more mean a plain sparse layer.
    dictionaries: "sparse" prunes entries of D too, "dense" only rows that nothing reads, as published.
    phase: share of the run in which the cost is lowered; cuts: in how many steps.
    floor: share of an even split of the budget that every tensor keeps; 1 gives every tensor the same density.
    thresholds: "hard" cuts take the entries of lowest rank; "soft" ones shrink all before, by thresholds that are
        learned for each D and P (:class:`SoftThresholds`).
    regrowth: share of the cost that each cut but the last gives back to zeros of D and P, to those of the largest
        gradient (:func:`regrow_`); it falls to 0 at the last cut.
    ranking: what is cut first. "fisher": what the loss is expected to lose least by, from the gradients seen;
        "magnitude": what changes a layer's filters least.
    layer_budgets: "ranking" cuts all layers by one ranking; "uniform" gives every layer the same speedup, "measured"
        the one at which the errors of the layers, measured on training images without labels, are least together.
    temperature, distillation: temperature and weight of the distillation from the dense network; weight 0 trains on
        the labels alone.
    forms: "measured" gives each layer a dictionary, or none, by what costs the answers least, as post-training
        conversion does; "mixed" gives dictionaries to layers with kernels beyond 1x1 and makes the others plain
        sparse; "lookup" gives one to every layer that has vectors to share; "sparse" to none: gradual pruning. None
        stands for "measured", or for "mixed" from scratch and with dense dictionaries, where nothing can be measured.
    start: "dense" begins with the dense weights, "scratch" with fresh ones, as published.
    threshold_scale, l1_scale: c and lambda' of the published threshold and l1 penalty, beside the budget; 0 for none.
    """

    speedup: float = 10.0
    dictionary_ratio: float | None = None
    dictionaries: str = "sparse"
    phase: float = 0.6
    cuts: int = 50
    floor: float = 0.25
    thresholds: str = "hard"
    regrowth: float = 0.0
    ranking: str = "fisher"
    layer_budgets: str = "ranking"
    temperature: float = 2.0
    distillation: float = 0.7
    forms: str | None = None
    start: str = "dense"
    threshold_scale: float = 0.0
    l1_scale: float = 0.0
    train: TrainConfig = COMPRESSION

    def __post_init__(self) -> None:
        check_target(self.speedup, self.temperature, self.distillation, self.train)
        if self.dictionary_ratio is not None and not 0 < self.dictionary_ratio < math.inf:
            raise ConfigError(f"dictionary_ratio is {self.dictionary_ratio}; expected a number above 0")
        if not 0 < self.phase <= 1 or self.cuts < 1 or not 0 <= self.floor <= 1 or not 0 <= self.regrowth < 1:
            raise ConfigError(
                f"phase is {self.phase}, cuts {self.cuts}, floor {self.floor}, regrowth {self.regrowth}; expected "
                "0 < phase <= 1, cuts of 1 or more, 0 <= floor <= 1, 0 <= regrowth < 1"
            )
        choices = {"start": STARTS, "thresholds": THRESHOLDS, "ranking": RANKINGS,
                   "layer_budgets": LAYER_BUDGETS, "dictionaries": DICTIONARIES}  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.forms not in (None, *FORMS):
            raise ConfigError(f"forms is {self.forms!r}; expected one of {', '.join(FORMS)}")
        self._check_together()

    def _check_together(self) -> None:
        """Options of which one would leave the other without effect, or work against it."""
        if self.forms == "sparse" and self.dictionary_ratio is not None:
            raise ConfigError(
                "dictionary_ratio cannot go with forms 'sparse', which has no dictionaries; leave one out"
            )
        unfit = {"sparse": "forms 'sparse', which has none", "measured": "forms 'measured', which measures sparse ones"}
        if self.dictionaries == "dense" and (self.thresholds == "soft" or self.forms in unfit):
            other = unfit.get(self.forms or "", "soft thresholds, which shrink D")
            raise ConfigError(f"dense dictionaries cannot go with {other}; leave one out")
        if self.regrowth and self.cuts == 1:
            raise ConfigError("regrowth cannot go with a single cut, which is the last; ask for 2 cuts or more")
        if self.thresholds == "soft" and self.threshold_scale:
            raise ConfigError(
                "soft thresholds cannot go with threshold_scale, the published hard threshold; leave one out"
            )
        if self.l1_scale and not self.threshold_scale:
            raise ConfigError("l1_scale needs threshold_scale: lambda is l1_scale times the threshold; give both")
        for name, others in (("layer_budgets", "ranking or uniform"), ("forms", "mixed, lookup or sparse")):
            if getattr(self, name) == "measured" and self.start == "scratch":
                raise ConfigError(
                    f"{name} 'measured' cannot go with start 'scratch', whose weights were not there to measure; "
                    f"choose {others}"
                )

    @property
    def layer_forms(self) -> str:
        """One of ``FORMS``: the one that was asked for, or that None stands for."""
        if self.forms is not None:
            return self.forms
        return "measured" if self.start == "dense" and self.dictionaries == "sparse" else "mixed"

    @property
    def ratio(self) -> float:
        if self.dictionary_ratio is not None:
            return self.dictionary_ratio
        return 0.5 * math.sqrt(10 / self.speedup)


def dictionary_sizes(weight: Sequence[int], config: FromDenseConfig) -> list[int | None]:
    """k that a layer of these filters (n, m / groups, *kernel) may have; None is the identity, plain sparse.

    One that follows from ``config.ratio``, or several to choose from where forms are measured. Unmeasured, dictionaries
    pay where several kernel positions share them: not in 1x1 convolutions, linear layers and stems.
    """
    n, width, *kernel = weight
    most = min(width, n * math.prod(kernel)) - 1
    forms = config.layer_forms
    if forms == "measured":
        ratios = RATIOS if config.dictionary_ratio is None else (config.dictionary_ratio,)
        sizes = sorted({max(1, round(ratio * width)) for ratio in ratios})
        return [None, *(size for size in sizes if size <= most)]
    size = max(1, round(config.ratio * width))
    shared = math.prod(kernel) > 1 and width >= 8 if forms == "mixed" else width > 1
    if forms == "lookup":
        size = min(size, width - 1)
    return [None] if forms == "sparse" or not shared or size > most else [size]


def lookup_config(size: int | None, kernel: Sequence[int], config: FromDenseConfig) -> LookupConfig:
    """How a layer with a dictionary of ``size``, or none, starts."""
    if size is None:
        return LookupConfig(None, threshold=0.0, l1_weight=0.0)
    threshold = default_threshold(size, kernel, config.threshold_scale)
    return LookupConfig(size, threshold=threshold, l1_weight=config.l1_scale * threshold)


def choices_of(
    dense: nn.Module, images: Tensor, config: FromDenseConfig, on_event: Listener = ignore
) -> dict[str, Option]:
    """Each layer's dictionary size and cost as measured on ``images`` (N, c, h, w), of those that it may have."""
    if len(images) < LEAST_IMAGES:
        raise ConfigError(
            f"{len(images)} training images; measuring layers takes {LEAST_IMAGES} or more: give more, or "
            "choose forms 'mixed' and layer_budgets 'ranking'"
        )
    sizes = partial(dictionary_sizes, config=config)
    found = measured_choices(dense, config.speedup, images, sizes, telling(on_event))
    return Processes.current().of_first(found)  # of other rounding, weights would have other shapes


def shares_of(
    config: FromDenseConfig, ledger: Ledger, choices: Mapping[str, Option] | None, resume: Mapping[str, Any] | None
) -> Mapping[str, float] | None:
    """Each layer's part of the budget, as ``config.layer_budgets`` says; None where one ranking over all decides."""
    if config.layer_budgets == "uniform":
        return uniform_shares(ledger)
    if config.layer_budgets == "ranking" or choices is None:
        return None
    return kept_shares(resume) or measured_shares(choices)


def kept_shares(resume: Mapping[str, Any] | None) -> Mapping[str, float] | None:
    """The measured shares of a run that is resumed; None in a state from before they were kept."""
    return ((resume or {}).get("controller") or {}).get("shares")


def started(dense: nn.Module, config: FromDenseConfig, choices: Mapping[str, Option] | None = None) -> nn.Module:
    """The lookup network that a run begins with, from the dense weights; ``choices`` where sizes were measured."""

    def choose(name: str, module: nn.Module) -> LookupConfig | None:
        if not isinstance(module, nn.Conv2d | nn.Linear) or (choices is not None and name not in choices):
            return None
        shape = module.weight.shape
        if choices is None:
            (size,) = dictionary_sizes(shape, config)
        else:
            size = choices[name].start  # type: ignore[assignment]
        return lookup_config(size, shape[2:], config)

    model, _ = convert(dense, choose)
    for layer in model.modules():
        if isinstance(layer, LookupLayer):
            balance_(layer)
    return model


def half_of_the_budget(dense: nn.Module, input_shape: tuple[int, ...], config: FromDenseConfig) -> float:
    """The dictionary ratio, 0.5 at most, at which whole dictionaries cost half of what all layers may."""
    ledger = Ledger.of(started(dense, replace(config, dictionary_ratio=0.5)), input_shape)
    cost = sum(layer.dictionary() for layer in ledger.layers)
    return min(0.5, 0.25 * ledger.allowance(config.speedup) / max(cost, 1))


@torch.no_grad()
def balance_(layer: LookupLayer) -> None:
    """Share the scale of each dictionary row evenly between D and P; the dense filters W stay the same.

    Two linear factors learn at rates that depend on each other's size; of equal size, one rate fits both.
    """
    if layer.dictionary is None:
        return
    n, k = layer.coefficients.shape[:2]
    grouped = layer.coefficients.view(layer.groups, n // layer.groups, k, -1)
    columns = grouped.norm(dim=(1, 3))
    rows = layer.dictionary.norm(dim=1).reshape(columns.shape)
    factor = torch.where((rows > 0) & (columns > 0), (columns / rows).sqrt(), torch.ones_like(rows))
    layer.dictionary.mul_(factor.reshape(-1, 1))
    grouped.div_(factor[:, None, :, None])


def _restart_(model: nn.Module, seed: int) -> None:
    """Fresh weights in every module that knows how to make them; the caller's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


def compress_from_dense(
    dense: nn.Module,
    dataset: Dataset,
    config: FromDenseConfig | None = None,
    on_event: Listener = ignore,
    resume: Mapping[str, Any] | None = None,
) -> tuple[nn.Module, TrainResult]:
    """Make a lookup network of ``dense`` that meets ``config.speedup``; ``dense`` itself is left as it is.

    Returns the network with the last epoch's weights, and what the run did. resume: as in ``train``. Raises
    ConfigError, with the reachable maximum and what bounds it, when the budget cannot be met.
    """
    config = config or FromDenseConfig()
    check_dense(dense)
    if config.dictionaries == "dense" and config.dictionary_ratio is None:
        config = replace(config, dictionary_ratio=half_of_the_budget(dense, dataset.input_shape, config))
    if "measured" not in (config.layer_forms, config.layer_budgets):
        choices = None
    elif resume is not None and (config.layer_budgets != "measured" or kept_shares(resume)):
        choices = {name: Option(size, 0, 0.0) for name, size in kept_sizes(resume["model"]).items()}
    else:
        choices = choices_of(dense, calibration_images(dataset, CALIBRATION), config, on_event)
    model = started(dense, config, choices)
    if config.start == "scratch":
        _restart_(model, config.train.seed)
    ledger = Ledger.of(model, dataset.input_shape)
    budget = Budget(
        ledger,
        config.speedup,
        config.phase,
        config.cuts,
        config.floor,
        soft=config.thresholds == "soft",
        regrowth=config.regrowth,
        shares=shares_of(config, ledger, choices, resume),
        whole=config.dictionaries == "dense",
        ranking=config.ranking,
    )
    objective = taught_by(dense, config.temperature, config.distillation)
    return model, train(model, dataset, config.train, on_event, objective, budget, resume)
