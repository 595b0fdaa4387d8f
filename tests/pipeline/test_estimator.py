"""`Extender` as a scikit-learn estimator: cloned, searched, pickled, and the old task is kept."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from taskgraft import Bundle, InputError, TrainingConfig, pytree, wrap
from taskgraft.bundle import write_bundle
from taskgraft.data import Preprocessing
from taskgraft.models.classifier import Classifier
from taskgraft.pipeline import estimator
from taskgraft.pipeline.estimator import Extender
from toys import NEW, OLD, equal, make_images, parent, write_folder

RUN = TrainingConfig(steps=30, batch_size=16, head_steps=30, lr=0.02, augment="none", views=1)
NAMES = np.array(["plus", "minus"])
X = np.random.default_rng(0).normal(size=(80, 6))
Y = NAMES[(X[:, 0] < 0).astype(int)]


def vectors() -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))
    return wrap(net, "2", [OLD])


def extender(**settings: Any) -> Extender:
    return Extender(vectors(), task="sign", config=RUN, **{"method": "distill", **settings})


def test_fit_predict_and_score() -> None:
    model = extender()
    before = pytree.state(vectors())
    assert model.fit(X, Y) is model
    assert model.classes_.tolist() == ["minus", "plus"]
    assert model.score(X, Y) > 0.9
    np.testing.assert_array_equal(model.predict(X), model.classes_[model.predict_proba(X).argmax(1)])
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)
    assert isinstance(model.model, Classifier)
    assert equal(pytree.state(model.model), before)
    assert [task.name for task in model.classifier_.tasks] == ["shape", "sign"]
    assert model.history_[-1].step == 30
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    numbers = extender(method="finetune", steps=2).fit(torch.from_numpy(X), [3 if name == "plus" else 1 for name in Y])
    assert set(numbers.predict(X)) <= {1, 3}


def test_scikit_learn_clones_and_searches_it() -> None:
    base = pytest.importorskip("sklearn.base")
    selection = pytest.importorskip("sklearn.model_selection")
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    model = extender(steps=3)
    copy = base.clone(model)
    assert copy.get_params().keys() == model.get_params().keys()
    assert copy.get_params()["steps"] == 3
    assert equal(pytree.state(copy.model), pytree.state(vectors()))
    assert base.is_classifier(model)
    for check in ("estimator_repr", "no_attributes_set_in_init", "get_params_invariance", "set_params"):
        getattr(checks, f"check_{check}")("Extender", extender())
    search = selection.GridSearchCV(model, {"method": ["finetune", "l2sp"], "steps": [1, 20]}, cv=2).fit(X, Y)
    assert search.best_params_["steps"] == 20
    assert search.score(X, Y) > 0.7


def test_bundle_reads_files_and_answers_every_task(tmp_path: Path) -> None:
    images = make_images(12, NEW, 1)
    folder = write_folder(tmp_path, NEW, 12, 1)
    paths = [folder / NEW.classes[row % 4] / f"{row}.png" for row in range(12)]
    names = [path.parent.name for path in paths]
    square = Preprocessing(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    bundle = Bundle(parent(), square, {}, "here", "0", "test_resnet", "fc")
    fitted = [
        Extender(bundle, task="paint", method="frozen", config=RUN, steps=2).fit(inputs, names)
        for inputs in (paths, images.pixels.numpy())
    ]
    np.testing.assert_allclose(fitted[0].predict_proba(paths), fitted[1].predict_proba(paths))
    result = fitted[0].bundle_
    assert result is not None
    assert result.predict(paths).labels["paint"] == fitted[0].predict(paths).tolist()
    np.testing.assert_array_equal(
        result.predict(paths).probabilities["shape"], bundle.predict(paths).probabilities["shape"]
    )
    assert [task.name for task in bundle.tasks] == ["shape"]


def test_path_of_a_bundle_is_opened(tmp_path: Path) -> None:
    square = Preprocessing(32, "squash", 1.0, "bilinear", (0.5,) * 3, (0.25,) * 3)
    write_bundle(tmp_path, Bundle(parent(), square, {}, "here", "0", "test_resnet", "fc"), method="", parent={})
    pixels = make_images(8, NEW, 1).pixels.numpy()
    model = Extender(str(tmp_path), task="tone", method="frozen", config=RUN, steps=1).fit(pixels, list("abababab"))
    assert model.bundle_ is not None
    assert [task.name for task in model.bundle_.tasks] == ["shape", "tone"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Extender(nn.Linear(2, 2)).fit(X, Y), "model is a Linear; give a path, a Bundle, or"),  # type: ignore
        (lambda: extender().predict(X), r"has learned nothing yet; call fit\(X, y\) first"),
        (lambda: extender().fit(X, Y[:9]), "there are 80 images and 9 labels; give one label per image"),
        (lambda: extender().fit(X, np.stack([Y, Y])), r"y is \[2, 80\]; give one class per image"),
        (lambda: extender().fit(X, ["a"] * 80), "has 1 class, but at least two are needed"),
        (lambda: extender().fit(X, np.array([1, "1"] * 40, object)), "y mixes int and str; give one class per"),
        (lambda: extender().fit(X[:, :5], Y), r"cannot take inputs of shape \[5\]: mat1 and mat2 shapes"),
        (lambda: extender(steps=0).fit(X, Y), "steps 0: must be at least 1"),
        (lambda: extender(method="ewd").fit(X, Y), "method 'ewd' does not exist; did you mean 'ewc'"),
    ],
)
def test_what_cannot_be_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_works_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    spec = importlib.util.spec_from_file_location("estimator_alone", estimator.__file__)
    assert spec
    assert spec.loader
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    assert [base.__module__ for base in alone.Extender.__mro__[1:-1]] == ["estimator_alone"]
    model = alone.Extender(vectors(), method="frozen", config=RUN, steps=2).set_params(task="new")
    assert 0 <= model.fit(X, Y).score(X, Y) <= 1
    assert model.get_params().keys() == extender().get_params().keys()
    with pytest.raises(InputError, match="Extender has no parameter 'tasks'; it has model, task, method"):
        model.set_params(tasks="x")
