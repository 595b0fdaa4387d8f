"""Sizes by device: a processor's are fixed, a GPU's fit into its memory; other sizes give the same Fisher."""

from __future__ import annotations

import pytest
import torch

from taskgraft import data
from taskgraft.curvature import fallback, fisher, per_sample_sums, sizes
from toys import OLD, make_images, parent


def test_a_processor_keeps_its_own() -> None:
    assert sizes.sizes_on(torch.device("cpu")) == sizes.CPU


@pytest.mark.parametrize("gigabytes", [0, 1, 8, 80, 1000])
def test_a_gpus_fit_into_its_memory(gigabytes: int) -> None:
    free = gigabytes * 2**30
    fitted = sizes.fit(free)
    memory = fitted.activations + 4 * fitted.tile + 2 * fitted.gradients
    least = sizes.CPU.activations + 4 * sizes.CPU.tile + 2 * sizes.CPU.gradients
    assert memory <= least + free / 2
    assert all(size <= most for size, most in zip(fitted, sizes.GPU, strict=True))
    assert all(size >= least for size, least in zip(fitted, sizes.CPU, strict=True))
    assert sizes.fit(1000 * 2**30) == sizes.GPU


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet", "test_vit"])
def test_the_sizes_of_a_gpu_give_the_same_fisher(network: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"img_size": 32} if network == "test_vit" else {}
    model, images = parent(network, **options), make_images(20, OLD, 3)

    def measure() -> dict[str, torch.Tensor]:
        names = [name for name, _ in model.named_parameters()]
        return fisher.fisher_diagonal(model, lambda a, b: data.normalize(images, a, b), 20, names, [OLD.name])

    before = measure()
    for module in (fisher, per_sample_sums, fallback):
        monkeypatch.setattr(module, "sizes_on", lambda device: sizes.GPU)
    after = measure()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6 * float(value.abs().max()))
