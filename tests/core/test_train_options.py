"""Every option of TrainConfig does what it says: each test would fail if the option did nothing."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lcnn_core.checkpoint import Checkpoint, Normalization, save
from lcnn_core.data import Dataset, Split
from lcnn_core.errors import CheckpointError, ConfigError
from lcnn_core.layers import LookupConv2d, LookupLayer, LookupLinear
from lcnn_core.models import build
from lcnn_core.train import (
    SCHEDULES,
    BatchFinished,
    CrossEntropy,
    Distillation,
    EpochFinished,
    LayerDied,
    TrainConfig,
    TrainingStarted,
    find_schedule,
    load_matching_,
    redraw_coefficients_,
    sparsify_,
    train,
)
from lcnn_core.train.recompute import blocks_of

CONSTANT = SCHEDULES["constant"]


def data(count: int = 48) -> Dataset:
    torch.manual_seed(5)
    labels = torch.arange(count) % 3
    split = Split(torch.randn(count, 1, 6, 6) + labels.reshape(-1, 1, 1, 1) - 1, labels)
    return Dataset("noise", (1, 6, 6), ("a", "b", "c"), split, split, split, Normalization((0.5,), (1,)))


def net(norm: bool = True, l1_weight: float = 0.02) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        LookupConv2d(1, 8, 3, dictionary_size=2, threshold=0.05, l1_weight=l1_weight),
        nn.BatchNorm2d(8) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Flatten(),
        LookupLinear(128, 3, dictionary_size=4, threshold=0.01, l1_weight=l1_weight),
    )


def weights(config: TrainConfig, model: nn.Module | None = None, **more: Any) -> dict[str, Tensor]:
    model = model or net()
    train(model, data(), config, **more)
    return model.state_dict()


def differ(a: dict[str, Tensor], b: dict[str, Tensor], by: float = 0.0) -> bool:
    return any(bool((a[key] - b[key]).abs().max() > by) for key in a)


# --- batches -----------------------------------------------------------------------------------------------------


def test_pieces_without_batch_norm_are_the_whole_batch_lambda_included() -> None:
    images = data()
    split = Split(images.train.read([torch.arange(48)]).__next__()[0].double(), images.train.labels)
    images = dataclasses.replace(images, train=split, validation=split)
    ends = []
    for pieces in (1, 2, 8):
        model = net(norm=False).double()
        train(model, images, TrainConfig(2, 16, schedule=CONSTANT, lr=0.05, batch_pieces=pieces))
        ends.append(model.state_dict())
    assert not differ(ends[0], ends[1], by=1e-12)
    assert not differ(ends[0], ends[2], by=1e-12)


def test_pieces_have_batch_norm_statistics_of_their_own_and_the_first_ones_are_kept() -> None:
    """One step against a loop over three pieces, the last of another size, in plain PyTorch."""
    images = data(50)
    config = TrainConfig(1, 50, schedule=CONSTANT, lr=0.1, momentum=0.0, batch_pieces=2, batches_per_epoch=1, seed=4)
    model, brute = net(), net()
    seen: list[int] = []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(len(args[0])) if module.training else None)
    train(model, images, config)
    assert seen == [25, 25]
    order = torch.randperm(50, generator=torch.Generator().manual_seed(4))
    for part, chosen in enumerate(order.split(25)):
        loss = F.cross_entropy(brute(images.train.read([chosen]).__next__()[0]), images.train.labels[chosen])
        penalty = sum(layer.l1_term() for layer in brute.modules() if isinstance(layer, LookupLayer))
        ((loss + penalty) / 2).backward()
        if part == 0:
            kept = copy.deepcopy(list(brute[1].buffers()))
    with torch.no_grad():
        for parameter in brute.parameters():
            dead = torch.zeros_like(parameter, dtype=torch.bool)
            for layer in (brute[0], brute[4]):
                if parameter is layer.coefficients:
                    dead = parameter.abs() <= layer.threshold
            parameter -= 0.1 * parameter.grad  # type: ignore[arg-type]
            parameter[dead] = 0
        for buffer, value in zip(brute[1].buffers(), kept, strict=True):
            buffer.copy_(value)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, brute.state_dict()[key], msg=key)


def test_an_epoch_in_batches_goes_on_through_the_passes() -> None:
    """Five epochs of two batches are two passes over five batches, in the same order as two ordinary epochs."""
    seen: dict[int | None, list[float]] = {}
    for size, epochs in ((None, 2), (2, 5)):
        losses = seen.setdefault(size, [])
        finished = []

        def listen(event: Any, losses: list[float] = losses, finished: list[int] = finished) -> None:
            if isinstance(event, BatchFinished):
                losses.append(event.loss)
            if isinstance(event, EpochFinished):
                finished.append(event.epoch)

        config = TrainConfig(epochs, 10, schedule=CONSTANT, batches_per_epoch=size)
        train(net(), data(50), config, listen)
        assert finished == list(range(1, epochs + 1))
    assert seen[None] == seen[2]


# --- rates -------------------------------------------------------------------------------------------------------


def test_the_rate_is_multiplied() -> None:
    assert TrainConfig(lr_scale=0.5).rate(3) == pytest.approx(0.5 * TrainConfig().rate(3))
    assert TrainConfig(lr=0.2, lr_scale=0.5).peak == pytest.approx(0.1)
    assert not differ(weights(TrainConfig(1, 16, lr=0.1)), weights(TrainConfig(1, 16, lr=0.2, lr_scale=0.5)), by=1e-6)


def test_warm_up_rises_along_a_line_and_a_cosine_rises_as_it_does() -> None:
    table = TrainConfig(epochs=10, schedule=find_schedule("1:0.1,6:0.01"), warmup=4.0)
    assert [table.rate(epoch) for epoch in (0, 2, 4, 5)] == pytest.approx([0.1 * 0.04, 0.1 * 0.52, 0.1, 0.01])
    cosine = TrainConfig(epochs=10, warmup=4.0)
    rates = [cosine.rate(epoch / 10) for epoch in range(101)]
    assert rates.index(max(rates)) == 40
    assert rates[20] == pytest.approx(0.05 * 0.52)
    assert rates[100] == pytest.approx(0, abs=1e-12)


def test_schedules_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "rates.txt"
    path.write_text("# epoch : rate : weight decay\n1:0.1:5e-4\n8:0.03:5e-4  # as published\n\n17:1e-2\n")
    for text in ("1:0.1:5e-4,8:0.03:5e-4,17:1e-2", str(path)):
        schedule = find_schedule(text)
        config = TrainConfig(epochs=20, schedule=schedule)
        assert [config.rate(epoch) for epoch in (0, 6.9, 7, 15.5, 16, 19)] == pytest.approx(
            [0.1, 0.1, 0.03, 0.03, 0.01, 0.01]
        )
        assert [config.decay(epoch) for epoch in (0, 15, 16)] == [5e-4, 5e-4, 0]
        assert find_schedule(str(schedule)) == schedule
    assert find_schedule("resnet") is SCHEDULES["resnet"]


def test_a_schedule_of_the_user_is_taken_at_its_word_by_adam_too() -> None:
    own = TrainConfig(optimizer="adam", schedule=find_schedule("1:0.002,5:0.001"))
    assert [own.rate(epoch) for epoch in (0, 4)] == pytest.approx([0.002, 0.001])
    named = TrainConfig(optimizer="adam", schedule=SCHEDULES["constant"])
    assert named.rate(0) == pytest.approx(0.05 / 50)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step", "schedule is 'step'; expected one of alexnet, resnet, .* or a file with such rows"),
        ("1:0.1,x:2", "row 'x:2' is not epoch:rate or epoch:rate:weight decay"),
        ("1:0.1:1:1", "row '1:0.1:1:1' is not epoch:rate"),
        ("2:0.1", r"has rows for the epochs \[2\]; expected them to rise from 1"),
        ("1:0.1,5:0.2,5:0.1", r"epochs \[1, 5, 5\]; expected them to rise from 1"),
        ("1:0", "has a rate that is not above 0"),
        ("1:nan", "has a rate that is not above 0"),
        ("1:0.1:-1", "or a weight decay below 0"),
    ],
)
def test_schedules_that_are_none(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_schedule(text)


# --- targets -----------------------------------------------------------------------------------------------------


def test_label_smoothing_by_hand() -> None:
    logits, labels = torch.randn(4, 3).double(), torch.tensor([0, 2, 1, 1])
    target = torch.full((4, 3), 0.3 / 3).double()
    target[range(4), labels] += 0.7
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(CrossEntropy(0.3)(logits, logits, labels)) == pytest.approx(float(expected))
    smooth = weights(TrainConfig(1, 16, label_smoothing=0.3))
    assert differ(smooth, weights(TrainConfig(1, 16)))
    assert not differ(smooth, weights(TrainConfig(1, 16), objective=CrossEntropy(0.3)))
    with pytest.raises(ConfigError, match="label_smoothing belongs to cross entropy"):
        weights(TrainConfig(1, 16, label_smoothing=0.3), objective=Distillation(net()))


class Spy(CrossEntropy):
    """Cross entropy that keeps what it was given."""

    seen: list[tuple[Tensor, Tensor]]

    def __call__(self, logits: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((images.detach().clone(), labels.clone()))
        return super().__call__(logits, images, labels)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_mixed_images_have_their_labels_in_the_same_shares(mixup: float, cutmix: float) -> None:
    """Images of one grey value each: a mixed one's mean says how much of either is in it."""
    labels = torch.arange(48) % 3
    split = Split(labels.float().reshape(-1, 1, 1, 1).expand(-1, 1, 6, 6).clone(), labels)
    images = dataclasses.replace(data(), train=split)
    spy = Spy()
    object.__setattr__(spy, "seen", [])
    train(net(), images, TrainConfig(6, 12, mixup=mixup, cutmix=cutmix), objective=spy)
    kinds, mixed = set(), 0
    for pixels, shares in spy.seen:
        assert shares.shape == (12, 3)
        torch.testing.assert_close(shares.sum(1), torch.ones(12))
        torch.testing.assert_close(pixels.mean((1, 2, 3)), shares @ torch.arange(3.0), atol=1e-5, rtol=0)
        whole = pixels == pixels.round()
        kinds.add(bool(whole.all()))
        mixed += int((shares.max(1).values < 0.999).sum())
    assert mixed > 20
    assert (
        kinds == {(True, False): {False}, (False, True): {True}, (True, True): {True, False}}[(mixup > 0, cutmix > 0)]
    )


# --- averages ----------------------------------------------------------------------------------------------------


def test_the_average_is_the_brute_force_one_and_is_what_is_validated() -> None:
    model, steps = net(), []
    seen: dict[str, Any] = {}

    def listen(event: Any) -> None:
        if isinstance(event, TrainingStarted):
            seen["answering"] = event.model
        if isinstance(event, BatchFinished):
            steps.append({k: v.clone() for k, v in model.state_dict().items()})
            for layer, averaged in ((model[0], seen["answering"][0]), (model[4], seen["answering"][4])):
                assert not bool(averaged.coefficients[layer.effective_coefficients() == 0].any())
        if isinstance(event, EpochFinished):
            seen["validation"] = event.validation

    train(model, data(), TrainConfig(2, 12, schedule=CONSTANT, lr=0.1, ema=0.8), listen)
    average = steps[0]
    for values in steps[1:]:
        average = {
            k: 0.8 * average[k] + 0.2 * v if v.is_floating_point() and "running" not in k else v
            for k, v in values.items()
        }
        for layer, threshold in (("0", 0.05), ("4", 0.01)):
            average[f"{layer}.coefficients"][values[f"{layer}.coefficients"].abs() <= threshold] = 0
    final = seen["answering"].state_dict()
    for key, value in average.items():
        torch.testing.assert_close(final[key], value, rtol=1e-5, atol=1e-6, msg=key)
        assert torch.equal(model.state_dict()[key], final[key])
    assert differ(final, steps[-1], by=1e-3)
    from lcnn_core.train import evaluate

    assert evaluate(model, data().validation) == seen["validation"]


# --- machine -----------------------------------------------------------------------------------------------------


def test_bfloat16_is_used_forwards_and_weights_stay_float32() -> None:
    model, kinds = net(), set()
    model[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype) if module.training else None)
    low = weights(TrainConfig(1, 16, bfloat16=True), model)
    assert kinds == {torch.bfloat16}
    assert {v.dtype for v in low.values() if v.is_floating_point()} == {torch.float32}
    assert differ(low, weights(TrainConfig(1, 16)))


def test_channels_last_reaches_layers_and_changes_no_result() -> None:
    labels = torch.arange(48) % 3
    colour = Split(torch.randn(48, 3, 6, 6) + labels.reshape(-1, 1, 1, 1), labels)
    normalization = Normalization((0.5,) * 3, (1,) * 3)
    images = Dataset("colour", (3, 6, 6), ("a", "b", "c"), colour, colour, colour, normalization)
    formats, ends = [], []
    for chosen in (True, False):
        torch.manual_seed(3)
        first = LookupConv2d(3, 8, 3, dictionary_size=2, form="two_convs")
        model = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
        found: set[bool] = set()

        def note(module: nn.Module, args: Any, out: Tensor, found: set[bool] = found) -> None:
            if module.training:
                found.add(out.is_contiguous(memory_format=torch.channels_last))

        first.register_forward_hook(note)
        train(model, images, TrainConfig(1, 16, channels_last=chosen))
        formats.append(found)
        ends.append(model.state_dict())
    assert formats == [{True}, {False}]
    assert not differ(*ends, by=1e-5)


def test_compile_runs_the_network_through_dynamo_and_changes_no_result() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = TrainConfig(1, 16)
    assert not differ(weights(dataclasses.replace(plain, compile="eager")), weights(plain), by=1e-6)
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 3
    with pytest.raises(ConfigError, match=r"compile is 'fast'; expected a backend of torch.compile: .*inductor"):
        weights(TrainConfig(1, 16, compile="fast"))


def test_gradient_checkpointing_recomputes_blocks_to_the_same_bits() -> None:
    def model() -> nn.Module:
        torch.manual_seed(0)
        return build("digits-resnet-lcnn", num_classes=3, widths=(4, 8), blocks=(1, 2), stages=2)

    calls: list[int] = []
    recomputed = model()
    assert len(blocks_of(recomputed)) == 3
    for block in blocks_of(recomputed):
        inner = next(child for child in block.modules() if isinstance(child, LookupConv2d))
        inner.register_forward_hook(lambda module, args, out: calls.append(1) if module.training else None)
    config = TrainConfig(2, 24, gradient_checkpointing=True)
    ours = weights(config, recomputed)
    theirs = weights(dataclasses.replace(config, gradient_checkpointing=False), model())
    assert len(calls) == 2 * 2 * 2 * 3
    assert not differ(ours, theirs)
    assert all("forward" not in vars(block) for block in blocks_of(recomputed))
    with pytest.raises(ConfigError, match="gradient_checkpointing: Sequential has no blocks to recompute"):
        weights(config)
    for refused in ({"compile": "fast"}, {"batch_pieces": 5}):
        with pytest.raises(ConfigError):
            weights(dataclasses.replace(config, **refused), recomputed)
        assert all("forward" not in vars(block) for block in blocks_of(recomputed))


def test_gradient_checkpointing_of_blocks_that_take_named_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, x: Tensor, scale: float) -> Tensor:
            return self.conv(x) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Scaled(), nn.Linear(72, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(x, scale=2.0).flatten(1))

    def model() -> nn.Module:
        torch.manual_seed(0)
        return Net()

    plain = weights(TrainConfig(1, 24), model())
    assert not differ(weights(TrainConfig(1, 24, gradient_checkpointing=True), model()), plain)


def test_deterministic_refuses_what_has_no_deterministic_algorithm() -> None:
    seen = []

    class Watch(nn.Identity):
        def forward(self, input: Tensor) -> Tensor:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return input

    weights(TrainConfig(1, 48, deterministic=True), nn.Sequential(Watch(), nn.Flatten(), nn.Linear(36, 3)))
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for deterministic in (True, False):
            weights(TrainConfig(1, 48, deterministic=deterministic))
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# --- starts ------------------------------------------------------------------------------------------------------


def test_sparsity_to_begin_with_by_name_pattern_and_for_the_rest() -> None:
    model = build("digits-resnet-lcnn")
    before = {n: m.coefficients.detach().clone() for n, m in model.named_modules() if isinstance(m, LookupLayer)}
    sparsify_(model, {"": 0.5, "layer1.0.conv1": 0.9, r"re:layer3\..*": 0.25})
    for name, old in before.items():
        new = model.get_submodule(name).coefficients.detach()
        share = 0.9 if name == "layer1.0.conv1" else 0.25 if name.startswith("layer3") else 0.5
        zeros = new == 0
        assert int(zeros.sum()) == round(share * new.numel()), name
        assert float(old[zeros].abs().max()) <= float(old[~zeros].abs().min())
        assert torch.equal(new[~zeros], old[~zeros])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"": 1.0}, "initial sparsity is 1.0; expected a share of zeros from 0 to below 1"),
        ({"conv9": 0.5}, "no lookup layer is called 'conv9'; there are 0, 4"),
        ({"re:(": 0.5}, r"'re:\(' is no regular expression"),
    ],
)
def test_sparsities_that_cannot_be(shares: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sparsify_(net(), shares)
    with pytest.raises(ConfigError, match="has no lookup layer; choose a network whose name ends in -lcnn"):
        sparsify_(nn.Sequential(nn.Linear(2, 2)), {"": 0.5})


def test_redrawn_coefficients_keep_their_support() -> None:
    model = net()
    sparsify_(model, {"": 0.6})
    layer = model[0]
    before = layer.coefficients.detach().clone()
    used = layer.effective_coefficients() != 0
    redraw_coefficients_(model)
    after = layer.coefficients.detach()
    assert torch.equal(layer.effective_coefficients() != 0, used)
    assert torch.equal(after == 0, ~used)
    bound = 1 / math.sqrt(18)
    assert 0.9 * bound < float(after.abs().max()) <= bound
    assert 0.3 < float((after[used] > 0).double().mean()) < 0.7
    assert not torch.equal(after[used], before[used])


def test_weights_are_loaded_by_name_and_what_matched_is_said(tmp_path: Path) -> None:
    source, model = build("digits-resnet", num_classes=7), build("digits-resnet")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.fill_(0.5)
    ours, bare = tmp_path / "ours.pt", tmp_path / "bare.pth"
    save(ours, Checkpoint.from_model(source, architecture="digits-resnet", arguments={"num_classes": 7}))
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, bare)
    for path in (ours, bare):
        model = build("digits-resnet")
        fresh = model.fc.weight.detach().clone()
        matched = load_matching_(model, path)
        assert matched.reshaped == ("fc.weight", "fc.bias")
        assert matched.absent == matched.unused == ()
        assert len(matched.loaded) == len(model.state_dict()) - 2
        assert bool((model.conv1.weight == 0.5).all())
        assert torch.equal(model.fc.weight, fresh)
        total = len(model.state_dict())
        text = f"{total - 2} of {total} tensors loaded by name; 2 of another shape (fc.weight, fc.bias)"
        assert str(matched) == text
    other = load_matching_(build("digits-resnet-lcnn"), ours)
    assert "layer1.0.conv1.coefficients" in other.absent
    assert "layer1.0.conv1.weight" in other.unused
    with pytest.raises(
        CheckpointError, match=r"nothing in .*ours.pt fits: it has conv1.weight, .* the model 0.dictionary"
    ):
        load_matching_(net(), ours)
    with pytest.raises(CheckpointError, match=r"nowhere.pt does not exist"):
        load_matching_(net(), tmp_path / "nowhere.pt")


# --- health ------------------------------------------------------------------------------------------------------


def test_a_layer_whose_p_dies_is_named_once() -> None:
    events: list[Any] = []
    model = net(l1_weight=0.0)
    model[0].l1_weight = 5.0
    train(model, data(), TrainConfig(3, 12, schedule=CONSTANT, lr=0.01, momentum=0.0), events.append)
    assert [(e.epoch, e.name) for e in events if isinstance(e, LayerDied)] == [(1, "0")]
    last = [e for e in events if isinstance(e, EpochFinished)][-1]
    assert last.densities["0"] == 0


BAD = {
    "batch_pieces": (3, r"batch_pieces is 3; expected a divisor of the batch size, 64"),
    "batches_per_epoch": (0, r"batches_per_epoch is 0; expected a whole number of 1 or more"),
    "save_every": (1.5, r"save_every is 1.5; expected a whole number"),
    "lr_scale": (0.0, r"lr_scale is 0.0; expected a number above 0"),
    "warmup": (30.0, r"warmup is 30 epochs of 30; expected fewer than all of them"),
    "label_smoothing": (1.0, r"label_smoothing is 1.0; expected 0 or more and below 1"),
    "mixup": (-1.0, r"mixup is -1.0; expected a number from 0"),
    "cutmix": (float("nan"), r"cutmix is nan; expected a number from 0"),
    "ema": (1.0, r"ema is 1.0; expected a decay above 0 and below 1, such as 0.999"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_options_name_value_and_expectation(option: str) -> None:
    value, message = BAD[option]
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{option: value})


def test_every_option_of_the_config_is_tested_here_or_with_the_loop() -> None:
    texts = "".join(
        (Path(__file__).parent / name).read_text()
        for name in ("test_train.py", "test_train_options.py", "test_train_resume.py")
    )
    missing = [field.name for field in dataclasses.fields(TrainConfig) if f"{field.name}=" not in texts]
    assert not missing
