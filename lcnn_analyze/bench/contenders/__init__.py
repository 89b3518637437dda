"""Everything that the bench can time, one file per runtime. ``CONTENDERS`` lists them."""

from lcnn_analyze.bench.contenders.base import Contender, Ready, StepTime, UnavailableError, Work
from lcnn_analyze.bench.contenders.engine import ENGINE, ENGINE_BFLOAT16, ENGINE_INT8
from lcnn_analyze.bench.contenders.inductor import INDUCTOR
from lcnn_analyze.bench.contenders.ort import ORT, ORT_INT8, ORT_LOOKUP
from lcnn_analyze.bench.contenders.ov import OPENVINO, OPENVINO_INT8
from lcnn_analyze.bench.contenders.pytorch import PYTORCH
from lcnn_analyze.bench.contenders.stock import SPARSE_CSR, TWO_CONVS

_LISTED = (
    ENGINE,
    ENGINE_BFLOAT16,
    ENGINE_INT8,
    PYTORCH,
    INDUCTOR,
    ORT,
    OPENVINO,
    ORT_INT8,
    OPENVINO_INT8,
    TWO_CONVS,
    SPARSE_CSR,
    ORT_LOOKUP,
)

CONTENDERS: dict[str, Contender] = {contender.name: contender for contender in _LISTED}
"""To add one: a file with a Contender, and a line above."""

__all__ = ["CONTENDERS", "Contender", "Ready", "StepTime", "UnavailableError", "Work"]
