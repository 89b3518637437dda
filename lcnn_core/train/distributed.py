"""One process or many, started by torchrun: who is who, and what they add up together."""

from __future__ import annotations

import ctypes
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from lcnn_core.errors import ConfigError, TrainingError

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: the first may be writing checkpoints."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, all alike but for their rank; the one of rank 0 writes."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Those of this run; one where none were joined."""
        joined = dist.is_available() and dist.is_initialized()
        return cls(dist.get_rank(), dist.get_world_size()) if joined else cls()

    def sums(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Each value added up over the processes, in float64 where the device has it."""
        if self.count == 1:
            return list(values)
        kind = torch.float32 if device.type == "mps" else torch.float64
        total = torch.tensor(values, dtype=kind, device=device)
        with spoken():
            dist.all_reduce(total)
        return total.tolist()

    def union(self, found: Mapping[str, str]) -> dict[str, str]:
        """What any of the processes has found."""
        if self.count == 1:
            return dict(found)
        parts: list[Any] = [None] * self.count
        with spoken():
            dist.all_gather_object(parts, dict(found))
        return {name: text for part in parts for name, text in part.items()}

    def of_first(self, found: T) -> T:
        """What the process of rank 0 has found, where all were to find the same but for rounding."""
        if self.count == 1:
            return found
        parts: list[Any] = [found]
        with spoken():
            dist.broadcast_object_list(parts, 0)
        return parts[0]

    def send_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics of rank 0."""
        if self.count > 1:
            with spoken():
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)


@contextmanager
def spoken() -> Iterator[None]:
    """What a process sees when another has died, as a TrainingError of one line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        lost = isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text
        if not lost or not dist.is_initialized():
            raise
        reason = re.sub(r"^\[[^\]]*\] ", "", text).partition(". This ")[0]  # gloo's source line and advice
        raise TrainingError(
            f"another process of this run ended ({reason[:200]}); its own message says why; resume from the last state"
        ) from error


@contextmanager
def join_processes(device: str = "auto") -> Iterator[tuple[Processes, torch.device]]:
    """Join the processes that torchrun started, if any, with NCCL on GPUs and gloo elsewhere; leave them at the end.

    device: auto (a GPU where there is one), cpu, cuda, cuda:N, mps. With many processes on GPUs each takes the GPU of
    its local rank. Yields who they are and where this one computes. Raises ConfigError for a device that is not there.
    """
    where = find_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Processes.current(), where
        return
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(where)
    # Of a 1x1 kernel, whose strides mean nothing.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    try:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"WORLD_SIZE is set, but the processes do not meet: {reason}; start with torchrun") from error
    group = dist.group.WORLD
    try:
        yield Processes.current(), where
    except BaseException:
        # A sum under way may never end, and the group's destructor would wait for it: so one reference stays out.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        raise
    finally:
        dist.destroy_process_group()


def find_device(name: str) -> torch.device:
    """The device of that name; auto is a GPU where there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.partition(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in there:
        raise ConfigError(f"device is {name!r}; expected auto, cpu, cuda, cuda:N or mps")
    try:
        found = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; expected auto, cpu, cuda, cuda:N or mps") from None
    if not there[kind] or (kind == "cuda" and (found.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(f"device is {name!r}, which this machine does not have; leave it out, or give cpu")
    return found
