"""What a trained network's dictionaries are good for elsewhere: new classes from few images, deeper networks in few
iterations. Both as published (section 4.3 and 4.4), each beside the same protocol for the dense network."""

from lcnn_core.transfer.few_iteration import FewIterationConfig, FewIterationResult, few_iteration
from lcnn_core.transfer.few_shot import FewShotConfig, FewShotResult, few_shot
from lcnn_core.transfer.networks import Family, carry_dictionaries_, freeze_dictionaries_
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
