"""The machine that a figure comes from, named well enough to compare it with another."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lcnn_analyze.bench.report import Machine
from lcnn_core import ConfigError, usable_cores

PACKAGES = ("lcnn", "torch", "onnxruntime", "openvino")


def this_machine() -> Machine:
    """Processor, cores that this process may use, system, load and versions."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    system = f"{platform.system()} {platform.machine()}"
    return Machine(_processor(), usable_cores(), system, load, versions)


def check_sizes(batches: Sequence[int], threads: Sequence[int]) -> None:
    """Raise ConfigError for sizes or counts that cannot be timed here."""
    if not batches or min(batches) < 1:
        raise ConfigError(f"batch is {_listed(batches)}; expected whole numbers of 1 or more")
    cores = usable_cores()
    if not threads or min(threads) < 1 or max(threads) > cores:
        raise ConfigError(f"threads is {_listed(threads)}; expected 1 to {cores}, the cores that this process may use")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers)) or "empty"


def _processor() -> str:
    """The processor's name as Linux gives it, with family and model where it does, else as Python gives it.

    A virtual machine may call every generation "AMD EPYC"; family and model tell them apart.
    """
    info = Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        fields = {key: _field(text, key) for key in ("model name", "cpu family", "model")}
        if name := fields.pop("model name"):
            numbers = " ".join(f"{key.split()[-1]} {value}" for key, value in fields.items() if value)
            return f"{name} ({numbers})" if numbers else name
    return platform.processor() or platform.machine()


def _field(text: str, key: str) -> str | None:
    match = re.search(rf"^{key}[ \t]*:[ \t]*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else None
