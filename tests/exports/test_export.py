"""Exports in the runtimes they are for, compared with the model they came from."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
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
from taskgraft.bundle import Bundle, open_parent, write_bundle
from taskgraft.cli import main
from taskgraft.data import Preprocessing, open_images
from taskgraft.errors import InputError, TaskgraftError
from taskgraft.exports import verify
from taskgraft.exports.signature import describe_outputs, name_outputs
from taskgraft.models.inference import predict
from taskgraft.types import Images
from toys import NEW, OLD, parent, run_to_end

TASKS = ["shape", "paint"]


@pytest.fixture(scope="module")
def images(old_folder: Path) -> Images:
    preprocessing = Preprocessing(32, "squash", 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    data = open_images(old_folder / "val", "shape", preprocessing, seed=0, classes=OLD.classes, as_split="val").val
    assert data is not None
    return data


def assert_same_logits(run: Callable[[NDArray[Any]], list[Any]], model: Path, images: Images, uint8: bool) -> None:
    """In batches of 1, 2 and 7."""
    expected = predict(open_parent(str(model)).classifier, images).logits
    for start, stop in ((0, 1), (1, 3), (3, 10)):
        results = run(verify.prepare_inputs(images, start, stop, uint8=uint8))
        for task, logits in zip(expected, results, strict=True):
            np.testing.assert_allclose(np.asarray(logits), expected[task][start:stop], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("uint8", [False, True])
def test_onnx(branched: Path, images: Images, tmp_path: Path, uint8: bool) -> None:
    result = taskgraft.export(branched, tmp_path / "out", uint8_input=uint8)
    assert result.refused is None
    assert [(check.task, check.agreement) for check in result.checks] == [("shape", 1.0), ("paint", 1.0)]
    assert result.checks[0].images == 48  # old and new validation images, as the record names them
    assert result.checks[0].labeled == result.checks[1].labeled == 24
    assert result.checks[0].accuracy == result.checks[0].exported
    file = tmp_path / "out/model.onnx"
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (tensor,) = session.get_inputs()
    assert tensor.name == ("image" if uint8 else "pixel_values")
    assert tensor.shape == (["batch", 32, 32, 3] if uint8 else ["batch", 3, 32, 32])
    assert [out.name for out in session.get_outputs()] == ["logits_shape", "logits_paint"]
    assert_same_logits(lambda batch: list(session.run(None, {tensor.name: batch})), branched, images, uint8)
    description = json.loads(session.get_modelmeta().custom_metadata_map["taskgraft"])
    assert [out["classes"] for out in description["outputs"]] == [list(OLD.classes), sorted(NEW.classes)]
    assert description["preprocessing"]["line"] == "32 squash bilinear half"
    assert description == json.loads((tmp_path / "out/taskgraft.json").read_text())
    assert str(Path(taskgraft.__file__).parent) not in str(onnx.load(file))  # the exporter records source paths


def test_pt2(branched: Path, images: Images, tmp_path: Path) -> None:
    taskgraft.export(branched, tmp_path / "out", format="pt2", uint8_input=True)
    extra = {"taskgraft.json": ""}
    net = torch.export.load(tmp_path / "out/model.pt2", extra_files=extra).module()
    assert [out["task"] for out in json.loads(extra["taskgraft.json"])["outputs"]] == TASKS
    run = lambda batch: [logits.detach().numpy() for logits in net(torch.from_numpy(batch))]  # noqa: E731
    assert_same_logits(run, branched, images, True)


@pytest.mark.slow
def test_openvino(branched: Path, images: Images, tmp_path: Path) -> None:
    taskgraft.export(branched, tmp_path / "out", format="openvino")
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(tmp_path / "out/model.xml", "CPU", hint)
    assert [port.get_any_name() for port in model.outputs] == ["logits_shape", "logits_paint"]
    run = lambda batch: [np.array(model([batch])[port]) for port in model.outputs]  # noqa: E731
    assert_same_logits(run, branched, images, False)
    text = openvino.Core().read_model(tmp_path / "out/model.xml").get_rt_info(["taskgraft"]).astype(str)
    assert [out["task"] for out in json.loads(text)["outputs"]] == TASKS


@pytest.mark.slow
def test_triton(plain: Path, images: Images, tmp_path: Path) -> None:
    taskgraft.export(plain, tmp_path / "out", format="triton", uint8_input=True, name="my cars")
    repository = tmp_path / "out/my_cars"
    text_format = pytest.importorskip("google.protobuf.text_format")
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    config = text_format.Parse((repository / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.max_batch_size, config.backend) == ("my_cars", 32, "onnxruntime")
    assert list(config.input[0].dims) == [32, 32, 3]
    assert config.HasField("dynamic_batching")
    session = onnxruntime.InferenceSession(repository / "1/model.onnx", providers=["CPUExecutionProvider"])
    for output, tensor, task in zip(config.output, session.get_outputs(), (OLD, NEW), strict=True):
        assert (output.name, list(output.dims)) == (tensor.name, tensor.shape[1:])
        assert (repository / output.label_filename).read_text().splitlines() == sorted(task.classes)
    assert_same_logits(lambda batch: list(session.run(None, {"image": batch})), plain, images, True)


def test_plain_timm(plain: Path, images: Images, tmp_path: Path) -> None:
    out = tmp_path / "out"
    taskgraft.export(plain, out, format="safetensors")
    assert json.loads((out / "export.json").read_text())["bit_equal_in_timm"] is True
    net = timm.create_model(f"local-dir:{out}", pretrained=True).eval()

    def run(batch: np.ndarray) -> list[np.ndarray]:
        joint = net(torch.from_numpy(batch)).detach().numpy()
        return [joint[:, :3], joint[:, 3:]]

    assert_same_logits(run, plain, images, False)


def test_model_card(plain: Path, tmp_path: Path) -> None:
    taskgraft.export(plain, tmp_path / "out", format="safetensors")
    card = (tmp_path / "out" / "README.md").read_text()
    metadata = pytest.importorskip("huggingface_hub").ModelCard(card).data
    assert metadata.library_name == "timm"
    assert [(result.dataset_name, result.metric_name) for result in metadata.eval_results] == [
        ("validation images of shape", "accuracy, before"),
        ("validation images of shape", "accuracy, after"),
        ("validation images of paint", "accuracy, after"),
    ]
    assert "| shape | 3 |" in card


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "arch"), [("taps", "test_resnet"), ("ladder", "test_resnet"), ("finetune", "test_vit")]
)
def test_other_architectures(method: str, arch: str, tmp_path: Path) -> None:
    options = {"img_size": 32} if "vit" in arch else {}
    child, _ = run_to_end(method, model=parent(arch, **options))
    head = "fc" if arch == "test_resnet" else "head"
    bundle = Bundle(child, Preprocessing(32, "squash"), {}, "here", "0", arch, head, model_args=options)
    (tmp_path / "model").mkdir()
    write_bundle(tmp_path / "model", bundle, method=method, parent={})
    notes: list[str] = []
    callbacks = taskgraft.Callbacks(info=notes.append)
    result = taskgraft.export(tmp_path / "model", tmp_path / "out", uint8_input=True, callbacks=callbacks)
    assert result.refused is None
    assert all(check.agreement == 1 and check.relative < 1e-3 for check in result.checks)
    assert any("WARNING" in note and "synthetic" in note for note in notes)
    assert json.loads((tmp_path / "out/export.json").read_text())["images"]["synthetic"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "node"), [("int8-dynamic", "MatMulInteger"), ("int8-static", "QuantizeLinear")])
def test_int8(
    precision: str, node: str, plain: Path, old_folder: Path, new_folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(verify, "MAX_ACCURACY_LOSS", 0.2)  # one image of 24 is four points
    result = taskgraft.export(plain, tmp_path / "out", precision=precision, check=[old_folder, new_folder])
    assert result.refused is None
    assert node in {node.op_type for node in onnx.load(tmp_path / "out/model.onnx").graph.node}
    for check in result.checks:
        assert check.labeled == 24
        assert check.accuracy is not None
        assert check.difference > 0


@pytest.mark.parametrize(
    ("changes", "precision", "reason"),
    [
        ({}, "int8-static", "accuracy drops from 90.00% to 88.00%"),
        ({"exported": 0.891}, "int8-static", None),
        ({}, "fp32", "logits differ by 1.0e-01"),
        ({"relative": 1e-6, "agreement": 0.99}, "fp32", "1.00% of the predictions change"),
        ({"accuracy": None, "exported": None}, "int8-static", "there are no labeled images"),
        ({"difference": float("nan")}, "fp32", "non-finite"),
    ],
)
def test_unacceptable_differences(changes: dict[str, Any], precision: str, reason: str | None) -> None:
    check = verify.TaskCheck(
        task="a", images=100, difference=1, relative=0.1, agreement=0.95, labeled=100, accuracy=0.9, exported=0.88
    )
    values = verify.find_unacceptable((check.model_copy(update=changes),), precision)
    assert values is None if reason is None else reason in str(values)


@pytest.mark.parametrize("keep", [False, True])
def test_refused_export_is_removed(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keep: bool
) -> None:
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    words = ["export", str(plain), str(tmp_path / "out"), "--format", "pt2", *["--keep"] * keep]
    monkeypatch.setattr(sys, "argv", ["taskgraft", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert "shape: logits differ" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"] * keep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "available: onnx, triton, openvino, pt2, safetensors"),
        ({"precision": "int4"}, "available: fp32, int8-dynamic, int8-static"),
        ({"format": "pt2", "precision": "int8-static"}, "use onnx, triton"),
        ({"format": "safetensors", "uint8_input": True}, "does not support --uint8-input"),
        ({"format": "safetensors"}, "timm cannot load this model"),
        ({"check": [Path("/nowhere")]}, "/nowhere does not exist"),
    ],
)
def test_invalid_options(options: dict[str, Any], message: str, branched: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=message):
        taskgraft.export(branched, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_not_overwritten(branched: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="already exists"):
        taskgraft.export(branched, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_output_names_are_plain_and_distinct() -> None:
    assert name_outputs(["a b", "a-b", "é", "a_b"]) == ["logits_a_b", "logits_a_b_2", "logits_task", "logits_a_b_3"]


def test_temperature_only_for_the_same_classes(branched: Path) -> None:
    bundle = open_parent(str(branched))
    cards = {"shape": {"classes": list(OLD.classes), "temperature": 1.5}, "paint": {"classes": ["x"], "temperature": 3}}
    assert [out.temperature for out in describe_outputs(replace(bundle, cards=cards))] == [1.5, 1.0]
