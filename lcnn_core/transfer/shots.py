"""Few-shot learning, as published: base classes first, then novel ones from a few images, dictionaries frozen.

Protocol, the same for the lookup network and its dense twin. Base: trained on all images of the base classes. Novel:
the classifier is made anew for the novel classes; of a lookup classifier D is kept and P drawn. Tuned are P and the
weights of dense layers, which are P over the identity dictionary: those of the classifier, with its bias, at the rate
eta, the others at a share of it. Dictionaries are frozen. So is batch norm, whose statistics a handful of images
cannot give; dropout is off. Entries of P that are zero stay zero, and the l1 terms are part of the loss, as in
training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import nn
from torch.nn import functional as F

from lcnn_core.data import Dataset, Split
from lcnn_core.data.files import seed_of
from lcnn_core.errors import ConfigError, TrainingError
from lcnn_core.train.evaluation import evaluate
from lcnn_core.train.objective import l1_penalty
from lcnn_core.train.zeros import keep_zeros
from lcnn_core.transfer.networks import Family, Kind, carry_pretrained_, classifier_name, freeze_dictionaries_
from lcnn_core.transfer.subsets import check_classes, class_splits, draw, only_classes, read_once

KINDS: tuple[Kind, ...] = ("lcnn", "cnn")
_NORMS = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class FewShotConfig:
    """The protocol's numbers.

    novel: classes that are left out of base training. splits: random choices of them. resamplings: draws of the few
    images, for each split. shots: images of each novel class. rate: eta; shares: of it, for the pre-trained layers.
    steps: of SGD with momentum, on all images of the draw at once. validation_images, test_images: of each novel
    class, drawn anew for each resampling; the share is chosen on the former, the accuracy reported on the latter.
    """

    novel: int = 3
    splits: int = 5
    resamplings: int = 20
    shots: tuple[int, ...] = (1, 2, 4)
    rate: float = 0.01
    shares: tuple[float, ...] = (1.0, 0.1, 0.01, 0.0)
    steps: int = 30
    momentum: float = 0.9
    validation_images: int = 20
    test_images: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("splits", "resamplings", "steps", "validation_images", "test_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ConfigError(f"shots is {self.shots}; expected different whole numbers of 1 or more")
        if not self.rate > 0:
            raise ConfigError(f"rate is {self.rate}; expected a number above 0")
        if not self.shares or min(self.shares) < 0:
            raise ConfigError(f"shares is {self.shares}; expected numbers of 0 or more")


@dataclass(frozen=True)
class FewShotResult:
    """One tuning: accuracies are shares of the images drawn for this resampling."""

    split: int
    resampling: int
    shots: int
    kind: str
    """lcnn or cnn."""
    share: float
    """Rate of the pre-trained layers over eta."""
    validation: float
    test: float
    """Both are 0 for a tuning that diverged."""

    @property
    def key(self) -> tuple[int, int, int, str, float]:
        """What tells it apart."""
        return (self.split, self.resampling, self.shots, self.kind, self.share)


BaseNetwork = Callable[[int, Kind, Dataset], nn.Module]
"""(split, kind, data of the base classes) -> the network trained on them, which ``Family.build`` made for them."""


def few_shot(
    dataset: Dataset,
    family: Family,
    base: BaseNetwork,
    config: FewShotConfig,
    done: Collection[tuple[int, int, int, str, float]] = (),
) -> Iterator[FewShotResult]:
    """Every tuning of the protocol, one after the other; those whose ``key`` is in ``done`` are left out.

    base: called once for each split and kind that has something left to do. Results depend on ``config`` and on the
    base networks only, so that an interrupted study goes on with what it had. Raises ConfigError and DataError, before
    anything is trained, for more novel classes or images of a class than there are.
    """
    splits = class_splits(len(dataset.class_names), config.novel, config.splits, config.seed)
    for novel in splits:
        images = only_classes(dataset, novel)
        check_classes(images.train, max(config.shots))
        check_classes(images.validation, config.validation_images)
        check_classes(images.test, config.test_images)
    return _tunings(dataset, family, base, config, done, splits)


def _tunings(
    dataset: Dataset,
    family: Family,
    base: BaseNetwork,
    config: FewShotConfig,
    done: Collection[tuple[int, int, int, str, float]],
    splits: Sequence[Sequence[int]],
) -> Iterator[FewShotResult]:
    for split, novel in enumerate(splits):
        rest = [number for number in range(len(dataset.class_names)) if number not in novel]
        base_data, novel_data = only_classes(dataset, rest), only_classes(dataset, novel)
        for kind in KINDS:
            cases = [
                (resampling, shots, share)
                for resampling, shots, share in product(range(config.resamplings), config.shots, config.shares)
                if (split, resampling, shots, kind, share) not in done
            ]
            trained = base(split, kind, base_data) if cases else None
            for resampling, shots, share in cases:
                assert trained is not None
                images = _episode(novel_data, config, split, resampling, shots)
                model = family.build(kind, config.novel, seed_of(config.seed, split, resampling))
                carry_pretrained_(model, trained)
                tune(model, images[0], config, share)
                yield FewShotResult(split, resampling, shots, kind, share, *_accuracies(model, images[1:]))


def _episode(novel: Dataset, config: FewShotConfig, split: int, resampling: int, shots: int) -> tuple[Split, ...]:
    """Images to learn from, to choose on and to report on; the few are the first of the most that are asked for."""
    generator = torch.Generator().manual_seed(seed_of(config.seed, split, resampling))
    most = max(config.shots)
    chosen = draw(novel.train, most, generator).reshape(-1, most)[:, :shots].flatten()
    return (
        read_once(novel.train, chosen),
        read_once(novel.validation, draw(novel.validation, config.validation_images, generator)),
        read_once(novel.test, draw(novel.test, config.test_images, generator)),
    )


def _accuracies(model: nn.Module, parts: Sequence[Split]) -> list[float]:
    """Top-1 on each part; 0 for a network that diverged, so that its rate is not chosen."""
    try:
        return [evaluate(model, part).top1 for part in parts]
    except TrainingError:
        return [0.0] * len(parts)


def tune(model: nn.Module, images: Split, config: FewShotConfig, share: float) -> None:
    """Train the classifier's P at eta and the other layers' at ``share`` of it on ``images``, in place."""
    model.eval()
    freeze_dictionaries_(model)
    for module in model.modules():
        if isinstance(module, _NORMS):
            module.requires_grad_(False)
    head = model.get_submodule(classifier_name(model))
    own = {id(parameter) for parameter in head.parameters()}
    fresh = [p for p in head.parameters() if p.requires_grad]
    pretrained = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": fresh, "lr": config.rate}]
    if share:
        groups.append({"params": pretrained, "lr": config.rate * share})
    else:
        for parameter in pretrained:
            parameter.requires_grad_(False)
    optimizer = torch.optim.SGD(groups, momentum=config.momentum)
    end = keep_zeros(optimizer, model)
    for _ in range(config.steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(images.images), images.labels) + l1_penalty(model)).backward()
        optimizer.step()
    end()
