"""Class shares of a set of images from a classifier's answers, corrected for its errors, with intervals. No torch.

Shares of answers are biased by the confusion of the classifier: with a rare class, most of its answers are
mistakes. What corrects them is the task card, measured on labeled images when the task was learnt. Which class an
image of a class looks like is taken to be the same then and now; only how frequent the classes are may change.
"""

from taskgraft.quantification.estimate import Sample, measure, measure_pair
from taskgraft.quantification.results import ClassShare, Distribution, PairShares, TaskShares

__all__ = ["ClassShare", "Distribution", "PairShares", "Sample", "TaskShares", "measure", "measure_pair"]
