"""The Fisher diagonal without taskgraft: a loop over images, vmap, and the libraries, each called as it documents.

All but the two that say otherwise compute mean_i (d log p_c(x_i) / d theta)^2 with one c drawn from the model for each
image, in eval mode and fp32. Each takes the fastest of several chunks. What a library cannot do it says, and the table
with it. The trace on the first images tells whether two ways compute the same: labels are drawn, so it agrees within
their noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from benchmarks.speed.loops import drawn, fastest
from benchmarks.speed.networks import OLD, Case, labels, network, normalized, pixels
from benchmarks.speed.worker import Ready, Work
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

CHUNKS = (4, 16)
TRACED = 32  # images that the trace is of
PROBES = 10  # of the estimate that stands in for a diagonal; its error falls as one over the root of this
Diagonal = Callable[[Tensor], Sequence[Tensor]]  # images [B, ...] -> the sum over them, in pieces


def loop(case: Case) -> Ready:
    """One backward pass an image: what one writes first."""
    net, found = _prepared(case)
    params = list(net.parameters())

    def diagonal(inputs: Tensor) -> list[Tensor]:
        sums = [torch.zeros_like(p) for p in params]
        for image in inputs.split(1):
            for total, one in zip(sums, torch.autograd.grad(drawn(net(image)), params), strict=True):
                total.addcmul_(one, one)
        return sums

    return _ready(diagonal, found, len(found))


def vmapped(case: Case) -> Ready:
    """Per-sample gradients by torch.func, squared and added."""
    net, found = _prepared(case)
    params = {name: value.detach() for name, value in net.named_parameters()}

    def log_p(values: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return functional_call(net, values, (image[None],)).log_softmax(1)[0].gather(0, label[None])[0]

    def diagonal(inputs: Tensor) -> list[Tensor]:
        each = vmap(grad(log_p), in_dims=(None, 0, 0))(params, inputs, _own_labels(net, inputs))
        return [one.square_().sum(0) for one in each.values()]

    return _chunked(case, diagonal, found)


def backpack(case: Case) -> Ready:
    """BackPACK: SumGradSquared of the summed loss of labels drawn from the model."""
    from backpack import backpack, extend
    from backpack.extensions import SumGradSquared

    net, found = _prepared(case)
    plain = network(case, OLD).eval()
    for module in net.modules():
        if isinstance(module, nn.ReLU | nn.ReLU6 | nn.SiLU):
            module.inplace = False  # its hooks refuse what is overwritten
    extended, loss_of = extend(net, use_converter=True), extend(nn.CrossEntropyLoss(reduction="sum"))

    def diagonal(inputs: Tensor) -> list[Tensor]:
        loss = loss_of(extended(inputs), _own_labels(plain, inputs))
        with backpack(SumGradSquared()):
            loss.backward()
        sums = []
        for value in extended.parameters():
            sums.append(value.sum_grad_squared)
            del value.sum_grad_squared
            value.grad = None
        return sums

    return _chunked(case, diagonal, found)


def nngeometry(case: Case) -> Ready:
    """nngeometry: FIM_MonteCarlo with a diagonal representation, one trial."""
    from nngeometry.metrics import FIM_MonteCarlo
    from nngeometry.object import PMatDiag
    from torch.utils.data import DataLoader, TensorDataset

    net, found = _prepared(case)

    def diagonal(inputs: Tensor) -> list[Tensor]:
        loader = DataLoader(TensorDataset(inputs, labels(len(inputs), OLD)), batch_size=len(inputs))
        mean = FIM_MonteCarlo(net, loader, PMatDiag, variant="classif_logits", trials=1, device="cpu")
        return [mean.get_diag() * len(inputs)]

    return _chunked(case, diagonal, found)


def curvlinops(case: Case) -> Ready:
    """curvlinops 3.0.1 has no exact diagonal: Hutchinson's estimate from a few products with its Monte-Carlo Fisher."""
    from curvlinops import FisherMCLinearOperator, hutchinson_diag

    net, found = _prepared(case)

    def diagonal(inputs: Tensor) -> list[Tensor]:
        given = [(inputs, labels(len(inputs), OLD))]
        mean = FisherMCLinearOperator(
            net, nn.CrossEntropyLoss(), list(net.parameters()), given, check_deterministic=False, mc_samples=1
        )
        return [hutchinson_diag(mean, PROBES) * len(inputs)]

    ready = _chunked(case, diagonal, found)
    return ready._replace(note=f"{ready.note}, an estimate from {PROBES} probes")


def avalanche(case: Case) -> Ready:
    """Avalanche's EWCPlugin.compute_importances at batch 32: not the same, it squares a batch's mean gradient."""
    from benchmarks.speed.avalanche_loops import importances_of

    net, found = _prepared(case)
    target, size = labels(len(found), OLD), min(32, len(found))
    ask = importances_of(net, found, target, F.cross_entropy, size)
    ready = _ready(lambda inputs: ask(), found, len(found))
    trace = sum(float(one.sum()) for one in ask())
    return ready._replace(note=f"batch {size}, another quantity", chose={"trace": trace})


def _prepared(case: Case) -> tuple[nn.Module, Tensor]:
    return network(case, OLD).eval(), normalized(pixels(case))


def _own_labels(net: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.multinomial(net(inputs).softmax(1), 1)[:, 0]


def _chunked(case: Case, diagonal: Diagonal, found: Tensor) -> Ready:
    sizes = [size for size in CHUNKS if size <= len(found)] or [len(found)]
    best = case.get("chunk") or fastest(lambda size: diagonal(found[:size]), sizes)
    ready = _ready(diagonal, found, best)
    return ready._replace(note=f"chunks of {best}", chose={**ready.chose, "chunk": best})


def _ready(diagonal: Diagonal, found: Tensor, chunk: int) -> Ready:
    def total(inputs: Tensor) -> list[Tensor]:
        first, *rest = inputs.split(chunk)
        sums = list(diagonal(first))
        for part in rest:
            for have, one in zip(sums, diagonal(part), strict=True):
                have.add_(one)
        return sums

    def call() -> Work:
        total(found)
        return Work(len(found))

    few = found[:TRACED]
    trace = sum(float(one.sum()) for one in total(few)) / len(few)
    return Ready(call, "", {"trace": trace})
