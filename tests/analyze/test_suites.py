"""The suites' networks: densities to the entry, counts of the design document, magnitudes that stay sane."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lcnn_analyze.bench.suites import FILES, PUBLISHED, SUITES, TRAINED, Configuration, fill_
from lcnn_core import LookupConv2d, LookupLayer, LookupLinear, compile, input_shape_of, load
from lcnn_core.engine import libraries

BY_NAME = {configuration.name: configuration for suite in SUITES.values() for configuration in suite}


def network() -> nn.Module:
    return nn.Sequential(
        LookupConv2d(16, 32, 3, dictionary_size=8),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        LookupLinear(6, 40, dictionary_size=5),
    )


def used(layer: nn.Module) -> torch.Tensor:
    """How many lookups each filter has, as the forward pass sees them."""
    assert isinstance(layer, LookupLayer)
    return layer.effective_coefficients().flatten(1).count_nonzero(1)


@pytest.mark.parametrize("uneven", [False, True])
def test_densities_are_met_to_the_entry(uneven):
    model = fill_(network(), {"0": 0.02, "3": 0.25}.__getitem__, uneven)
    assert int(used(model[0]).sum()) == round(0.02 * 32 * 8 * 9)
    assert int(used(model[3]).sum()) == 50


def test_the_same_seed_gives_the_same_network():
    first, second, other = (fill_(network(), lambda name: 0.1, seed=seed) for seed in (3, 3, 4))
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    assert not torch.equal(first[0].coefficients, other[0].coefficients)


def test_uneven_filters_are_uneven_and_every_eighth_is_dead():
    even, uneven = (used(fill_(network(), lambda name: 0.2, flag)[0]).double() for flag in (False, True))
    assert int((uneven == 0).sum()) >= 4
    assert bool((uneven[::8] == 0).all())
    assert uneven[uneven > 0].std() > 2 * even.std()


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("ResNet-18 fast", 29.2),
        ("ResNet-18 accurate", 5.13),
        ("ResNet-18 fast, uneven filters", 29.2),
        pytest.param("AlexNet fast", 39.2, marks=pytest.mark.slow),
        pytest.param("AlexNet accurate", 5.37, marks=pytest.mark.slow),
        pytest.param("ResNet-50, 90 % zeros, no dictionary", 9.96, marks=pytest.mark.slow),
    ],
)
def test_counts_are_the_design_document_s_and_activations_stay_sane(name, counted):
    with BY_NAME[name].open() as trial:
        own = trial.lcnn.info.macs
        headline = next(network for network in trial.baselines if network.kind == trial.headline)
        assert headline.info.macs / own == pytest.approx(counted, rel=2e-3)
        x = torch.randn(1, *trial.input_shape)
        with torch.no_grad():
            y, twin = trial.lcnn.model(x), trial.baselines[0].model(x)
        assert 0.1 < float(y.std()) < 1e4
        assert float((y - twin).abs().max()) < 1e-5 * float(y.abs().max())


def test_the_published_suite_has_the_issue_s_targets():
    least = {(c.name, batch): target.least for c in PUBLISHED for batch, target in c.targets.items()}
    assert least == {
        ("AlexNet fast", 1): 0.50,
        ("AlexNet fast", 8): 0.60,
        **{("AlexNet accurate", batch): 0.65 for batch in (1, 8)},
        **{("ResNet-18 fast", batch): 0.65 for batch in (1, 8)},
        **{("ResNet-18 accurate", batch): 0.80 for batch in (1, 8)},
    }
    assert [c.headline for c in PUBLISHED] == ["reference", "reference", "twin", "twin"]


@pytest.mark.skipif(not libraries(), reason="no native library was built")
@pytest.mark.parametrize("configuration", PUBLISHED, ids=lambda configuration: configuration.name)
def test_memory_stays_near_the_liveness_bound(configuration: Configuration):
    model = configuration.build()
    for name in ("fc6", "bn6", "fc7", "bn7", "fc8") if "AlexNet" in configuration.name else ():
        setattr(model, name, nn.Identity())  # they take seconds to compile
    plan = compile(model, torch.zeros(1, *input_shape_of(configuration.architecture, **configuration.arguments))).plan
    assert plan.isa, "no native library"
    assert plan.memory_bytes <= 1.1 * plan.liveness_bytes  # of AlexNet's head as a whole 0.11 of the bound more


@pytest.mark.parametrize(("number", "counted", "accuracy"), [(0, 10, 92), (1, 30, 91)])
def test_trained_networks_say_their_accuracy_and_how_they_were_made(number, counted, accuracy):
    trained = TRAINED[number]
    with trained.open() as trial:
        assert trial.networks[1].info.macs / trial.lcnn.info.macs == pytest.approx(counted, rel=2e-3)
        assert float(trial.accuracy.split(" %")[0]) > accuracy
        layers = [module for module in trial.lcnn.model.modules() if isinstance(module, LookupLayer)]
        assert max(int((used(layer) == 0).sum()) for layer in layers) or max(used(layers[1])) > 2 * min(used(layers[1]))
    assert f"--speedup {counted}" in load(FILES / trained.file).provenance["command"]


def test_a_pruned_network_has_no_dictionary_and_keeps_its_head():
    model = Configuration("tiny", "small-resnet", lambda name: 0.1, sparse=True).build()
    layers = [module for module in model.modules() if isinstance(module, LookupLayer)]
    assert len(layers) == 11
    assert all(layer.dictionary is None for layer in layers)
    assert isinstance(model.fc, nn.Linear)
    for layer in layers:
        assert int(used(layer).sum()) == round(0.1 * layer.coefficients.numel())
