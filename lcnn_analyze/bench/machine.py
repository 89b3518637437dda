"""The machine that a figure comes from, named well enough to compare it with another."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lcnn_analyze.bench.report import Machine
from lcnn_core import usable_cores

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


def _processor() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()
