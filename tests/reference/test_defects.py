"""Defects of other continual-learning code, D1 to D10 and D18: importance, teachers, who can be protected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from reference.by_hand import (
    PLAIN,
    RUN,
    WIDTH,
    child_of,
    close,
    closed_form_path,
    drift,
    fisher,
    foreign,
    keeping,
    vectors,
    watched,
    worked_with,
)
from reference.test_curvature import COUNT, agree, build, definition, drawn
from taskgraft import Images, Task, data, learn, losses, pytree, wrap
from taskgraft.curvature.fisher import fisher_diagonal, output_sensitivity
from taskgraft.methods import composition, notation
from taskgraft.methods.composition import compose
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier, inherited_parameters
from taskgraft.models.inference import image_reader
from taskgraft.types import Memory, Params, Step, Terms, TrainingData
from toys import NEW, OLD, equal, make_images

pytestmark = pytest.mark.usefixtures("no_charts")

OLDS = make_images(20, OLD, 2)
THIRD = NEW._replace(name="third")


def importance(memory: Memory, name: str = "ewc") -> Params:
    return memory[name]["importance"]


def old_part(model: Classifier, values: Params) -> Params:
    return {name: values[name] for name, _ in model.named_parameters()}


def test_fisher_is_independent_of_batch_and_chunk() -> None:
    """Squared batch-mean gradients (Avalanche, PyCIL, PILOT, CapyMOA, gmumcl; times B: FACIL, clarena, clearn)."""
    result = [
        importance(worked_with("ewc(images=20, labels=empirical)", replace(RUN, batch_size=batch), OLDS))
        for batch in (2, 8, 20)
    ]
    assert equal(result[0], result[1])
    assert equal(result[0], result[2])
    model, targets = foreign(), OLDS.labels[OLD.name]
    expected = fisher(model, OLDS, OLD.name, lambda i, p: F.one_hot(targets[i], len(p)))
    close(result[0], expected, rtol=1e-3)
    for chunk in (1, 3, 20):
        close(
            fisher_diagonal(
                model, image_reader(OLDS, model), 20, list(expected), [OLD.name],
                labels="empirical", targets=OLDS.labels, chunk=chunk,
            ),
            expected,
            rtol=1e-3,
        )  # fmt: skip
    F.cross_entropy(model.eval()(data.normalize(OLDS, 0, 20))[OLD.name], targets).backward()
    for factor in (1, 20):  # the two wrong formulas are far off, so the test can tell
        wrong = sum(float(p.grad.square().sum()) * factor for p in model.parameters() if p.grad is not None)
        assert not 0.7 < wrong / sum(float(value.sum()) for value in expected.values()) < 1.4


WHERE = {  # weights are held where old images need them, answers on the images that are learnt from
    "ewc(images=20, strength=1e4)": OLD, "mas(images=20, strength=10)": OLD, "l2sp(strength=10)": OLD,
    "distill": NEW, "lwf": NEW,
}  # fmt: skip


@pytest.mark.parametrize(("text", "task"), WHERE.items())
def test_pretrained_network_is_protected_from_the_first_step(text: str, task: Task) -> None:
    """Nothing is protected before the framework has trained a first task itself: Avalanche (issue 1165)."""
    config, before, unseen = replace(RUN, steps=30, lr=0.05, norm="frozen"), foreign(), make_images(30, task, 9)
    method, seen = watched(text)
    after = learn(child_of(before, config), make_images(20, NEW, 5), method=method, config=config, old=OLDS).classifier
    free = learn(child_of(before, config), make_images(20, NEW, 5), method="finetune", config=config).classifier
    assert drift(before, after, unseen) < 0.6 * drift(before, free, unseen)
    active = [sum(map(float, (*terms.values(), *held.values()))) for terms, held in zip(*seen[1:], strict=True)]
    assert all(value > 0 for value in active[1:])  # before the first step nothing has moved


@pytest.mark.parametrize("text", ["distill", "distill(teacher=live)", "lwf"])
def test_teacher_runs_in_eval_mode_and_is_unchanged(text: str) -> None:
    """The teacher is left in train mode, so that dropout and the batch change its answers: Avalanche."""
    parent, seen = foreign(), []
    method = composition.build(text)

    def response(step: Step, memory: Memory) -> Terms:
        terms = method.response(step, memory) if method.response else {}
        answers = step.predict(
            memory[text.split("(")[0]]["parent"], torch.ones(len(step.batch.images), dtype=torch.bool)
        )
        seen.append((step.batch.images, answers[OLD.name]))
        return terms

    spying = keeping(text)._replace(response=response)
    memory = learn(child_of(parent), make_images(20, NEW, 5), method=spying, config=RUN).memory[text.split("(")[0]]
    with torch.no_grad():
        for images, answers in seen:
            torch.testing.assert_close(answers, parent.eval()(images)[OLD.name], rtol=1e-5, atol=1e-5)
    state = pytree.state(parent)
    assert equal({name: memory["parent"][name] for name in state}, state)


def test_importance_runs_in_eval_mode_and_leaves_the_model_unchanged() -> None:
    """Measured in train mode: PyCIL, PILOT, FACIL, LibContinual, Avalanche's MAS, mammoth (a batch of one)."""
    for text in ("ewc(images=20)", "mas(images=20)"):
        lively, calm = (
            worked_with(text, replace(RUN, norm="frozen"), OLDS, parent)
            for parent in (foreign().train(), foreign().eval())
        )
        assert equal(importance(lively, text[:3]), importance(calm, text[:3]))
    model = foreign().train()
    model.backbone.get_submodule("norm").eval()
    modes, state = [module.training for module in model.modules()], pytree.state(model)
    names = [name for name, _ in model.named_parameters()]
    result = fisher_diagonal(model, image_reader(OLDS, model), 20, names, [OLD.name], labels="exact")
    output_sensitivity(model, image_reader(OLDS, model), 20, names, [OLD.name])
    assert modes == [module.training for module in model.modules()]
    assert equal(pytree.state(model), state)
    close(result, fisher(model, OLDS, OLD.name, lambda i, p: p), rtol=1e-3)  # the definition runs in eval mode


def test_recorded_logits_belong_to_the_same_view() -> None:
    """Recorded on images that are not normalized as those learnt from: mammoth; of another view: torchdistill."""
    new = make_images(20, NEW, 5)._replace(mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.25))
    kept = learn(child_of(foreign()), new, method=keeping("distill"), config=RUN).memory["distill"]
    rows, views = kept["recorded"].nonzero(as_tuple=True)
    assert set(views.tolist()) == {0, 1}
    shown = data.build_views(TrainingData(new, None, RUN.views, RUN.augment, RUN.seed), rows.numpy(), views.numpy())
    with torch.no_grad():
        expected, bare = (foreign().eval()(images)[OLD.name] for images in (shown, data.normalize(new, 0, 20)[rows]))
    torch.testing.assert_close(kept["logits"][OLD.name][rows, views].float(), expected, rtol=2e-3, atol=2e-3)
    assert float((expected - bare).abs().max()) > 0.02  # the views differ enough for the test to tell


def test_fisher_is_the_expectation_over_model_labels() -> None:
    """Each image is weighted by p(true label): mammoth; a quarter of the exact value in its own example."""
    shuffled = OLDS._replace(labels={OLD.name: OLDS.labels[OLD.name].flip(0)})
    for labels in ("exact", "sampled"):
        text = f"ewc(images=20, labels={labels})"
        assert equal(importance(worked_with(text, old=OLDS)), importance(worked_with(text, old=shuffled)))
    result = importance(worked_with("ewc(images=20, labels=exact)", old=OLDS))
    close(result, fisher(foreign(), OLDS, OLD.name, lambda i, p: p), rtol=1e-3)


@pytest.mark.parametrize("count", [1, 2, COUNT])
@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_labels_work_for_any_batch(count: int, draws: int) -> None:
    """Sampling draws B labels for each of B rows and then fails for B > 1: FACIL."""
    model, images = build("mlp")
    names = [name for name, _ in model.named_parameters()]
    expected = definition(model, images[:count], lambda task, i, p: drawn(task, i, p, draws))
    for chunk in (1, 2, 64):
        result = fisher_diagonal(
            model, lambda i, j: images[i : min(j, count)], count, names, ["a", "b"], draws=draws, seed=3, chunk=chunk
        )
        agree(result, expected)


def test_importance_of_the_first_task_enters_a_chain_unscaled() -> None:
    """The first task's importance is blended with zeros: FACIL (halved), LibContinual (times 0.2)."""
    text = "ewc(images=20, labels=exact)"
    first = learn(foreign(), OLDS, method=text, config=RUN)
    alone = fisher(first.classifier, OLDS, OLD.name, lambda i, p: p)
    close(importance(first.memory), alone, rtol=2e-3)
    held = learn(
        child_of(first.classifier), make_images(20, NEW, 5), method=keeping(text), config=RUN, memory=first.memory
    )
    assert equal(old_part(first.classifier, importance(held.memory)), importance(first.memory))
    second = learn(child_of(first.classifier), make_images(20, NEW, 5), method=text, config=RUN, memory=first.memory)
    added = fisher(second.classifier, make_images(20, NEW, 5), NEW.name, lambda i, p: p)
    both = {name: value + importance(first.memory).get(name, 0) for name, value in added.items()}
    close(importance(second.memory), both, rtol=2e-3)


def test_si_at_strength_0_keeps_recorded_importance() -> None:
    """As above, for the path integral: an extension that only records must add to the earlier tasks' importance."""
    first = learn(foreign(), OLDS, method="si", config=RUN)
    later = learn(
        child_of(first.classifier), make_images(20, NEW, 5), method="si(strength=0)", config=RUN, memory=first.memory
    )
    before, after = importance(first.memory, "si"), importance(later.memory, "si")
    assert float(before["heads.0.weight"].sum()) > 0
    assert all((after[name] >= value).all() for name, value in before.items())


WITH_STRENGTH = [
    "ewc(images=20, {})",
    "mas(images=20, {})",
    "l2sp({})",
    "distill({})",
    "distill(scale=none, {})",
    "lwf({})",
]


@pytest.mark.parametrize("text", WITH_STRENGTH)
def test_penalty_is_linear_in_strength(text: str) -> None:
    """Hidden constants and clips beside the strength: PyCIL (fishermax 1e-4, lambda 1000, T 2), LibContinual."""
    method, seen = watched(text.format("strength=1"))
    end = learn(child_of(foreign()), make_images(20, NEW, 5), method=method, config=RUN, old=OLDS).classifier
    step, memory = seen.steps[-1]

    def value(strength: float) -> float:
        made = composition.build(text.format(f"strength={strength}"))
        terms = made.response(step, memory) if made.response else {}
        held = made.weight(dict(end.named_parameters()), memory) if made.weight else {}
        return sum(float(one.detach()) for one in terms.values()) + sum(
            losses.quadratic(dict(end.named_parameters()), item).item() for item in held.values()
        )

    assert value(1) > 0
    assert value(4) == pytest.approx(4 * value(1), rel=1e-6)


def test_importance_is_not_clipped() -> None:
    """Fishers are clipped at 1e-4 (PyCIL, PILOT) or raised to 1e-8, an L2 on every weight (clearn)."""
    scale = torch.ones(WIDTH)
    scale[0], scale[1] = 1e4, 0.0
    images = vectors(20, OLD, 2)
    result = []
    for factor in (torch.ones(WIDTH), scale):
        net = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, len(OLD.classes)))
        with torch.no_grad():
            net[1].weight.copy_(torch.linspace(-0.5, 0.5, 18).reshape(3, WIDTH) / factor.clamp(min=1))  # pyright: ignore
            net[1].weight[:, 1] = 0  # pyright: ignore[reportIndexIssue, reportOptionalSubscript]
            net[1].bias.zero_()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess, reportCallIssue]
        stretched = images._replace(pixels=images.pixels * factor)
        memory = worked_with(
            "ewc(images=20, labels=exact)", old=stretched, parent=wrap(net, "1", [OLD]), new=vectors(20, NEW, 5)
        )
        result.append(importance(memory)["heads.0.weight"])
    torch.testing.assert_close(result[1][:, 0], 1e8 * result[0][:, 0], rtol=1e-3, atol=0)
    assert float(result[1][:, 0].max()) > 1e5
    assert not result[1][:, 1].any()


def test_path_integral_matches_the_closed_form() -> None:
    """The displacement is taken from the last step, so that it is 0 and the importance is W / eps: clearn."""
    x, target, damping = torch.tensor([1.0, 2.0, 0.5, 0.0]), torch.tensor([0.3, -0.7, 1.1]), 0.05
    net = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
    images = Images(x.repeat(8, 1), {OLD.name: torch.full((8,), -1)}, tuple("abcdefgh"))  # no label: no data term

    def pull(step: Step, memory: Memory) -> Terms:
        return {"pull": 0.5 * (step.outputs[OLD.name] - target).square().sum(1).mean()}

    si = notation.parse(f"si(damping={damping})")["si"].build()
    falls = []
    for lr, steps in ((0.05, 7), (0.001, 50)):
        config = replace(PLAIN, lr=lr, steps=steps)
        expected = closed_form_path(lr, steps, x, net(x).detach() - target)
        end = learn(
            wrap(net, "1", [OLD]), images, method=compose({"si": si, "pull": Method(response=pull)}), config=config
        )
        omega = expected[0] / (expected[1].square() + damping)
        torch.testing.assert_close(importance(end.memory, "si")["heads.0.weight"], omega[:, :4], rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(importance(end.memory, "si")["heads.0.bias"], omega[:, 4], rtol=1e-3, atol=1e-7)
        head = end.classifier.linears()[0]
        now = (head(x) - target).detach().square().sum() / 2
        falls.append(float(expected[0].sum() / ((net(x) - target).detach().square().sum() / 2 - now)))
    assert falls[1] == pytest.approx(1, abs=0.01)  # the path sums to the fall of the loss for small rates
    assert falls[0] > 1.1


@pytest.mark.parametrize("text", ["ewc(images=20)", "mas(images=20)", "si", "l2sp"])
def test_importances_and_penalties_are_positive(text: str) -> None:
    """A release whose importances were all zero: Avalanche (issue 1099)."""
    first = learn(foreign(), OLDS, method="si", config=RUN) if text == "si" else None
    parent = first.classifier if first else foreign()
    method, seen = watched(text)
    learn(
        child_of(parent),
        make_images(20, NEW, 5),
        method=method,
        config=RUN,
        old=OLDS,
        memory=first.memory if first else {},
    )
    assert all(sum(values.values()) > 0 for values in seen.penalties[1:])
    if text != "l2sp":
        result = importance(seen.steps[-1][1], text.split("(")[0])
        assert result.keys() == inherited_parameters(child_of(parent)).keys()
        backbone = [value for name, value in result.items() if name.startswith("backbone.")]
        assert sum(float(value.sum()) for value in backbone) > 0
        assert all(float(value.min()) >= 0 for value in result.values())
        assert float(result["heads.0.weight"].sum()) > 0
