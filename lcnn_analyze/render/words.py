"""The sentences of a report: the verdict (what it saves and what it costs), totals, checks and notes."""

from __future__ import annotations

from lcnn_analyze.cost import TWIN, Baseline
from lcnn_analyze.cost.changes import LayerChange
from lcnn_analyze.cost.checks import Disagreement, ToolCount
from lcnn_analyze.latency import Latency
from lcnn_analyze.render.numbers import ABSENT, bytes_text, count_text, joined, ratio_text
from lcnn_analyze.report import Accuracy, Measurement, ModelReport, Report
from lcnn_analyze.spectrum import Panel, Point

FRONT = "◆ on the Pareto front: no other model here is both faster and more accurate"

MARKS = "◆ Pareto front of these models, • other, ○ published"


def verdict(model: ModelReport, report: Report) -> str:
    """One sentence: what the model saves and what it costs."""
    macs = count_text(_macs(model), "MACs")
    if model.costs.convention != "published":
        macs += f" ({model.costs.convention})"
    if model.has_lookups:
        against = joined([_against(baseline, model) for baseline in shown_baselines(model)])
        saves = f"{model.name} {_saves(model)}: {macs} per image, {against}"
    else:
        saves = f"{model.name} is a dense network: {macs} per image{_if_skipped(model)}"
    return f"{saves}; {_costs(model, report)}.{_reservation(model)}"


def shown_baselines(model: ModelReport) -> list[Baseline]:
    """The twin, and the named reference where it is another network than the twin."""
    return [baseline for baseline in model.baselines if not same_as_twin(baseline, model)]


def compared_with(report: Report) -> list[str]:
    """Names of the baselines that the models are compared with, each once."""
    return list(dict.fromkeys(baseline.name for model in report.models for baseline in shown_baselines(model)))


def totals(model: ModelReport) -> list[tuple[str, str]]:
    """Exact totals as (name, text): MACs, each baseline, parameters, storage."""
    macs, values = _macs(model), model.costs.totals
    lines = [("total", f"{macs:,} MACs = {2 * macs:,} FLOPs, counted as {model.costs.convention}")]
    for baseline in model.baselines:
        share = f"{ratio_text(baseline.speedup)} counted speedup"
        same = ", the same as the dense twin" if same_as_twin(baseline, model) else ""
        part = f", partial: {baseline.remark}" if baseline.remark else ""
        lines.append((f"vs {baseline.name}", f"{share} ({baseline.macs:,} MACs{same}{part})"))
    if values.get("zero_macs"):
        lines.append(("if zeros were skipped", _zeros(model)))
    lines += [("measured", measured_text(measured)) for measured in model.latency]
    parameters, twin = int(values["parameters"] or 0), int(values["dense_parameters"] or 0)
    lines.append(("parameters", f"{parameters:,} held (dense twin {twin:,})"))
    storage = int(values["storage"] or 0)
    lines.append(("storage", f"{storage:,} values ({_times(twin, storage)} the dense twin's {twin:,})"))
    return lines + _memory(model)


def _if_skipped(model: ModelReport) -> str:
    """Of a pruned network, what is left without the zeros; nothing where they are few."""
    values = model.costs.totals
    zeros, total = values.get("zero_macs") or 0, _macs(model)
    if zeros < 0.05 * total:
        return ""
    return f", {count_text(values['nonzero_macs'] or 0, 'MACs')} if its zeros were skipped"


def _zeros(model: ModelReport) -> str:
    """What a dense network's zeros could save: nobody skips them here, so they stay in the total."""
    values = model.costs.totals
    left, entries = int(values.get("nonzero_macs") or 0), int(values.get("weights") or 0)
    zeros = entries - int(values.get("weights_nnz") or 0)
    return (
        f"{left:,} MACs ({_times(_macs(model), left)} the total): {zeros:,} of {entries:,} weights outside lookup "
        "layers are zero"
    )


def _memory(model: ModelReport) -> list[tuple[str, str]]:
    memory = model.memory
    if memory is None:
        return []
    sizes = [
        f"{bytes_text(memory.packed)} packed, indices included",
        f"{bytes_text(memory.parameters)} as held",
        f"{bytes_text(memory.dense_twin)} dense twin",
    ]
    if model.source:
        sizes.append(f"{bytes_text(model.source.size_bytes)} file")
    lines = [("memory", ", ".join(sizes) + "; 4 bytes a value")]
    if memory.activations is not None:
        lines.append(("activations", f"{bytes_text(memory.activations)} at their peak, one image, in PyTorch"))
    return lines


def accuracy_text(accuracy: Accuracy) -> str:
    """97.8 % top-1 on digits."""
    return f"{accuracy.percent:.1f} % {accuracy.metric} on {accuracy.dataset}"


def accuracy_details(accuracy: Accuracy) -> str:
    """97.8 % top-1 on digits (450 images, epoch 12)."""
    details = [f"{v} images" if name == "count" else f"{name} {v}" for name, v in accuracy.details.items()]
    return f"{accuracy_text(accuracy)} ({', '.join(details)})" if details else accuracy_text(accuracy)


def check_text(tool: ToolCount) -> str:
    """What one tool said of the dense twin, naming layers and figures where it disagrees."""
    if tool.macs is None:
        return f"{tool.tool} {tool.version} could not count the dense twin: {tool.reason}"
    said = f"{tool.tool} {tool.version} {tool.state}: {tool.macs:,} MACs"
    worst = [_difference(item) for item in tool.disagreements[:5]]
    more = len(tool.disagreements) - len(worst)
    return f"{said}; {'; '.join(worst)}{f'; and {more} more layers' if more > 0 else ''}" if worst else said


def _difference(item: Disagreement) -> str:
    """A layer with both figures, and the tool's policy where that explains it."""
    figures = f"{item.layer or '(model)'} ours {item.ours:,}, theirs {item.theirs:,}"
    return f"{figures} ({item.explanation})" if item.explanation else figures


def measured_text(measured: Measurement) -> str:
    """A measured speedup with everything that it depends on."""
    engine, dense = _milliseconds(measured.engine), _milliseconds(measured.dense)
    threads = f"{measured.threads} thread{'s' if measured.threads > 1 else ''}"
    return (
        f"{ratio_text(measured.speedup)} measured speedup over {measured.baseline} ({measured.fastest} {dense}, engine "
        f"{engine}), efficiency {measured.efficiency:.2f}, batch {measured.batch}, {threads}, {measured.processor}"
    )


def _milliseconds(latency: Latency) -> str:
    low, middle, high = (f"{1000 * seconds:.3g}" for seconds in (latency.p10, latency.median, latency.p90))
    return f"{middle} ms [{low}, {high}]"


def health(model: ModelReport) -> list[str]:
    """A line for each kind of finding: where, how many, and what to change."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for found in model.health:
        place = f"{found.layer or '(model)'} {found.count:,} of {found.of:,}"
        kinds.setdefault((found.problem, found.change), []).append(place)
    return [f"{problem}: {', '.join(places)}; {change}" for (problem, change), places in kinds.items()]


def change_text(change: LayerChange) -> str:
    """What differs in one layer, in words."""
    return "; ".join(change.what) if change.state == "changed" else change.state


def shown_changes(report: Report) -> tuple[list[LayerChange], int]:
    """The layers that changed, and how many did not."""
    changed = [change for change in report.changes if change.state != "same"]
    return changed, len(report.changes) - len(changed)


def change_name(change: LayerChange) -> str:
    """The layer's path, with the number of the call where a shared layer is called again."""
    return f"{change.layer or '(model)'}{f' #{change.call + 1}' if change.call else ''}"


def before_after(values: tuple[int | None, ...]) -> list[str]:
    """Before, after, and the difference with its sign."""
    known = [value or 0 for value in values]
    difference = f"{known[1] - known[0]:+,}" if known[0] != known[1] else "0"
    return [ABSENT if value is None else f"{value:,}" for value in values] + [difference]


def more(model: ModelReport) -> list[tuple[str, str]]:
    """Notes, accuracy, cross-check, health and uncounted operations as (name, text), for those that there are."""
    lines = [("note", note) for note in model.notes]
    lines += [("accuracy", accuracy_details(accuracy)) for accuracy in model.accuracy]
    if model.cross_check:
        lines += [("cross-check", check_text(tool)) for tool in model.cross_check.tools]
    lines += [("health", text) for text in health(model)]
    return lines + [("not counted", text) for text in uncounted_text(model)]


def panels_to_show(report: Report) -> list[Panel]:
    """The panels of the spectrum that compare something: a single point does not."""
    return [panel for panel in report.spectrum if len(panel.points) + len(panel.lines) > 1]


def panel_title(panel: Panel) -> str:
    """What a panel of the spectrum shows, with its baseline."""
    return f"{panel.metric} on {panel.dataset} against {panel.kind} speedup over {against(panel)}"


def against(panel: Panel) -> str:
    """What the speedups of a panel are over."""
    return "the dense twin" if panel.baselines == (TWIN,) else joined(panel.baselines)


def mark(point: Point, panel: Panel) -> str:
    """The sign of a point, as ``MARKS`` explains."""
    return "○" if point.published else "◆" if point in panel.front else "•"


def point_text(point: Point) -> str:
    """A point's label; a published one with its place in the paper."""
    return f"{point.label}, {point.source}" if point.published else point.label


def uncounted_text(model: ModelReport) -> list[str]:
    """A line for each operation that no formula covers."""
    return [f"{u.operation} in {u.name or '(model)'}: {u.calls} calls, {u.reason}" for u in model.costs.uncounted]


def provenance(report: Report) -> list[tuple[str, str]]:
    """How the report came about, as (name, text)."""
    lines = [
        ("counted under", f"{report.convention.name}: {report.convention.definition}"),
        ("units", report.units),
        ("command", report.command),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("machine", report.machine),
    ]
    for model in report.models:
        if model.source:
            size = f"{model.source.size_bytes:,} bytes"
            lines.append((f"file of {model.name}", f"{model.source.file}, {size}, sha256 {model.source.sha256}"))
    return lines


def _macs(model: ModelReport) -> int:
    return int(model.costs.totals["macs"] or 0)


def _saves(model: ModelReport) -> str:
    twin = model.twin.macs
    saved = 1 - _macs(model) / twin if twin else 0.0
    if saved >= 0:
        # Rounded down: 99.96 % saved is not 100 %.
        digits = 0 if saved < 0.985 else 1
        shown = int(saved * 100 * 10**digits) / 10**digits
        return f"saves {shown:.{digits}f} % of the dense twin's multiplications"
    return f"costs {-saved * 100:.0f} % more multiplications than the dense twin"


def _against(baseline: Baseline, model: ModelReport) -> str:
    name = "its dense twin" if baseline.kind == "twin" else baseline.name
    return f"{_times(baseline.macs, _macs(model))} {name} ({count_text(baseline.macs)})"


def _times(baseline: float, own: float) -> str:
    """24.7x fewer than, or 1.2x as many as."""
    if own == baseline:
        return "as many as"
    if not own or not baseline:
        return "against"
    return f"{ratio_text(baseline / own)} fewer than" if baseline > own else f"{ratio_text(own / baseline)} as many as"


def same_as_twin(baseline: Baseline, model: ModelReport) -> bool:
    """Whether a reference is the same network as the dense twin, as far as its counts can tell."""
    return baseline.kind != "twin" and baseline.same_network(model.twin)


def _costs(model: ModelReport, report: Report) -> str:
    if not model.accuracy:
        return "its accuracy is not known: the model carries none"
    own = model.accuracy[0]
    dense = _dense_counterpart(model, own, report)
    if dense is None:
        return f"it reaches {accuracy_text(own)}"
    points = dense.percent - own.percent
    change = "the same as" if abs(points) < 0.05 else f"{abs(points):.1f} points {'below' if points > 0 else 'above'}"
    return f"it reaches {accuracy_text(own)}, {change} the dense network"


def _dense_counterpart(model: ModelReport, own: Accuracy, report: Report) -> Accuracy | None:
    """The accuracy, on the same data, of the dense model in the report that is this one's twin or reference."""
    macs = {baseline.macs for baseline in model.baselines}
    for other in report.models:
        if other is model or not model.has_lookups or other.has_lookups or _macs(other) not in macs:
            continue
        for accuracy in other.accuracy:
            if (accuracy.metric, accuracy.dataset) == (own.metric, own.dataset):
                return accuracy
    return None


def _reservation(model: ModelReport) -> str:
    status = model.costs.status["macs"]
    return f" Partial: {status.reason}." if status.state == "partial" else ""
