"""Extending a classifier as a scikit-learn estimator: `fit`, `predict`, `predict_proba`, `score`, in memory."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taskgraft import metrics
from taskgraft.bundle import Bundle, open_parent
from taskgraft.bundle.prediction import read_images
from taskgraft.config import TrainingConfig
from taskgraft.data.in_memory import as_pixels
from taskgraft.errors import InputError
from taskgraft.methods.presets import DEFAULT_METHOD
from taskgraft.methods.protocol import MethodLike
from taskgraft.models.classifier import Classifier, grow
from taskgraft.models.inference import check_inputs, predict
from taskgraft.pipeline.learn import learn
from taskgraft.types import Images, PathLike, Task

if TYPE_CHECKING or importlib.util.find_spec(
    "sklearn"
):  # what scikit-learn's own tools ask of an estimator; nothing else needs it
    from sklearn.base import BaseEstimator, ClassifierMixin

    class _Estimator(ClassifierMixin, BaseEstimator):
        """scikit-learn's own parameters, score and tags."""

else:

    class _Estimator:
        """What scikit-learn's base classes would add, but for what its own tools ask."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Return the parameters of the constructor by name."""
            names = list(inspect.signature(type(self)).parameters)
            return {name: getattr(self, name) for name in names}

        def set_params(self, **params: Any) -> Self:
            """Set parameters of the constructor by name."""
            known = self.get_params()
            for name, value in params.items():
                if name not in known:
                    raise InputError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(known)}")
                setattr(self, name, value)
            return self

        def score(self, X: Any, y: Any) -> float:
            """Return the accuracy on images with known classes."""
            return float((self.predict(X) == np.asarray(y)).mean())

        def predict(self, X: Any) -> NDArray[Any]:
            """Return the class of each image."""
            raise NotImplementedError


class Extender(_Estimator):
    """A scikit-learn classifier for a new task, learned by a model that keeps its old ones.

    `fit` gives a copy of the model a head for the new task and trains it; `predict` and `predict_proba` answer the new
    task. After `fit` the extended model is in `bundle_` (of a model that was a path or a Bundle) or `classifier_`, and
    answers all tasks. The settings are parameters of a search, such as `GridSearchCV`.

    Args:
        model: What to extend, never changed: a path or name as for `open_parent`, a Bundle, or a Classifier (`wrap`
            makes one of any module).
        task: Name of the new task.
        method: How the old tasks are kept, in the notation or as objects.
        steps: Number of training steps; None = that of `config`, as for the next two.
        batch_size: Images per step.
        lr: Peak learning rate.
        config: All other training settings.
        random_state: Random seed.
    """

    def __init__(
        self,
        model: PathLike | Bundle | Classifier,
        *,
        task: str = "task",
        method: MethodLike = DEFAULT_METHOD,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
        random_state: int = 0,
    ) -> None:
        # scikit-learn clones an estimator by its parameters, which have to be kept as they were given
        self.model = model
        self.task = task
        self.method = method
        self.steps = steps
        self.batch_size = batch_size
        self.lr = lr
        self.config = config
        self.random_state = random_state

    def fit(self, X: Any, y: Sequence[Any] | NDArray[Any]) -> Self:
        """Learn the new task.

        Args:
            X: float inputs [N, ...] as the network wants them, or uint8 pixels [N, H, W, C]. With a path or a Bundle
                also paths, Pillow images and pixels of any size, which are preprocessed as the model's own images.
            y: The class of each, as strings or numbers.

        Raises:
            InputError: There are fewer than two classes, or not one label per image, or a setting is not allowed.
        """
        parent = open_parent(self.model) if isinstance(self.model, str | os.PathLike) else self.model
        if not isinstance(parent, Bundle | Classifier):
            raise InputError(
                f"Extender: model is a {type(parent).__name__}; give a path, a Bundle, or make a Classifier of it by "
                "taskgraft.wrap"
            )
        values = np.asarray(y)
        kinds = {type(value).__name__ for value in values.flat} if values.dtype == object else set()
        if values.ndim != 1 or len(kinds) > 1:
            shape = f"is {list(values.shape)}" if len(kinds) < 2 else f"mixes {' and '.join(sorted(kinds))}"
            raise InputError(f"Extender: y {shape}; give one class per image, all as strings or all as numbers")
        self.classes_, target = np.unique(values, return_inverse=True)
        task = Task(self.task, tuple(map(str, self.classes_)))
        given = {"steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "seed": self.random_state}
        config = replace(self.config, **{name: value for name, value in given.items() if value is not None})
        bundle = parent if isinstance(parent, Bundle) else None
        images = _read(X, bundle)._replace(labels={self.task: torch.from_numpy(target.astype(np.int64))})
        grown = grow(parent.classifier if isinstance(parent, Bundle) else parent, task, config.seed)
        learned = learn(grown, images, method=self.method, config=config, memory=bundle.memory if bundle else None)
        self.classifier_, self.memory_, self.history_ = learned
        self.bundle_ = bundle and replace(
            bundle, classifier=self.classifier_, memory=self.memory_, folder=None, digest="",
            source=f"{bundle.source} with {self.task}",
        )  # fmt: skip
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of each image [N], as it was written in `y`.

        Args:
            X: As in `fit`.
        """
        best = self._logits(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities [N, K] of `classes_`.

        Args:
            X: As in `fit`.
        """
        return metrics.probabilities(self._logits(X))

    def _logits(self, X: Any) -> NDArray[np.float32]:
        classifier: Classifier | None = getattr(self, "classifier_", None)
        if classifier is None:
            raise InputError("this Extender has learned nothing yet; call fit(X, y) first")
        images = _read(X, self.bundle_)
        check_inputs(classifier, images)
        return predict(classifier, images).logits[self.task]


def _read(X: Any, bundle: Bundle | None) -> Images:
    """Return inputs as images: floats as they are, pixels and files by the model's preprocessing if it has one."""
    is_float = isinstance(X, Tensor | np.ndarray) and "float" in str(X.dtype)
    if bundle is None or is_float:
        pixels = as_pixels(X if isinstance(X, Tensor) else np.asarray(X))
        return Images(pixels, {}, tuple(map(str, range(len(pixels)))))
    images: Any = X
    return read_images(images, bundle.preprocessing)
