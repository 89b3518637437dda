"""How fast an engine could be at the peaks that this machine's kernels reach: a bound, not a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from threading import Barrier

from lcnn_analyze.bench.native import engine_room
from lcnn_analyze.bench.report import Peaks, Reading
from lcnn_core import LayerSpec, ModelSpec, count_layer

MEGABYTE = 1 << 20
SIZES = tuple(MEGABYTE * size for size in (1, 2, 4, 8, 12, 16, 24, 32, 48, 96))
"""Bytes whose reading is measured: from a core's own cache to memory. A cache that others share may hold less than it
says, so what it holds is measured too."""
FLOAT_BYTES = 4
LOOKUP_BYTES = 8
"""A lookup is an offset and a value of four bytes each."""

MeasurePeaks = Callable[[float, Sequence[int], int], Peaks | None]
"""Seconds of each rate, sizes to read, cores at once."""


def measure_peaks(seconds: float = 0.2, sizes: Sequence[int] = SIZES, cores: int = 1) -> Peaks | None:
    """The engine's kernels on data in the first cache, and reads of so many bytes; None without a native library.

    Several cores are measured at once, and their rates summed: what one reads, the others may have to wait for.
    """
    engine = engine_room()
    library = engine.library_in_use() if engine else None
    if engine is None or library is None:
        return None
    together = Barrier(cores)

    def rates(_: int) -> list[float]:
        together.wait()
        found = engine.peaks(seconds)
        # Lookups lie at arbitrary offsets: of the rates from the first cache, the one for such loads is theirs.
        own = [found["matrix_gmacs"], found["lookup_l1_gmacs"]]
        for size in sizes:
            together.wait()
            own.append(engine.read_rate(size, seconds / 2))
        return own

    with ThreadPoolExecutor(cores) as threads:
        matrix, lookup, *found = map(sum, zip(*threads.map(rates, range(cores)), strict=True))
    # No more bytes are read faster than fewer are: a lower rate of fewer was somebody else's doing.
    reading = tuple(Reading(size, max(found[at:])) for at, size in enumerate(sizes))
    return Peaks(library, matrix, lookup, reading, cores)


class PeaksInTurns:
    """The peaks of some cores, measured in turns with the network that they bound, so that both meet the same machine.

    Of each turn the last call counts: threads of the one before may spin during the others. The first turn is the
    warm-up of ``latency.measure``, and does not count. Weights below the smallest of ``SIZES`` are not read. Without a
    library, there is nothing.
    """

    CALL_SECONDS = 0.004
    """Of each rate in a call; rates are the best of so long."""

    def __init__(self, spec: ModelSpec, measure: MeasurePeaks, cores: int) -> None:
        weights = sum(map(weight_bytes, spec.layers))
        self._sizes = (min(weights, SIZES[-1]),) if weights >= SIZES[0] else ()
        self._measure, self._cores = measure, cores
        self._turns: list[Peaks | None] = []

    def turn(self) -> None:
        """The calls from here on are of another turn."""
        self._turns.append(None)

    def __call__(self) -> None:
        self._turns[-1] = self._measure(self.CALL_SECONDS, self._sizes, self._cores)

    def median(self) -> Peaks | None:
        """The median of each rate over the turns."""
        found = [peaks for peaks in self._turns[1:] if peaks]
        if not found:
            return None
        reading = tuple(
            Reading(size, median(peaks.reading[at].gbytes for peaks in found)) for at, size in enumerate(self._sizes)
        )
        matrix, lookup = (median(getattr(peaks, name) for peaks in found) for name in ("matrix_gmacs", "lookup_gmacs"))
        return Peaks(found[0].library, matrix, lookup, reading, self._cores)


def roofline_seconds(spec: ModelSpec, peaks: Peaks, batch: int) -> float:
    """Seconds for a batch when every layer runs at its peak; see :func:`layer_seconds`."""
    return sum(layer_seconds(spec, peaks, batch).values())


def layer_seconds(spec: ModelSpec, peaks: Peaks, batch: int) -> dict[str, float]:
    """Seconds of every layer at the peaks of so many cores, by name, all its calls together.

    Matrix products at the peak of the matrix kernel, lookups at the rate at any offset from the first cache, one after
    the other: lookups that run beside products, or column by column from whole cache lines, could take less. The
    dictionary at unpadded positions. A layer takes at least the time to read its weights once, at the rate at which as
    many bytes as all weights together, or somewhat fewer, are read again and again.
    """
    rate = read_gbytes(peaks, sum(map(weight_bytes, spec.layers)))
    seconds: dict[str, float] = {}
    for layer in spec.layers:
        matrix, lookups = _work(layer)
        compute = batch * (matrix / peaks.matrix_gmacs + lookups / peaks.lookup_gmacs)
        bound = max(compute, weight_bytes(layer) / rate)
        seconds[layer.name] = seconds.get(layer.name, 0.0) + bound / 1e9
    return seconds


def read_gbytes(peaks: Peaks, size: int) -> float:
    """GB/s of the largest measured size that is no larger; infinity below them all."""
    return next((read.gbytes for read in reversed(peaks.reading) if read.size <= size), math.inf)


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
