"""OpenVINO on the CPU: dense float32, and dense int8 from ONNX Runtime's quantizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lcnn_analyze.bench.contenders.base import Contender, Ready, Work, require
from lcnn_analyze.bench.contenders.ort import int8_file


def prepare(work: Work) -> Ready:
    require("openvino")
    return request(work, work.onnx_file())


def prepare_int8(work: Work) -> Ready:
    require("openvino", "onnxruntime")
    return request(work, int8_file(work))


def request(work: Work, path: Path) -> Ready:
    """The file as one inference request, tuned for latency, with the batch fixed.

    float32 is asked for: on processors with native bfloat16 or float16, OpenVINO would take these by itself.
    """
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape(list(work.x.shape))
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": work.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    infer = core.compile_model(model, "CPU", settings).create_infer_request()
    infer.set_input_tensor(openvino.Tensor(work.x.numpy(), shared_memory=True))

    def output() -> torch.Tensor:
        infer.infer()
        return torch.from_numpy(infer.get_output_tensor(0).data.copy())

    return Ready(infer.infer, output)


OPENVINO = Contender("openvino", "OpenVINO", "dense", "openvino", prepare)
OPENVINO_INT8 = Contender("openvino-int8", "OpenVINO", "dense", "openvino", prepare_int8, "int8")
