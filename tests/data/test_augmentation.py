"""Batches and views as pure functions of their place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from taskgraft.data import build_batch, build_views, normalize
from taskgraft.data.augmentation import AUGMENT, batch_indices
from taskgraft.types import Images, TrainingData
from toys import NEW, make_images

COUNT = 10


def make_data(views: int = 3, augment: str = "shift+flip", count: int = COUNT, seed: int = 4) -> TrainingData:
    return TrainingData(make_images(count, NEW, 1, size=32), None, views, augment, seed)


def index(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("augment", AUGMENT)
def test_a_batch_is_a_pure_function_of_its_step(augment: str) -> None:
    data, other = make_data(augment=augment), make_data(augment=augment)
    first = build_batch(data, 5, 4)
    torch.manual_seed(0)
    np.random.default_rng(0).random(3)
    for step in (0, 9, 2):  # what was asked before does not matter
        build_batch(data, step, 4)
    second = build_batch(other, 5, 4)
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.view, second.view)
    assert torch.equal(first.labels[NEW.name], data.new.labels[NEW.name][first.rows])
    assert first.images.shape == (4, 3, 32, 32)
    assert first.images.dtype == torch.float32


@given(size=st.integers(1, 25), seed=st.integers(0, 3))
@settings(deadline=None, max_examples=30)
def test_every_epoch_is_a_permutation_whatever_the_batch(size: int, seed: int) -> None:
    data = make_data(seed=seed)
    steps = -(-4 * COUNT // size)
    rows = [batch_indices(data, step, size) for step in range(steps)]
    order, epoch = (np.concatenate([row[part] for row in rows])[: 4 * COUNT] for part in (0, 1))
    assert (epoch == np.arange(4 * COUNT) // COUNT).all()
    epochs = order.reshape(4, COUNT)
    assert (np.sort(epochs) == np.arange(COUNT)).all()
    assert len({tuple(row) for row in epochs.tolist()}) > 1


def test_another_seed_gives_another_order() -> None:
    assert (
        batch_indices(make_data(seed=1), 0, COUNT)[0].tolist() != batch_indices(make_data(seed=2), 0, COUNT)[0].tolist()
    )


def test_fixed_views_come_again_after_as_many_epochs() -> None:
    data = make_data(views=3)
    seen: dict[tuple[int, int], torch.Tensor] = {}
    for step in range(6 * COUNT // 5):
        batch = build_batch(data, step, 5)
        assert int(batch.view.max()) < 3
        for image, place, view in zip(batch.images, batch.rows.tolist(), batch.view.tolist(), strict=True):
            kept = seen.setdefault((place, view), image)
            assert torch.equal(kept, image)
    assert len(seen) == 3 * COUNT


def test_without_fixed_views_they_never_come_again() -> None:
    data = make_data(views=0, augment="crop+flip", count=2)
    batches = [build_batch(data, step, 2) for step in range(20)]
    assert [batch.view.tolist() for batch in batches] == [[step, step] for step in range(20)]
    first = [batch.images[batch.rows == 0] for batch in batches]
    assert not any(torch.equal(first[i], first[j]) for i in range(20) for j in range(i))


def test_a_view_does_not_depend_on_its_batch() -> None:
    data = make_data()
    together = build_views(data, index(3, 7, 3), index(0, 2, 1))
    for row, (place, view) in enumerate([(3, 0), (7, 2), (3, 1)]):
        assert torch.equal(build_views(data, index(place), index(view))[0], together[row])
    assert not torch.equal(build_views(make_data(seed=5), index(3), index(0))[0], together[0])


@pytest.mark.parametrize("augment", AUGMENT)
def test_views_stay_in_range_and_keep_their_size(augment: str) -> None:
    data = make_data(augment=augment)
    views = build_views(data, index(*[2] * 50), np.arange(50))
    plain = normalize(data.new, 2, 3)
    assert views.shape == (50, 3, 32, 32)
    assert float(views.min()) >= float(plain.min()) - 1e-5
    assert float(views.max()) <= float(plain.max()) + 1e-5
    different = {view.numpy().tobytes() for view in views}
    assert len(different) == 1 if augment == "none" else len(different) > 15


def test_a_shift_moves_by_at_most_a_sixteenth_and_repeats_the_edge() -> None:
    column = torch.arange(32, dtype=torch.uint8) * 8
    ramp = column.repeat(32, 1)[None, :, :, None].repeat(1, 1, 1, 3)
    data = TrainingData(Images(ramp, {}, ("ramp",)), None, 0, "shift", 0)
    views = build_views(data, index(*[0] * 60), np.arange(60))
    moves = {round(float(view[0, 0, 16]) * 255 / 8) - 16 for view in views}
    assert moves == {-2, -1, 0, 1, 2}
    for view in views:
        move = round(float(view[0, 0, 16]) * 255 / 8) - 16
        expected = (torch.arange(32) + move).clamp(0, 31) * 8 / 255
        torch.testing.assert_close(view[0, 0], expected)


def test_half_of_the_views_are_mirrored() -> None:
    ramp = (torch.arange(32, dtype=torch.uint8) * 8).repeat(32, 1)[None, :, :, None].repeat(1, 1, 1, 3)
    for augment, low, high in (("shift+flip", 60, 140), ("crop+flip", 60, 140), ("shift", 0, 0)):
        data = TrainingData(Images(ramp, {}, ("ramp",)), None, 0, augment, 0)
        views = build_views(data, index(*[0] * 200), np.arange(200))
        mirrored = int((views[:, 0, 0, 24] < views[:, 0, 0, 8]).sum())
        assert low <= mirrored <= high


def test_a_crop_keeps_at_least_the_stated_share() -> None:
    ramp = (torch.arange(64, dtype=torch.uint8) * 4).repeat(64, 1)[None, :, :, None].repeat(1, 1, 1, 3)
    data = TrainingData(Images(ramp, {}, ("ramp",)), None, 0, "crop", 0)
    views = build_views(data, index(*[0] * 100), np.arange(100))
    shares = (views[:, 0, 0, 40] - views[:, 0, 0, 24]) / (16 * 4 / 255)  # how fast the ramp rises
    assert 0.7 - 1e-3 <= float(shares.min()) < 0.75
    assert 0.95 < float(shares.max()) <= 1 + 1e-3


def test_ready_is_the_textbook_formula() -> None:
    images = make_images(3, NEW, 1)._replace(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    mean, std = (torch.tensor(part, dtype=torch.float64)[:, None, None] for part in (images.mean, images.std))
    preprocessing = (images.pixels[1:3].permute(0, 3, 1, 2).double() / 255 - mean) / std
    torch.testing.assert_close(normalize(images, 1, 3).double(), preprocessing, rtol=1e-5, atol=1e-5)
    none = build_views(TrainingData(images, None, 1, "none", 0), index(2), index(0))
    assert torch.equal(none, normalize(images, 2, 3))


def test_float_inputs_pass_through() -> None:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    images = Images(values, {"x": torch.arange(6)}, tuple("abcdef"), (9.0,), (7.0,))
    assert torch.equal(normalize(images, 0, 6), values)
    batch = build_batch(TrainingData(images, None, 2, "crop+flip", 0), 1, 4)
    assert torch.equal(batch.images, values[batch.rows])
    assert torch.equal(batch.labels["x"], batch.rows)


def test_randaugment_leaves_global_generators_alone() -> None:
    data = make_data(augment="randaugment")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    whole = build_views(data, np.arange(COUNT), np.zeros(COUNT, np.int64))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(build_views(data, index(6), index(0))[0], whole[6]), "an image's view depends on no other's"
    plain = build_views(make_data(augment="shift+flip"), np.arange(COUNT), np.zeros(COUNT, np.int64))
    changed = [not torch.equal(one, other) for one, other in zip(whole, plain, strict=True)]
    assert sum(changed) > COUNT // 2
    assert whole.isfinite().all()
