"""Exports in the runtimes that they are for, beside the model they came from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import timm
import torch
from numpy.typing import NDArray

import taskgraft
from taskgraft.bundle import Bundle, open_parent, write
from taskgraft.cli import main
from taskgraft.data import Preprocessing, normalize, open_images
from taskgraft.errors import TaskgraftError
from taskgraft.exports import verify
from taskgraft.exports.signature import output_names, outputs
from taskgraft.models.inference import predict
from taskgraft.types import Images
from toys import NEW, OLD, finished, parent

TASKS = ["shape", "paint"]


@pytest.fixture(scope="module")
def shown(old_folder: Path) -> Images:
    wanted = Preprocessing(32, "squash", 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    found = open_images(old_folder / "val", "shape", wanted, seed=0, classes=OLD.classes, as_split="val").val
    assert found is not None
    return found


def inputs(images: Images, uint8: bool, start: int, stop: int) -> NDArray[Any]:
    return images.pixels[start:stop].numpy() if uint8 else normalize(images, start, stop).numpy()


def alike(run: Callable[[NDArray[Any]], list[Any]], model: Path, images: Images, uint8: bool) -> None:
    """In batches of 1, 2 and 7 the same logits as the model's."""
    wanted = predict(open_parent(str(model)).classifier, images).logits
    for start, stop in ((0, 1), (1, 3), (3, 10)):
        for task, found in zip(wanted, run(inputs(images, uint8, start, stop)), strict=True):
            np.testing.assert_allclose(np.asarray(found), wanted[task][start:stop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("uint8", [False, True])
def test_onnx(branched: Path, shown: Images, tmp_path: Path, uint8: bool) -> None:
    done = taskgraft.export(branched, tmp_path / "out", uint8_input=uint8)
    assert done.refused is None
    assert [(check.task, check.agreement) for check in done.checks] == [("shape", 1.0), ("paint", 1.0)]
    assert done.checks[0].images == 48  # old and new validation images, as the record names them
    assert done.checks[0].labeled == done.checks[1].labeled == 24
    assert done.checks[0].accuracy == done.checks[0].exported
    file = tmp_path / "out/model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == ("image" if uint8 else "pixel_values")
    assert given.shape == (["batch", 32, 32, 3] if uint8 else ["batch", 3, 32, 32])
    assert [out.name for out in session.get_outputs()] == ["logits_shape", "logits_paint"]
    alike(lambda batch: list(session.run(None, {given.name: batch})), branched, shown, uint8)
    described = json.loads(session.get_modelmeta().custom_metadata_map["taskgraft"])
    assert [out["classes"] for out in described["outputs"]] == [list(OLD.classes), sorted(NEW.classes)]
    assert described["preprocessing"]["line"] == "32 squash bilinear half"
    assert described == json.loads((tmp_path / "out/taskgraft.json").read_text())
    assert str(Path(taskgraft.__file__).parent) not in str(onnx.load(file))  # the exporter writes down where it was


def test_pt2(branched: Path, shown: Images, tmp_path: Path) -> None:
    taskgraft.export(branched, tmp_path / "out", format="pt2", uint8_input=True)
    extra = {"taskgraft.json": ""}
    net = torch.export.load(tmp_path / "out/model.pt2", extra_files=extra).module()
    assert [out["task"] for out in json.loads(extra["taskgraft.json"])["outputs"]] == TASKS
    alike(lambda batch: [value.detach() for value in net(torch.from_numpy(batch))], branched, shown, True)


def test_openvino(branched: Path, shown: Images, tmp_path: Path) -> None:
    taskgraft.export(branched, tmp_path / "out", format="openvino")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(tmp_path / "out/model.xml", "CPU", hint)
    assert [port.get_any_name() for port in model.outputs] == ["logits_shape", "logits_paint"]
    alike(lambda batch: [np.array(model([batch])[port]) for port in model.outputs], branched, shown, False)
    text = openvino.Core().read_model(tmp_path / "out/model.xml").get_rt_info(["taskgraft"]).astype(str)
    assert [out["task"] for out in json.loads(text)["outputs"]] == TASKS


def test_triton(plain: Path, shown: Images, tmp_path: Path) -> None:
    taskgraft.export(plain, tmp_path / "out", format="triton", uint8_input=True, name="my cars")
    home = tmp_path / "out/my_cars"
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    config = text_format.Parse((home / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.max_batch_size, config.backend) == ("my_cars", 32, "onnxruntime")
    assert list(config.input[0].dims) == [32, 32, 3]
    session = onnxruntime.InferenceSession(home / "1/model.onnx", providers=["CPUExecutionProvider"])
    for out, found, task in zip(config.output, session.get_outputs(), (OLD, NEW), strict=True):
        assert (out.name, list(out.dims)) == (found.name, found.shape[1:])
        assert (home / out.label_filename).read_text().splitlines() == sorted(task.classes)
    assert config.HasField("dynamic_batching")
    alike(lambda batch: list(session.run(None, {"image": batch})), plain, shown, True)


def test_plain_timm(plain: Path, shown: Images, tmp_path: Path) -> None:
    out = tmp_path / "out"
    taskgraft.export(plain, out, format="safetensors")
    assert json.loads((out / "export.json").read_text())["bit_equal_in_timm"] is True
    net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()

    def run(batch: NDArray[Any]) -> list[Any]:
        joint = net(torch.from_numpy(batch)).detach()
        return [joint[:, :3], joint[:, 3:]]

    alike(run, plain, shown, False)
    card = (out / "README.md").read_text()
    metadata = pytest.importorskip("huggingface_hub").ModelCard(card).data
    assert metadata.library_name == "timm"
    told = [(result.dataset_name, result.metric_name) for result in metadata.eval_results]
    old = "validation images of shape"
    assert told == [
        (old, "accuracy, before"),
        (old, "accuracy, now"),
        ("validation images of paint", "accuracy, now"),
    ]
    assert "| shape | 3 |" in card


@pytest.mark.parametrize(
    ("notation", "arch"), [("taps", "test_resnet"), ("ladder", "test_resnet"), ("finetune", "test_vit")]
)
def test_other_kinds_of_models(notation: str, arch: str, tmp_path: Path) -> None:
    options = {"img_size": 32} if "vit" in arch else {}
    child, _ = finished(notation, model=parent(arch, **options))
    head = "fc" if arch == "test_resnet" else "head"
    bundle = Bundle(child, Preprocessing(32, "squash"), {}, "here", "0", arch, head, options=options)
    (tmp_path / "model").mkdir()
    write(tmp_path / "model", bundle, method=notation, parent={})
    said: list[str] = []
    callbacks = taskgraft.Callbacks(info=said.append)
    done = taskgraft.export(tmp_path / "model", tmp_path / "out", uint8_input=True, callbacks=callbacks)
    assert done.refused is None
    assert all(check.agreement == 1 and check.relative < 1e-3 for check in done.checks)
    assert any("WARNING" in line and "synthetic" in line for line in said)
    assert json.loads((tmp_path / "out/export.json").read_text())["images"]["synthetic"] is True


@pytest.mark.parametrize("precision", ["int8-dynamic", "int8-static"])
def test_int8_is_measured_on_each_task(
    precision: str, plain: Path, old_folder: Path, new_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "LOSS", 0.2)  # of 24 images one is four points
    check = [old_folder, new_folder]
    done = taskgraft.export(plain, tmp_path / "out", precision=precision, check=check)
    assert done.refused is None
    kinds = {node.op_type for node in onnx.load(tmp_path / "out/model.onnx").graph.node}
    assert ("QuantizeLinear" if precision == "int8-static" else "MatMulInteger") in kinds
    for found in done.checks:
        assert found.labeled == 24
        assert found.accuracy is not None
        assert found.difference > 0


def test_a_loss_is_a_refusal() -> None:
    found = verify.TaskCheck(
        task="a", images=100, difference=1, relative=0.1, agreement=0.95, labeled=100, accuracy=0.9, exported=0.88
    )
    assert "accuracy falls from 90.00% to 88.00%" in str(verify.refusal((found,), "int8-static"))
    assert verify.refusal((found.model_copy(update={"exported": 0.891}),), "int8-static") is None
    assert "differ by 1.0e-01" in str(verify.refusal((found,), "fp32"))
    same = found.model_copy(update={"relative": 1e-6, "agreement": 0.99})
    assert "1.00% of the images get another answer" in str(verify.refusal((same,), "fp32"))
    unknown = found.model_copy(update={"accuracy": None, "exported": None})
    assert "none is labeled" in str(verify.refusal((unknown,), "int8-static"))
    assert "not finite" in str(verify.refusal((found.model_copy(update={"difference": float("nan")}),), "fp32"))


def test_what_differs_is_not_left(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    for keep in (False, True):
        out = tmp_path / f"out-{keep}"
        words = ["export", str(plain), str(out), "--format", "pt2", *["--keep"] * keep]
        monkeypatch.setattr(sys, "argv", ["taskgraft", *words])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 1
        assert "REFUSED: shape: logits differ" in capsys.readouterr().out
        assert out.exists() is keep
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-True"]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"format": "tflite"}, "give one of onnx, triton, openvino, pt2, safetensors"),
        ({"precision": "int4"}, "give one of fp32, int8-dynamic, int8-static"),
        ({"format": "pt2", "precision": "int8-static"}, "choose onnx, triton, or another precision"),
        ({"format": "safetensors", "uint8_input": True}, "leave it out"),
        ({"format": "safetensors"}, "plain timm cannot rebuild this model"),
        ({"check": [Path("/nowhere")]}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_be_exported(options: dict[str, Any], part: str, branched: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=part):
        taskgraft.export(branched, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(branched: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(TaskgraftError, match="exists already"):
        taskgraft.export(branched, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_names_of_outputs_are_plain_and_differ() -> None:
    assert output_names(["a b", "a-b", "é", "a_b"]) == ("logits_a_b", "logits_a_b_2", "logits_task", "logits_a_b_3")


def test_a_temperature_goes_with_the_file(branched: Path) -> None:
    bundle = open_parent(str(branched))
    cards = {"shape": {"classes": list(OLD.classes), "temperature": 1.5}, "paint": {"classes": ["x"], "temperature": 3}}
    assert [out.temperature for out in outputs(bundle._replace(cards=cards))] == [1.5, 1.0]
