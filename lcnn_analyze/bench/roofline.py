"""How fast an engine could be at the peaks that this machine's kernels reach: a bound, not a target."""

from __future__ import annotations

import math

from lcnn_analyze.bench.machine import last_level_cache
from lcnn_analyze.bench.native import engine_room
from lcnn_analyze.bench.report import Peaks
from lcnn_core import LayerSpec, ModelSpec, count_layer

FLOAT_BYTES = 4
LOOKUP_BYTES = 8
"""A lookup is an offset and a value of four bytes each."""


def measure_peaks(seconds: float = 0.2) -> Peaks | None:
    """The engine's kernels on data in the first cache, and streaming reads; None without a native library."""
    engine = engine_room()
    library = next(iter(engine.libraries()), None) if engine else None
    if engine is None or library is None:
        return None
    rates = engine.peaks(seconds)
    # Lookups lie at arbitrary offsets: of the rates from the first cache, the one for such loads bounds them.
    return Peaks(library, rates["matrix_gmacs"], rates["lookup_l1_gmacs"], rates["memory_gbytes"], last_level_cache())


def roofline_seconds(spec: ModelSpec, peaks: Peaks, batch: int, threads: int) -> float:
    """Seconds for a batch when every layer runs at its peak; see :func:`layer_seconds`."""
    return sum(layer_seconds(spec, peaks, batch, threads).values())


def layer_seconds(spec: ModelSpec, peaks: Peaks, batch: int, threads: int) -> dict[str, float]:
    """Seconds of every layer at the peaks, by name, all its calls together.

    Matrix products at the peak of the matrix kernel, lookups at the rate from the first cache, times ``threads``; the
    dictionary at unpadded positions. A layer takes at least the time to read its weights once from memory, where all
    weights together are larger than the last cache.
    """
    in_memory = sum(map(weight_bytes, spec.layers)) > peaks.cache_bytes
    seconds: dict[str, float] = {}
    for layer in spec.layers:
        matrix, lookups = _work(layer)
        compute = batch * (matrix / peaks.matrix_gmacs + lookups / peaks.lookup_gmacs) / threads
        bound = max(compute, weight_bytes(layer) / peaks.memory_gbytes if in_memory else 0.0)
        seconds[layer.name] = seconds.get(layer.name, 0.0) + bound / 1e9
    return seconds


def weight_bytes(layer: LayerSpec) -> int:
    """Bytes of a layer's weights as an engine packs them: lookups as streams, everything else dense float32."""
    if layer.call:
        return 0
    if layer.lookup is None:
        return FLOAT_BYTES * layer.weight_size
    return FLOAT_BYTES * layer.lookup.dictionary_nnz + LOOKUP_BYTES * layer.lookup.coefficients_nnz


def _work(layer: LayerSpec) -> tuple[int, int]:
    """MACs in matrix products, and lookups, for one image."""
    count = count_layer(layer)
    if layer.lookup is None:
        return count.plain, 0
    positions = math.prod(layer.input_shape[1:] if layer.kernel_size else layer.input_shape[:-1]) * layer.repeats
    return layer.lookup.dictionary_nnz * positions, count.lookups
