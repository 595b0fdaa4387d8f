"""Open Inference Protocol V2 with its reference client, compared with the model's own predictions."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from servers import assert_error
from taskgraft import metrics
from taskgraft.bundle import open_parent
from taskgraft.data.decode import decode_file
from taskgraft.models.inference import predict
from taskgraft.types import Images
from toys import NEW


@pytest.fixture(scope="module")
def pixels(image_files: list[Path], branched: Path) -> NDArray[np.uint8]:
    preprocessing = open_parent(str(branched)).preprocessing
    images = [decode_file(file, preprocessing).pixels for file in image_files[:5]]
    return np.stack([image for image in images if image is not None])


@pytest.fixture(scope="module")
def expected(branched: Path, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    bundle = open_parent(str(branched))
    images = Images(torch.from_numpy(pixels), {}, ("",) * 5, bundle.preprocessing.mean, bundle.preprocessing.std)
    return predict(bundle.classifier, images).logits


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as results:
        yield results


def assert_close(actual: NDArray[np.float32] | None, expected: NDArray[np.float32]) -> None:
    assert actual is not None
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_requested_outputs_for_pixels(client, pixels, expected, binary: bool, compression: str | None) -> None:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    names = ["logits_paint", "logits_shape"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
    options = {"outputs": outputs, "request_id": "seven", "request_compression_algorithm": compression}
    result = client.infer("both", [tensor], **options)
    for task in ("shape", "paint"):
        assert_close(result.as_numpy(f"logits_{task}"), expected[task])
    assert result.get_response()["id"] == "seven"
    assert [output["name"] for output in result.get_response()["outputs"]] == names


def test_all_outputs_by_default(client, server, pixels, expected) -> None:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    result = client.infer("both", [tensor])
    assert len(result.get_response()["outputs"]) == 6
    assert_close(result.as_numpy("logits_shape"), expected["shape"])
    probabilities = metrics.probabilities(expected["paint"], server.service.model.temperatures["paint"])
    assert_close(result.as_numpy("probabilities_paint"), probabilities.astype(np.float32))
    labels = [sorted(NEW.classes)[row] for row in expected["paint"].argmax(1)]
    assert [name.decode() for name in result.as_numpy("label_paint")] == labels


@pytest.mark.parametrize("name", ["image", "image_bytes"])
def test_encoded_images(client, image_files, expected, name: str) -> None:
    files = np.array([file.read_bytes() for file in image_files[:5]], dtype=object)
    tensor = triton.InferInput(name, [5], "BYTES")
    tensor.set_data_from_numpy(files)
    assert_close(client.infer("both", [tensor]).as_numpy("logits_shape"), expected["shape"])


def test_encoded_images_in_json(server, image_files, expected) -> None:
    data = [base64.b64encode(file.read_bytes()).decode() for file in image_files[:5]]
    body = {"inputs": [{"name": "image_bytes", "shape": [5, 1], "datatype": "BYTES", "data": data}]}
    response = server.client.post("/v2/models/both/versions/1/infer", json=body).json()
    logits = next(output for output in response["outputs"] if output["name"] == "logits_shape")
    assert_close(np.array(logits["data"]).reshape(logits["shape"]), expected["shape"])
    assert "id" not in response


def test_classification_extension(client, pixels, expected) -> None:
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    result = client.infer("both", [tensor], outputs=[triton.InferRequestedOutput("logits_paint", class_count=2)])
    strings = result.as_numpy("logits_paint")
    assert strings.shape == (5, 2)
    value, index, label = strings[0, 0].decode().split(":")
    assert int(index) == expected["paint"][0].argmax()
    assert label == sorted(NEW.classes)[int(index)]
    assert float(value) == pytest.approx(expected["paint"][0].max(), abs=1e-4)


def test_health_and_server_metadata(client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("both")
    assert client.is_model_ready("both", "1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]


def test_model_metadata(client, server) -> None:
    metadata = client.get_model_metadata("both")
    assert metadata == client.get_model_metadata("both", "1")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "image_bytes"]
    assert metadata["inputs"][0]["shape"] == [-1, 32, 32, 3]
    temperature = server.service.model.temperatures["paint"]
    assert metadata["outputs"][3] == {
        "name": "logits_paint", "datatype": "FP32", "shape": [-1, 4],
        "parameters": {"task": "paint", "classes": sorted(NEW.classes), "temperature": temperature},
    }  # fmt: skip
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_metadata("other")


def test_models_cannot_be_managed(client, server) -> None:
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="Not Found"):
            call("both")
    assert server.client.get("/v2/repository/index").status_code == 404


BLANK = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8"}


def with_input(**changes) -> bytes:
    return json.dumps({"inputs": [{**BLANK, "data": [0] * 3072, **changes}]}).encode()


def with_outputs(*outputs: dict) -> bytes:
    return json.dumps({**json.loads(with_input()), "outputs": outputs}).encode()


def binary(message: dict, blob: bytes, header: str | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(message).encode()
    return text + blob, {"Inference-Header-Content-Length": str(len(text)) if header is None else header}


PIXELS = {"inputs": [{**BLANK, "parameters": {"binary_data_size": 3072}}]}
ENCODED = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}


def encoded(blob: bytes) -> tuple[bytes, dict[str, str]]:
    return binary({"inputs": [{**ENCODED, "parameters": {"binary_data_size": len(blob)}}]}, blob)


INVALID: list[tuple[int, bytes | tuple[bytes, dict[str, str]]]] = [
    (400, b""),
    (400, b"{"),
    (400, b"[]"),
    (400, b"null"),
    (400, b"\xff\xfe"),
    (400, b"[" * 100_000),
    (400, b'{"inputs": []}'),
    (400, b'{"inputs": [{}]}'),
    (400, b'{"inputs": [{"name": 1, "shape": "x", "datatype": null}]}'),
    (400, with_input(name="other")),
    (400, with_input(datatype="FP32")),
    (400, with_input(datatype="STRING")),
    (400, with_input(shape=[-1, 32, 32, 3])),
    (400, with_input(shape=[0, 32, 32, 3])),
    (400, with_input(shape=[2, 32, 32, 3])),
    (400, with_input(shape=[2**62, 2**62, 2**62, 3])),
    (400, with_input(shape=[1, 3, 32, 32])),
    (400, with_input(shape=[1.5, 32, 32, 3])),
    (422, with_input(shape=[9, 32, 32, 3])),
    (422, with_input(shape=[10**12, 32, 32, 3])),
    (400, with_input(data=[0] * 3071)),
    (400, with_input(data=[256] * 3072)),
    (400, with_input(data=[-1] * 3072)),
    (400, with_input(data=[0.5] * 3072)),
    (400, with_input(data=[True] * 3072)),
    (400, with_input(data=["a"] * 3072)),
    (400, with_input(data=[None] * 3072)),
    (400, with_input(data=[10**40] * 3072)),
    (400, with_input(data=[[0], [0, 1]])),
    (400, with_input(data=None)),
    (400, with_input().replace(b"[0, 0", b"[NaN, 0")),
    (400, with_input().replace(b"[0, 0", b"[1e999, 0")),
    (400, json.dumps({"inputs": [BLANK, BLANK]}).encode()),
    (400, with_outputs({"name": "other"})),
    (400, with_outputs({"name": "label_paint", "parameters": {"classification": 1}})),
    (400, with_outputs({"name": "logits_paint", "parameters": {"classification": -1}})),
    (400, with_outputs({"name": "logits_paint", "parameters": {"binary_data": 1}})),
    (400, binary(PIXELS, bytes(3071))),
    (400, binary(PIXELS, bytes(3073))),
    (400, binary(PIXELS, bytes(3072), "-1")),
    (400, binary(PIXELS, bytes(3072), "99999999999")),
    (400, binary(PIXELS, bytes(3072), "1e3")),
    (400, binary(PIXELS, bytes(3072), "9" * 5000)),
    (400, binary(PIXELS, bytes(3072), "0")),
    (400, binary({"inputs": [{**BLANK, "parameters": {"binary_data_size": -1}}]}, bytes(3072))),
    (400, binary({"inputs": [{**BLANK, "parameters": {"binary_data_size": 2**70}}]}, bytes(3072))),
    (400, binary({"inputs": [{**BLANK, "parameters": {"binary_data_size": 3072}, "data": [0]}]}, bytes(3072))),
    (400, binary({"inputs": [BLANK]}, bytes(3072))),
    (400, encoded(b"")),
    (400, encoded(b"\x01")),
    (400, encoded(b"\xff\xff\xff\xffabc")),
    (400, encoded(b"\x01\x00\x00\x00ab")),
    (422, encoded(b"\x00\x00\x00\x00")),
    (422, encoded(b"\x05\x00\x00\x00hello")),
    (400, json.dumps({"inputs": [{**ENCODED, "data": ["http://169.254.169.254/"]}]}).encode()),
    (400, json.dumps({"inputs": [{**ENCODED, "data": ["file:///etc/passwd"]}]}).encode()),
    (400, json.dumps({"inputs": [{**ENCODED, "data": [7]}]}).encode()),
    (400, json.dumps({"inputs": [{**ENCODED, "shape": [], "data": ["aaaa"]}]}).encode()),
    (422, json.dumps({"inputs": [{**ENCODED, "shape": [9], "data": ["aaaa"] * 9}]}).encode()),
]  # fmt: skip


@pytest.mark.parametrize(("status", "request_data"), INVALID, ids=range(len(INVALID)))
def test_invalid_request(server, status: int, request_data: bytes | tuple[bytes, dict[str, str]]) -> None:
    body, headers = request_data if isinstance(request_data, tuple) else (request_data, {})
    response = server.client.post("/v2/models/both/infer", content=body, headers=headers)
    assert_error(response, status)
    assert "/" not in response.json()["error"].replace("and/or", "")
    assert "Traceback" not in response.text
    assert server.client.get("/v2/health/ready").status_code == 200
