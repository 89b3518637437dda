"""One batch: forward and backward in pieces, on one process or many, gradients averaged over all pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lcnn_core.data.files import seed_of
from lcnn_core.errors import ConfigError, TrainingError
from lcnn_core.train import health
from lcnn_core.train.config import TrainConfig
from lcnn_core.train.distributed import Processes, spoken
from lcnn_core.train.evaluation import check_outputs, label_ranks, model_device
from lcnn_core.train.mixing import mixing
from lcnn_core.train.objective import Objective, l1_penalty
from lcnn_core.train.recompute import buffers_kept, recompute_blocks

ADVICE = "lower the learning rate or clip the gradient's norm"


class Step:
    """Loss and gradients of a batch that is cut into pieces, ``config.batch_pieces`` for each process.

    What many processes compute is what one process computes with as many pieces: each piece has batch norm statistics
    and random numbers of its own, its gradient counts by its share of the batch, and the running statistics are those
    of the very first piece.
    """

    def __init__(
        self, model: nn.Module, config: TrainConfig, objective: Objective, processes: Processes, classes: int
    ) -> None:
        self.model, self.config, self.objective, self.processes = model, config, objective, processes
        self.device = model_device(model)
        self.mix = mixing(config.mixup, config.cutmix, classes)
        self.end: Callable[[], None] = lambda: None
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net: Any = _compiled(model, config.compile) if config.compile else model
        if processes.count > 1:
            self.net = DistributedDataParallel(self.net)

    def begin(self) -> None:
        """From now on, until ``end``, the model computes as the run wants it to."""
        if self.config.gradient_checkpointing:
            self.end = recompute_blocks(self.model)

    @property
    def pieces(self) -> int:
        """Pieces of a batch over all processes."""
        return self.config.batch_pieces * self.processes.count

    def own(self, batch: Tensor) -> Tensor:
        """The part of the batch's indices that this process takes, its pieces together."""
        parts = batch.tensor_split(self.pieces)
        first = self.processes.rank * self.config.batch_pieces
        return torch.cat(parts[first : first + self.config.batch_pieces])

    def offset(self, total: int) -> int:
        """Images of a batch of ``total`` that the processes before this one take."""
        first = self.processes.rank * self.config.batch_pieces
        return sum(len(part) for part in torch.arange(total).tensor_split(self.pieces)[:first])

    def __call__(self, images: Tensor, labels: Tensor, total: int, number: int, where: str) -> tuple[float, int]:
        """Put the gradients of batch ``number`` into the parameters; ``where`` names the batch in messages.

        images, labels: what this process took of the batch's ``total`` images. Returns, over all processes, the mean
        loss and how many images were right. Raises TrainingError as soon as something is not finite.
        """
        first = self.processes.rank * self.config.batch_pieces
        sizes = [len(part) for part in torch.arange(total).tensor_split(self.pieces)]
        own = sizes[first : first + self.config.batch_pieces]
        parts = list(zip(images.split(own), labels.split(own), strict=True))
        loss, right = 0.0, 0
        for number_here, piece in enumerate(parts):
            self._seed(seed_of(self.config.seed, number, first + number_here))
            last = number_here == len(parts) - 1
            with nullcontext() if number_here == 0 else buffers_kept(self.model):
                piece_loss, piece_right = self._piece(piece, len(piece[0]) / total, last, where)
            loss, right = loss + piece_loss, right + piece_right
        loss, right_sum = self.processes.sums((loss, right), self.device)
        return loss, int(right_sum)

    def _seed(self, seed: int) -> None:
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # a millisecond less than what seeds every kind of device
        else:
            torch.manual_seed(seed)

    def _piece(self, piece: Sequence[Tensor], share: float, last: bool, where: str) -> tuple[float, int]:
        images, labels = (tensor.to(self.device, non_blocking=True) for tensor in piece)
        if self.config.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        mixed, targets = self.mix(images, labels)
        held_back = isinstance(self.net, DistributedDataParallel) and not last
        with self.net.no_sync() if held_back else nullcontext(), spoken():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bfloat16):
                logits = self.net(mixed)
                check_outputs(logits, labels)
                loss = self.objective(logits, mixed, targets) + l1_penalty(self.model)
            if not bool(loss.isfinite()):
                self.stop(where, f"the loss is {float(loss.detach())}", mixed, targets)
            # Many processes: DistributedDataParallel divides by their number.
            (loss * (share * self.processes.count)).backward()
        right = label_ranks(logits.detach(), labels) < 1
        return float(loss.detach()) * share, int(right.sum())

    def stop(self, where: str, what: str, images: Tensor, labels: Tensor) -> NoReturn:
        """Raise TrainingError that says which layer went wrong first on this piece."""
        why = health.diagnose(self.model, self.objective, images.to(self.device), labels.to(self.device))
        raise TrainingError(f"{where}: {what}: {why}; {ADVICE}")


def _compiled(model: nn.Module, backend: str) -> Any:
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise ConfigError(f"compile is {backend!r}; expected a backend of torch.compile: {', '.join(known)}")
    return torch.compile(model, backend=backend)
