"""What a trained network's dictionaries are good for elsewhere: new classes from few images, deeper networks soon.

Both as published, each beside the same protocol for the dense network.
"""

from lcnn_core.transfer.iterations import FewIterationConfig, FewIterationResult, few_iteration
from lcnn_core.transfer.networks import Family, carry_dictionaries_, freeze_dictionaries_
from lcnn_core.transfer.shots import FewShotConfig, FewShotResult, few_shot
from lcnn_core.transfer.summary import (
    Estimate,
    FewIterationSummary,
    FewShotSummary,
    estimate,
    summarize_few_iteration,
    summarize_few_shot,
)

__all__ = [
    "Estimate",
    "Family",
    "FewIterationConfig",
    "FewIterationResult",
    "FewIterationSummary",
    "FewShotConfig",
    "FewShotResult",
    "FewShotSummary",
    "carry_dictionaries_",
    "estimate",
    "few_iteration",
    "few_shot",
    "freeze_dictionaries_",
    "summarize_few_iteration",
    "summarize_few_shot",
]
