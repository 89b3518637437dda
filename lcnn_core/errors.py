"""Every error that the library raises on purpose.

All of them derive from :class:`LcnnError`, so that one ``except`` catches what a user can mend. Messages are one
line: they name the value, what was expected and, where there is one, the next step.
"""


class LcnnError(Exception):
    """Base class of every error raised on purpose by ``lcnn_core`` and ``lcnn_analyze``."""


class ShapeError(LcnnError, ValueError):
    """Tensors whose shapes do not fit together; the message quotes both shapes."""


class ConfigError(LcnnError, ValueError):
    """A value that the user chose is outside what is allowed; the message names it and the allowed values."""


class CheckpointError(LcnnError):
    """A file that cannot be read as a checkpoint, or does not fit the model it is loaded into."""


class DataError(LcnnError):
    """A data source that is absent, damaged or inconsistent."""


class UnsupportedLayerError(LcnnError):
    """A layer or operation that this room does not handle; never replaced by a silent zero."""


class TrainingError(LcnnError):
    """Training that cannot go on: a loss that is not finite, a layer that died, a disk that is full."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
