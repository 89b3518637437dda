"""Few-shot and few-iteration studies in words, charts and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lcnn_analyze.render.curves import Chart, Curve, Mark
from lcnn_analyze.render.numbers import ABSENT
from lcnn_analyze.render.study import Study, Table
from lcnn_core import Estimate, FewIterationSummary, FewShotSummary

Facts = Sequence[tuple[str, str]]
NAMES = {"lcnn": "LCNN, dictionaries frozen", "cnn": "CNN"}
WAYS = {"carried": "LCNN, dictionaries carried over", "cnn": "CNN from scratch", "scratch": "LCNN from scratch"}
INTERVAL = "95 % interval"


def few_shot_study(settings: Mapping[str, Any], summaries: Sequence[FewShotSummary], facts: Facts) -> Study:
    """The report of ``lcnn fewshot``; ``settings`` are its options, as the journal holds them."""
    novel = settings["novel"]
    chance = f"chance is {100 / novel:.1f} %"
    accuracy = Chart(
        f"Accuracy on {novel} novel classes",
        "images of each novel class",
        f"test top-1, %; {chance}",
        tuple(
            Curve(NAMES[kind], tuple(_mark(s.shots, s.accuracy[kind]) for s in summaries)) for kind in ("lcnn", "cnn")
        ),
        even=True,
        ends=(0, 100),
    )
    gain = Chart(
        "Gain of the LCNN over the CNN",
        "images of each novel class",
        "points; bars are 95 % intervals",
        (Curve("LCNN - CNN, the same images", tuple(_mark(s.shots, s.gain) for s in summaries)),),
        even=True,
    )
    return Study(
        f"Few-shot learning: {settings['model']} on {settings['data']}",
        tuple(map(_few_shot_finding, summaries)),
        (accuracy, gain),
        (_few_shot_results(summaries), _few_shot_rates(summaries, settings["rate"]), _few_shot_splits(summaries)),
        _few_shot_method(settings),
        tuple(facts),
        {"kind": "few-shot", "settings": dict(settings), "summaries": [asdict(summary) for summary in summaries]},
    )


def _few_shot_method(settings: Mapping[str, Any]) -> tuple[str, ...]:
    novel, resamplings = settings["novel"], settings["resamplings"]
    return (
        f"{settings['splits']} random choices of {novel} novel classes, the others base classes; {resamplings} draws "
        "of the few images for each. Both networks and all rates see the same draws.",
        "The base networks are trained on the base classes with the same options. For the novel classes the "
        "classifier is new; of the lookup classifier D is carried over and P is drawn.",
        "Tuned: P and the weights of dense layers (P over the identity dictionary), the classifier's and its bias at "
        f"eta = {settings['rate']:g}, the others at a share of it. Frozen: every dictionary and, since a few images "
        f"have no statistics, batch norm; dropout is off. {settings['steps']} steps of SGD with momentum on all few "
        "images at once.",
        "The share is chosen for each network and number of images by the mean accuracy over all draws on validation "
        f"images, {settings['validation_images']} of each novel class for each draw; test images, "
        f"{settings['test_images']} of each, have no say. That is more labelled images of the novel classes than are "
        "learned from: a choice that is known beforehand would need none.",
        "Means are over all draws. Draws within a split share its base network, so intervals are Student's t over "
        f"the {settings['splits']} means of the splits, {settings['splits'] - 1} degrees of freedom, and can reach "
        "past what is possible; those of the gain are over paired differences.",
        "Pixels are normalised by mean and standard deviation of all training images, novel classes included.",
    )


def _few_shot_finding(summary: FewShotSummary) -> str:
    images = "1 image" if summary.shots == 1 else f"{summary.shots} images"
    lcnn, cnn = (summary.accuracy[kind].mean for kind in ("lcnn", "cnn"))
    return (
        f"{images} of each novel class: LCNN with frozen dictionaries {100 * lcnn:.1f} %, CNN {100 * cnn:.1f} %; "
        f"{_difference(summary.gain)}"
    )


def _difference(gain: Estimate) -> str:
    text = f"{100 * gain.mean:+.1f} points"
    if gain.low is None or gain.high is None:
        return text
    text += f" ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
    return text if gain.low > 0 or gain.high < 0 else f"{text}, no difference that these splits can tell"


def _few_shot_results(summaries: Sequence[FewShotSummary]) -> Table:
    rows = tuple(
        (
            str(s.shots),
            *(cell for kind in ("lcnn", "cnn") for cell in _cells(s.accuracy[kind])),
            *_cells(s.gain, "+"),
            *(_share(s.share[kind]) for kind in ("lcnn", "cnn")),
        )
        for s in summaries
    )
    headers = ("images a class", "LCNN, %", INTERVAL, "CNN, %", INTERVAL, "gain, points", INTERVAL)
    return Table("Test accuracy", (*headers, "LCNN's chosen rate", "CNN's chosen rate"), rows)


def _few_shot_rates(summaries: Sequence[FewShotSummary], rate: float) -> Table:
    rows = [
        (
            f"{NAMES[kind]}, {s.shots}",
            _share(share),
            f"{rate * share:g}",
            f"{100 * validation:.1f}",
            f"{100 * test:.1f}",
            "chosen" if share == s.share[kind] else "",
        )
        for s in summaries
        for kind in ("lcnn", "cnn")
        for share, (validation, test) in sorted(s.by_share[kind].items(), reverse=True)
    ]
    headers = ("network, images a class", "rate of pre-trained layers", "that is", "validation, %", "test, %", "")
    return Table("Every rate", headers, tuple(rows))


def _few_shot_splits(summaries: Sequence[FewShotSummary]) -> Table:
    count = len(summaries[0].by_split["lcnn"])
    rows = [
        (f"{NAMES[kind]}, {s.shots}", *(f"{100 * mean:.1f}" for mean in s.by_split[kind]))
        for s in summaries
        for kind in ("lcnn", "cnn")
    ]
    headers = ("network, images a class", *(f"split {number}, %" for number in range(1, count + 1)))
    return Table("Mean test accuracy of each split", headers, tuple(rows))


def few_iteration_study(settings: Mapping[str, Any], summaries: Sequence[FewIterationSummary], facts: Facts) -> Study:
    """The report of ``lcnn few-iteration``; ``settings`` are its options, as the journal holds them."""
    summaries = sorted(summaries, key=lambda summary: list(WAYS).index(summary.way))
    chart = Chart(
        "Accuracy of the deeper network as it trains",
        "iterations",
        "test top-1, %; bars are 95 % intervals",
        tuple(
            Curve(WAYS[s.way], tuple(_mark(x, y) for x, y in zip(s.iterations, s.accuracy, strict=True)))
            for s in summaries
        ),
        ends=(0, 100),
    )
    points = summaries[0].iterations
    rows = tuple(
        (WAYS[s.way], f"{s.rate:g}", *(f"{100 * point.mean:.1f}" for point in s.accuracy), _cells(s.accuracy[-1])[1])
        for s in summaries
    )
    rates = tuple(
        (WAYS[s.way], f"{rate:g}", f"{100 * validation:.1f}", f"{100 * test:.1f}", "chosen" if rate == s.rate else "")
        for s in summaries
        for rate, (validation, test) in s.by_rate.items()
    )
    return Study(
        f"Few-iteration learning: {settings['model']} on {settings['data']}",
        (_few_iteration_finding(points[0], summaries, 0), _few_iteration_finding(points[-1], summaries, -1)),
        (chart,),
        (
            Table(
                "Test accuracy, %, after so many iterations",
                ("way", "rate", *map(str, points), f"{INTERVAL} of the last"),
                rows,
            ),
            Table("Every rate, after the last iteration", ("way", "rate", "validation, %", "test, %", ""), rates),
        ),
        _few_iteration_method(settings),
        tuple(facts),
        {"kind": "few-iteration", "settings": dict(settings), "summaries": [asdict(summary) for summary in summaries]},
    )


def _few_iteration_method(settings: Mapping[str, Any]) -> tuple[str, ...]:
    shallow, deep = settings["depths"]
    narrow = (
        ("The widths are a quarter of ResNet-18's (64 128 256 512).",)
        if settings["model"] == "small-resnet-lcnn"
        else ()
    )
    return (
        f"The shallow lookup network ({shallow}) is trained on the whole training set. The deeper one ({deep}) takes "
        "its dictionaries: each layer that of the layer of its own name, one that is new that of the last layer of "
        "its stage. They are frozen; P, dense shortcuts and batch norm start afresh and are trained.",
        *narrow,
        "Beside it the deeper lookup network, all of it from scratch, and its dense twin from scratch: the same "
        f"batches of {settings['batch_size']}, a constant rate. The shallow network's training is not counted among "
        "the iterations.",
        f"The rate is chosen for each way by the mean accuracy on {settings['images']:,} validation images after the "
        f"last iteration; shown is the accuracy on {settings['images']:,} test images, or as many as there are.",
        _seeds_text(settings["seeds"]),
    )


def _seeds_text(seeds: int) -> str:
    if seeds == 1:
        return "One seed: no interval."
    return (
        f"Means over {seeds} seeds, shallow network included; intervals are Student's t over the seeds, wide where "
        "these are few, and know no bounds: they may pass 100 %."
    )


def _few_iteration_finding(iterations: int, summaries: Sequence[FewIterationSummary], place: int) -> str:
    each = ", ".join(f"{WAYS[s.way]} {100 * s.accuracy[place].mean:.1f} %" for s in summaries)
    return f"After {iterations} iterations: {each}"


def _mark(x: float, value: Estimate) -> Mark:
    low, high = (None if end is None else 100 * end for end in (value.low, value.high))
    return Mark(x, 100 * value.mean, low, high)


def _cells(value: Estimate, sign: str = "") -> tuple[str, str]:
    if value.low is None or value.high is None:
        return f"{100 * value.mean:{sign}.1f}", ABSENT
    return f"{100 * value.mean:{sign}.1f}", f"{100 * value.low:{sign}.1f} to {100 * value.high:{sign}.1f}"


def _share(share: float) -> str:
    return "0" if not share else "eta" if share == 1 else f"eta/{1 / share:g}"
