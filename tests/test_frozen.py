"""The meaning of what is computed, frozen while the house is rebuilt: digests of children, answers and numbers.

On another processor, or with other libraries, the bits are others; there it skips. `python tests/test_frozen.py` writes
the digests of this machine into tests/frozen.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))

import taskgraft
from taskgraft.config import TrainingConfig
from taskgraft.types import Callbacks, Task
from toys import NEW, OLD, make_images, parent, write_folder

FILE = Path(__file__).with_name("frozen.json")
RUN = TrainingConfig(
    steps=8,
    batch_size=8,
    optimizer="sgd",
    lr=0.02,
    head_steps=5,
    views=2,
    eval_every=4,
    log_every=4,
    save_every=4,
    precision="fp32",
    seed=3,
)
METHODS = ("finetune", "frozen", "taps", "branch", "ladder", "distill", "lwf", "l2sp", "ewc(images=16)",
           "mas(images=16)", "si", "lora(rank=2)", "distill + wise", "replay",
           "distill + ewc(images=16)", "taps(backbone=trained) + distill(strength=4) + wise", "replay + mas(images=16)"
           " + l2sp")  # fmt: skip
MORE = OLD._replace(classes=("oval", "star"))
THIRD = Task("wheels", ("two", "three", "four"))


def machine() -> str:
    """The processor, all that it can do, and the libraries: what decides the last bit."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kept = [line for line in lines if line.startswith(("model name", "model\t", "stepping", "flags", "cache size"))]
    cpu = hashlib.sha256("\n".join(sorted(set(kept))).encode()).hexdigest()[:16]
    return f"processor {cpu}, torch {torch.__version__}, Python {platform.python_version()}"


def of_values(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()


def of_child(folder: Path) -> str:
    """The model's tensors by name, and the values of what is kept for the next extension."""
    total = hashlib.sha256()
    tensors = load_file(folder / "model.safetensors")
    for name in sorted(tensors):
        named = name.replace(".center", ".centre")  # renamed on the way
        total.update(named.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    if (folder / "memory.safetensors").exists():
        kept = load_file(folder / "memory.safetensors").values()
        for part in sorted(hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest() for value in kept):
            total.update(part.encode())
    return total.hexdigest()


def digests(root: Path) -> Iterator[tuple[str, str]]:
    """Each configuration's name and digest, in order."""
    torch.set_num_threads(1)
    old, new, more, third = (root / name for name in ("old", "new", "more", "third"))
    for place, task, seed in ((old, OLD, 1), (new, NEW, 3), (more, MORE, 5), (third, THIRD, 7)):
        write_folder(place / "train", task, 24, seed)
        write_folder(place / "val", task, 12, seed + 1)
    alice = root / "alice"
    trained = TrainingConfig(steps=20, batch_size=12, lr=0.01, head_steps=0, eval_every=10, precision="fp32")
    taskgraft.train(
        old,
        alice,
        task="shape",
        model="test_resnet",
        preprocessing="32 squash bilinear half",
        config=trained,
        keep="si",
    )
    yield "train", of_child(alice)

    def extended(
        name: str, model: Path, data: Path, method: str, config: TrainingConfig = RUN, **more: Any
    ) -> tuple[str, str]:
        more = {"task": "paint", "old_val": [old / "val"], "old": old / "train", **more}
        taskgraft.extend(str(model), data, root / name, method=method, config=config, check_parent=False, **more)
        return f"{name}: {method}", of_child(root / name)

    for number, method in enumerate(METHODS):
        yield extended(f"extend {number}", alice, new, method)
    joint = replace(RUN, softmax="joint", optimizer="adamw", lr=0.001)
    yield extended("joint ewc", alice, new, "ewc(images=16)", joint)
    yield extended("joint distill", alice, new, "distill", joint)
    yield extended("chain ewc", root / "extend 8", third, "ewc(images=16)", task="wheels")
    yield extended("chain branch", root / "extend 3", third, "branch + taps", task="wheels")
    yield extended("into distill", alice, more, "distill", task="shape", into=True)
    yield extended("into ewc", alice, more, "ewc(images=16)", task="shape", into=True)

    class Stop(Exception):
        pass

    def logged(line: Any) -> None:
        if line.step >= 4:
            raise Stop

    request = taskgraft.Request(str(alice), new, "paint", "ewc(images=16) + distill", RUN, old_val=old / "val")
    for name in ("whole", "stopped"):
        try:
            taskgraft.extend(request.parent, new, root / name, task="paint", method=request.method, config=RUN,
                             old_val=[old / "val"], check_parent=False,
                             callbacks=Callbacks(on_metrics=logged) if name == "stopped" else Callbacks())  # fmt: skip
        except Stop:
            taskgraft.extend(request.parent, new, root / name, task="paint", method=request.method, config=RUN,
                             old_val=[old / "val"], check_parent=False, resume=True)  # fmt: skip
        yield name, of_child(root / name)

    command = [
        sys.executable,
        "-m",
        "taskgraft.cli",
        "extend",
        str(alice),
        str(new),
        str(root / "two"),
        "--task",
        "paint",
        "--method",
        "distill",
        "--old-val",
        str(old / "val"),
        "--no-parent-check",
        "--processes",
        "2",
    ]
    flags = {"steps": 8, "optimizer": "sgd", "lr": 0.02, "head-steps": 5, "views": 2, "eval-every": 4, "log-every": 4,
             "save-every": 4, "precision": "fp32", "seed": 3, "batch-size": 8}  # fmt: skip
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    yield "two processes", of_child(root / "two")

    grown = taskgraft.grow(parent(), NEW, 3)
    for method in ("branch", "ewc(images=16)"):
        learned = taskgraft.learn(grown, make_images(20, NEW, 5), method=method, config=RUN)
        values = learned.classifier.state_dict()
        yield f"learn {method}", of_values([(name, hashlib.sha256(values[name].numpy().tobytes()).hexdigest())
                                            for name in sorted(values)])  # fmt: skip

    checked = Path(shutil.copytree(new, root / "checked"))
    shutil.copyfile(next((new / "train").rglob("*.png")), checked / "train" / "red" / "twin.png")
    (checked / "val" / "red" / "damaged.png").write_bytes(b"\x89PNG no image")
    result = taskgraft.check(checked, "paint")
    yield "check", of_values(numbers(result))
    both = root / "extend 5"
    shares = taskgraft.distribution(both, [new / "train"])
    yield "distribution", of_values([(one.task, one.estimator, one.effective_size, [
        (c.name, c.naive, c.prevalence, c.low, c.high) for c in one.classes]) for one in shares.tasks])  # fmt: skip
    yield "exports", of_values(exported(both, root / "onnx"))
    yield "v2", of_values(asked(both))


def numbers(value: Any) -> list[Any]:
    """The numbers in a nest of plain values, whatever they are called."""
    if isinstance(value, dict):
        parts = [numbers(part) for part in value.values()]
    elif isinstance(value, list | tuple):
        parts = [numbers(part) for part in value]
    else:
        return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []
    return sorted((number for part in parts for number in part), key=float)


def exported(model: Path, out: Path) -> Any:
    import onnxruntime

    taskgraft.export(model, out)
    file = next(out.rglob("*.onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    images = (make_images(4, NEW, 9).pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    return [np.asarray(value).tolist() for value in session.run(None, {session.get_inputs()[0].name: images.numpy()})]


def asked(model: Path) -> Any:
    import httpx

    from servers import running

    with running(model) as server:
        pixels = make_images(3, NEW, 9).pixels.numpy()
        body = {"inputs": [{"name": "image", "shape": list(pixels.shape), "datatype": "UINT8",
                            "data": pixels.flatten().tolist()}]}  # fmt: skip
        answer = httpx.post(f"{server.url}/v2/models/both/infer", json=body).json()
    assert "outputs" in answer, answer
    return sorted((output["name"], output["data"]) for output in answer["outputs"])


def test_the_meaning_is_what_it_was(tmp_path: Path) -> None:
    stored = json.loads(FILE.read_text())
    if stored["machine"] != machine():
        pytest.skip(f"the digests are of another machine: {stored['machine']}")
    result = dict(digests(tmp_path))
    assert {name: digest for name, digest in result.items() if stored["digests"].get(name) != digest} == {}
    assert result.keys() == stored["digests"].keys()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        result = {}
        for name, digest in digests(Path(folder)):
            print(name, digest[:12], flush=True)
            result[name] = digest
    if "--write" in sys.argv:
        FILE.write_text(json.dumps({"machine": machine(), "digests": result}, indent=1) + "\n")
    else:
        stored = json.loads(FILE.read_text())["digests"]
        print({name for name in result.keys() | stored.keys() if result.get(name) != stored.get(name)} or "all equal")
