"""Prevalence estimation (quantification): how frequent the classes are in a set of images. No torch.

Counting predictions is biased by the classifier's confusion: of a rare class, most predictions are mistakes. The task
card, measured on labeled images when the task was learned, corrects that. The assumption is prior probability shift:
the images of a class look as they did then, and only the frequencies of the classes may change.
"""

from taskgraft.quantification.prevalence import (
    ClassPrevalence,
    Distribution,
    JointPrevalence,
    Sample,
    TaskPrevalence,
    estimate_joint_prevalence,
    estimate_prevalence,
)
from taskgraft.quantification.task_card import OODCheck

__all__ = [
    "ClassPrevalence",
    "Distribution",
    "JointPrevalence",
    "OODCheck",
    "Sample",
    "TaskPrevalence",
    "estimate_joint_prevalence",
    "estimate_prevalence",
]
