"""Penalties on the weights of any network, for training loops of one's own."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from taskgraft import losses
from taskgraft.curvature import path_integral
from taskgraft.curvature.labels import Labels
from taskgraft.errors import InputError
from taskgraft.regularizers.importance import Loader, fisher_diagonal, output_sensitivity, select_parameters
from taskgraft.training import penalties
from taskgraft.types import Params, Quadratic, Update


class WeightPenalty:
    """A penalty (strength / 2) sum_j importance_j (theta_j - anchor_j)^2 on the weights of a model.

    Use it in one of two ways. `loss = criterion(model(x), y) + penalty()` adds it to the loss; under SGD that
    oscillates once lr * strength * importance exceeds 2. `penalty.step(optimizer)`, after `optimizer.step()`, takes the
    proximal step instead, which is stable for any strength.

    Attributes:
        model: The model, which goes on changing.
        strength: Factor of the penalty; may be set.
        anchor: Name -> the value that a parameter is pulled to.
        importance: Name -> importance of each value; None = 1 everywhere.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        importance: Params | None = None,
        parameters: Collection[str] | None = None,
    ) -> None:
        """Anchor the model at its present weights.

        Args:
            model: Any module.
            strength: Factor of the penalty, at least 0.
            importance: Name -> importance, not negative; only these parameters are held. None = all equally.
            parameters: Names of the parameters to hold; None = all that require a gradient.

        Raises:
            InputError: An importance does not fit its parameter, or the strength is negative.
        """
        if not 0 <= strength < math.inf:
            raise InputError(f"strength {strength} is out of range; give a number that is not negative")
        self.model, self.strength = model, strength
        held = select_parameters(model, parameters if importance is None else list(importance))
        for name, value in (importance or {}).items():
            if value.shape != held[name].shape or bool((value < 0).any()) or not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"the importance of {name!r} {list(value.shape)} does not fit the parameter "
                    f"{list(held[name].shape)}, is negative or not finite; give what fisher_diagonal returns for "
                    "this model"
                )
        self.anchor: Params = {name: value.detach().clone() for name, value in held.items()}
        self.importance = None if importance is None else dict(importance)

    def __call__(self) -> Tensor:
        """Compute the penalty at the present weights; a scalar, differentiable."""
        params = self._current()
        first = next(iter(params.values()))
        value = losses.quadratic(params, Quadratic(self.anchor, self.importance, self.strength))
        return value.to(first.device, torch.promote_types(first.dtype, torch.float32))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull the weights towards the anchor by a proximal step; call it right after `optimizer.step()`.

        theta <- (theta + a * anchor) / (1 + a), a = lr * strength * importance, with the learning rate of each group.

        Args:
            optimizer: The optimizer of the model; parameters that it does not have stay.

        Raises:
            InputError: It has none of the parameters that the penalty holds.
        """
        names = {id(value): name for name, value in self._current().items()}
        found = False
        for group in optimizer.param_groups:
            held = {names[id(value)]: value for value in group["params"] if id(value) in names}
            found |= bool(held)
            anchor = {name: self.anchor[name] for name in held}
            penalties.step_towards(
                held, [Quadratic(anchor, self.importance, self.strength, implicit=True)], float(group["lr"])
            )
        if not found:
            raise InputError("the optimizer has none of the penalty's parameters; build it from the same model")

    def __repr__(self) -> str:
        """Name the strength and how much is held."""
        count = sum(value.numel() for value in self.anchor.values())
        return f"{type(self).__name__}(strength={self.strength:g}, {len(self.anchor)} parameters, {count:,} values)"

    def _current(self) -> Params:
        """Return the present values of the parameters that are held, with anchor and importance on their device.

        Raises:
            InputError: The model no longer has one of them.
        """
        params = dict(self.model.named_parameters())
        for name, anchor in self.anchor.items():
            if name not in params or params[name].shape != anchor.shape:
                now = list(params[name].shape) if name in params else "gone"
                raise InputError(
                    f"parameter {name!r} was {list(anchor.shape)} and is {now}; leave it out by parameters=, or make "
                    "the penalty after the model has its last form"
                )
            if anchor.device != params[name].device:  # the model has moved since
                self.anchor[name] = anchor.to(params[name].device)
            if self.importance is not None and self.importance[name].device != params[name].device:
                self.importance[name] = self.importance[name].to(params[name].device)
        return {name: params[name] for name in self.anchor}

    def _anchor_again(self, importance: Params | None, parameters: Collection[str] | None) -> None:
        """Anchor the model at its present weights, with `importance` added to what there is."""
        if importance is not None:
            old = self.importance or {}
            importance = {
                name: value + old[name].to(value.device) if name in old and old[name].shape == value.shape else value
                for name, value in importance.items()
            }
        WeightPenalty.__init__(self, self.model, self.strength, importance, parameters)


class L2SP(WeightPenalty):
    """Hold every weight equally strongly to its present value (Li, Grandvalet, Davoine 2018); needs no images.

    (strength / 2) sum_j (theta_j - anchor_j)^2, the paper's alpha is `strength`. Make it before training on new data.

    Args:
        model: Any module, with the weights to be held.
        strength: Factor of the penalty.
        parameters: Names of the parameters to hold, such as those of the backbone; None = all that require a gradient.
    """

    def __init__(self, model: nn.Module, *, strength: float = 0.1, parameters: Collection[str] | None = None) -> None:
        super().__init__(model, strength, None, parameters)

    def consolidate(self) -> None:
        """Hold the weights at their present values from now on."""
        self._anchor_again(None, list(self.anchor))


class EWC(WeightPenalty):
    """Elastic weight consolidation for a training loop of one's own (Kirkpatrick et al. 2017).

    (strength / 2) sum_j F_jj (theta_j - anchor_j)^2, F the Fisher diagonal as `fisher_diagonal` measures it, exactly,
    when this is made: after the old task is learned, before the new one. Then either
    `loss = criterion(model(x), y) + penalty()`, or `penalty.step(optimizer)` after `optimizer.step()`.

    Args:
        model: Any module that returns logits [B, K], or {name: logits}.
        loader: Images of what is to be kept; without any, those of the new task, with labels "sampled" or "exact".
        strength: Factor of the penalty; the paper's lambda.
        labels: "sampled" and "exact" take labels from the model's own predictions, "empirical" from the loader.
        images: Use only the first ones of the loader; None = all.
        tasks: The outputs to protect, where there are several; None = all.
        parameters: Names of the parameters to hold; None = all that require a gradient.
        draws: Labels drawn per image, for "sampled".
        seed: Random seed of the draws.
        importance: A Fisher diagonal that was measured before, instead of a loader.

    Raises:
        InputError: As `fisher_diagonal`; or neither or both of loader and importance are given.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader | None = None,
        *,
        strength: float = 1e3,
        labels: Labels = "sampled",
        images: int | None = None,
        tasks: Collection[str] | None = None,
        parameters: Collection[str] | None = None,
        draws: int = 1,
        seed: int = 0,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.labels: Labels = labels
        self.images, self.draws, self.seed = images, draws, seed
        super().__init__(model, strength, self._measure(model, loader, tasks, parameters, importance))

    def consolidate(self, loader: Loader, *, tasks: Collection[str] | None = None) -> None:
        """Protect what was learned since too: add its Fisher diagonal, and hold the weights at their present values.

        Args:
            loader: Images of the task that was learned.
            tasks: The outputs to protect from now on, in addition; None = all.
        """
        self._anchor_again(self._measure(self.model, loader, tasks, None, None), None)

    def _measure(
        self,
        model: nn.Module,
        loader: Loader | None,
        tasks: Collection[str] | None,
        parameters: Collection[str] | None,
        importance: Mapping[str, Tensor] | None,
    ) -> Params:
        if loader is None or importance is not None:
            return _check_given(loader, parameters, importance)
        return fisher_diagonal(
            model, loader, labels=self.labels, images=self.images, tasks=tasks, parameters=parameters,
            draws=self.draws, seed=self.seed,
        )  # fmt: skip


class MAS(WeightPenalty):
    """Memory aware synapses for a training loop of one's own (Aljundi et al. 2018); needs no labels.

    (strength / 2) sum_j Omega_j (theta_j - anchor_j)^2, Omega_j = mean_i |d ||z(x_i)||^2 / d theta_j|; the paper's
    lambda is strength / 2. Used like `EWC`.

    Args:
        model: Any module that returns logits [B, K], or {name: logits}.
        loader: Images of what is to be kept, or of the new task; labels are not read.
        strength: Factor of the penalty.
        images: Use only the first ones of the loader; None = all.
        tasks: The outputs to protect, where there are several; None = all.
        parameters: Names of the parameters to hold; None = all that require a gradient.
        importance: What was measured before, instead of a loader.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Loader | None = None,
        *,
        strength: float = 1.0,
        images: int | None = None,
        tasks: Collection[str] | None = None,
        parameters: Collection[str] | None = None,
        importance: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.images = images
        if loader is None or importance is not None:
            measured = _check_given(loader, parameters, importance)
        else:
            measured = output_sensitivity(model, loader, images=images, tasks=tasks, parameters=parameters)
        super().__init__(model, strength, measured)

    def consolidate(self, loader: Loader, *, tasks: Collection[str] | None = None) -> None:
        """Protect what was learned since too: add its sensitivity, and hold the weights at their present values.

        Args:
            loader: Images of the task that was learned.
            tasks: The outputs to protect from now on, in addition; None = all.
        """
        self._anchor_again(output_sensitivity(self.model, loader, images=self.images, tasks=tasks), None)


class SI(WeightPenalty):
    """Synaptic intelligence for a training loop of one's own (Zenke et al. 2017); needs no further images.

    Holds each weight as strongly as it contributed to lowering the loss of the tasks before, so it has to watch them:
    make it before the first task, call `penalty.step(optimizer)` after each `optimizer.step()`, before gradients are
    zeroed, and `penalty.consolidate()` after each task. To have the penalty in the loss instead of the proximal step,
    call `penalty.observe()` in its place. Clipped gradients count as they are after clipping.

    Args:
        model: Any module, before it is trained.
        strength: Factor of the penalty; the paper's c is strength / 2.
        damping: The paper's xi, above 0.
        parameters: Names of the parameters to watch; None = all that require a gradient. A head that comes later is not
            among them, so a network needs the heads of all its tasks from the start.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        strength: float = 2.0,
        damping: float = 0.1,
        parameters: Collection[str] | None = None,
    ) -> None:
        if not damping > 0:
            raise InputError(f"damping {damping} is out of range; give a number above 0")
        self.damping = damping
        zeros = {name: torch.zeros_like(value.detach()) for name, value in select_parameters(model, parameters).items()}
        super().__init__(model, strength, zeros)
        self._begin()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the proximal step and record the movement; call it right after `optimizer.step()`.

        Args:
            optimizer: The optimizer of the model.
        """
        super().step(optimizer)
        self._record({name: value.grad for name, value in self._current().items() if value.grad is not None})

    def observe(self) -> None:
        """Record the movement, where `penalty()` is part of the loss; call it right after `optimizer.step()`."""
        gradients: Params = {}
        assert self.importance is not None
        for name, value in self._current().items():
            if value.grad is not None:  # without the penalty's own part
                pull = self.strength * self.importance[name] * (self._last[name] - self.anchor[name])
                gradients[name] = value.grad - pull
        self._record(gradients)

    def consolidate(self) -> None:
        """Protect what was learned since: turn the recorded path into importance, and hold the present weights."""
        added = path_integral.path_importance(self._path, self._start, self._current(), self.damping)
        self._anchor_again(added, None)
        self._begin()

    def _begin(self) -> None:
        self._path = {name: torch.zeros_like(value) for name, value in self.anchor.items()}
        self._start = {name: value.clone() for name, value in self.anchor.items()}
        self._last = {name: value.clone() for name, value in self.anchor.items()}

    def _record(self, gradients: Params) -> None:
        now = {name: value.detach().clone() for name, value in self._current().items()}
        # a step that a gradient scaler skips leaves gradients that are not finite, and no movement
        moved = {name: now[name] != self._last[name] for name in gradients}
        gradients = {name: torch.where(moved[name], value, 0) for name, value in gradients.items()}
        path_integral.add_to_path(self._path, Update(self._last, now, gradients))
        self._last = now


def _check_given(
    loader: Loader | None, parameters: Collection[str] | None, importance: Mapping[str, Tensor] | None
) -> Params:
    if importance is None or loader is not None:
        what = "both a loader and" if loader is not None else "neither a loader nor"
        raise InputError(f"there is {what} an importance; give a loader to measure on, or importance= measured before")
    return {name: value for name, value in importance.items() if parameters is None or name in parameters}
