"""ONNX Runtime: dense float32, dense int8, and the lookup network as ``lcnn export`` writes it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from lcnn_analyze.bench.contenders.base import Contender, Ready, Work, require


def prepare(work: Work) -> Ready:
    require("onnxruntime")
    return session(work, work.onnx_file())


def prepare_int8(work: Work) -> Ready:
    require("onnxruntime")
    return session(work, int8_file(work))


def session(work: Work, path: Path) -> Ready:
    """The file in ONNX Runtime with a fixed batch and its threads asleep between calls."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = work.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name("batch", len(work.x))
    # Its threads spin while a call runs, as they do by default, and stop at its end: measured, they would go on for
    # 40 ms in the next contender's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {runtime.get_inputs()[0].name: work.x.numpy()}

    def run() -> Any:
        return runtime.run(None, inputs)

    return Ready(run, lambda: torch.from_numpy(run()[0]))


def int8_file(work: Work) -> Path:
    """Statically quantized (QDQ, weights per channel), calibrated on the batch at hand. Written once.

    Weights have 7 bits: processors without VNNI add pairs of 8-bit products with saturation, so that full ones would
    overflow (ONNX Runtime's own advice for AVX2). Speed does not depend on it.
    """
    path = work.folder / "int8.onnx"
    if path.exists():
        return path
    source = work.onnx_file()
    require("onnxruntime")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"input": work.x.numpy()}])

        def get_next(self) -> Any:
            return next(self.batches, None)

    folded = work.folder / "folded.onnx"
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        quant_pre_process(str(source), str(folded))
        quantize_static(
            str(folded),
            str(path),
            Calibration(),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
    finally:
        root.setLevel(level)
        folded.unlink(missing_ok=True)
    return path


ORT = Contender("onnxruntime", "ONNX Runtime", "dense", "onnxruntime", prepare)
ORT_INT8 = Contender("onnxruntime-int8", "ONNX Runtime", "dense", "onnxruntime", prepare_int8, "int8")
ORT_LOOKUP = Contender("onnxruntime-lcnn", "ONNX Runtime, exported LCNN", "stock", "onnxruntime", prepare)
