"""Several processes with the same global batch give what one gives, up to the rounding of sums."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distributed import processes
from taskgraft import pytree
from taskgraft.training import loop
from toys import RUN, equal, start_run

# The processes add in another order: |difference| / |tensor| in float32 after six steps, measured 1e-6 to 2e-6. taps
# warms its head by Adam on columns some of which hardly vary, and Adam's step does not shrink with the gradient: 4e-4.
TOLERANCE = {"taps": 2e-3}


@pytest.fixture(scope="module")
def single() -> dict[str, dict[str, torch.Tensor]]:
    return processes.every_method()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    return processes.run_in_group(2, tmp_path_factory.mktemp("pair"), processes.every_method)


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, torch.Tensor], ...]]:
    return processes.run_in_group(3, tmp_path_factory.mktemp("trio"), processes.of_three)


@pytest.mark.parametrize("notation", processes.METHODS)
def test_two_processes_equal_one(single: dict, pair: list, notation: str) -> None:
    first, second = pair[0][notation], pair[1][notation]
    assert first.keys() == single[notation].keys()
    for name, value in single[notation].items():
        assert torch.equal(first[name], second[name]), f"{name}: the processes differ"
        distance = (first[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-9)
        assert distance < TOLERANCE.get(notation, 1e-5), f"{name}: {distance:.1e} from the run of one process"


def test_three_processes_equal_one(trio: list) -> None:
    expected = processes.after_three_steps()  # batches of 8 in shares of 2, 3 and 3
    for actual, _, _ in trio:
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(actual[name].float(), value.float(), rtol=5e-3, atol=5e-4, msg=name)


def test_micro_batches_of_three_processes(trio: list) -> None:
    """They exchange the sum once, and pass as often as each other, whoever has more images."""
    config = replace(RUN, norm="frozen")
    state, method, images = start_run("distill", config)
    expected = pytree.state(loop.fit(state, method, images, config, until=2).classifier)
    first, *others = [states for _, states, _ in trio]
    for name, value in expected.items():
        torch.testing.assert_close(first[f"frozen {name}"].float(), value.float(), rtol=5e-3, atol=5e-4, msg=name)
    assert all(equal(first, other) for other in others), "the processes differ"


def test_gradients_travel_while_others_are_computed(tmp_path: Path) -> None:
    for actual, expected, early in processes.run_in_group(2, tmp_path, processes.towers):
        assert {name for name, value in actual.items() if value is None} == {
            f"{layer}.{kind}" for layer in ("unused", "frozen") for kind in ("weight", "bias")
        }
        for name, value in expected.items():
            assert value is None or torch.equal(actual[name], value), name
        assert early >= 1, "the exchange began only after the backward pass"


def test_measurements_equal_one_process(trio: list) -> None:
    expected = processes.logits_and_features()
    for _, _, actual in trio:
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_batchnorm_statistics_are_global(tmp_path: Path) -> None:
    expected = processes.batch_norm()
    for actual in processes.run_in_group(2, tmp_path, processes.batch_norm):
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, rtol=2e-5, atol=2e-5, msg=name)


def test_broadcast(tmp_path: Path) -> None:
    first, second = processes.run_in_group(2, tmp_path, processes.broadcasts)
    assert first == ["made by 0", "no room (3)", "own 0", "[0.0, 0.0, 0.0]"]
    assert second == ["made by 0", "no room (3)", "own 1", "[0.0, 0.0, 0.0]"]


def test_failure_of_one_process_stops_all(tmp_path: Path) -> None:
    """Not finite in one: all stop, before the update. Stopped by a signal: the other notices in time."""
    first, second = processes.run_in_group(2, tmp_path, processes.failures)
    assert first["message"] == second["message"]
    assert "the gradient is not finite" in first["message"]
    assert first["message"].endswith("(4)")
    assert first["unchanged"]
    assert second["unchanged"]
    assert (first["silent"], second["silent"]) == ([1], [])
