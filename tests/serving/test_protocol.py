"""Open Inference Protocol V2 by its reference client, against the model's own answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from taskgraft import metrics
from taskgraft.bundle import open_parent
from taskgraft.data.decode import decode_file
from taskgraft.models.inference import predict
from taskgraft.types import Images
from toys import NEW


@pytest.fixture(scope="module")
def pixels(pictures: list[Path], branched: Path) -> NDArray[np.uint8]:
    wanted = open_parent(str(branched)).preprocessing
    return np.stack([found for file in pictures[:5] if (found := decode_file(file, wanted).pixels) is not None])


@pytest.fixture(scope="module")
def expected(branched: Path, pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    import torch

    bundle = open_parent(str(branched))
    images = Images(torch.from_numpy(pixels), {}, ("",) * 5, bundle.preprocessing.mean, bundle.preprocessing.std)
    return predict(bundle.classifier, images).logits


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.url.removeprefix("http://")) as found:
        yield found


def close(found: NDArray[np.float32] | None, expected: NDArray[np.float32]) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("chosen", [True, False])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_pixels(client, server, pixels, expected, binary: bool, chosen: bool, compression: str | None) -> None:
    given = triton.InferInput("image", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, binary_data=binary)
    names = ["logits_paint", "logits_shape"]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names] if chosen else None
    result = client.infer(
        "both", [given], outputs=outputs, request_id="seven", request_compression_algorithm=compression
    )
    for task in ("shape", "paint"):
        close(result.as_numpy(f"logits_{task}"), expected[task])
    response = result.get_response()
    assert response["id"] == "seven"
    count = 2 if chosen else 6
    assert len(response["outputs"]) == count
    if not chosen:
        shares = metrics.probabilities(expected["paint"], server.service.served.temperatures["paint"])
        close(result.as_numpy("probabilities_paint"), shares.astype(np.float32))
        labels = [sorted(NEW.classes)[row] for row in expected["paint"].argmax(1)]
        assert [name.decode() for name in result.as_numpy("label_paint")] == labels


@pytest.mark.parametrize("name", ["image", "image_bytes"])
def test_encoded_pictures(client, pictures, expected, name: str) -> None:
    files = np.array([file.read_bytes() for file in pictures[:5]], dtype=object)
    given = triton.InferInput(name, [5], "BYTES")
    given.set_data_from_numpy(files)
    close(client.infer("both", [given]).as_numpy("logits_shape"), expected["shape"])


def test_encoded_pictures_in_json(server, pictures, expected) -> None:
    import base64

    data = [base64.b64encode(file.read_bytes()).decode() for file in pictures[:5]]
    body = {"inputs": [{"name": "image_bytes", "shape": [5, 1], "datatype": "BYTES", "data": data}]}
    found = server.client.post("/v2/models/both/versions/1/infer", json=body).json()
    logits = next(out for out in found["outputs"] if out["name"] == "logits_shape")
    close(np.array(logits["data"]).reshape(logits["shape"]), expected["shape"])
    assert "id" not in found


def test_classification(client, pixels, expected) -> None:
    given = triton.InferInput("image", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels)
    result = client.infer("both", [given], outputs=[triton.InferRequestedOutput("logits_paint", class_count=2)])
    found = result.as_numpy("logits_paint")
    assert found.shape == (5, 2)
    value, place, label = found[0, 0].decode().split(":")
    assert int(place) == expected["paint"][0].argmax()
    assert label == sorted(NEW.classes)[int(place)]
    assert float(value) == pytest.approx(expected["paint"][0].max(), abs=1e-4)


def test_what_is_told_of_the_model(client, server) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("both")
    assert client.is_model_ready("both", "1")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    found = client.get_model_metadata("both")
    assert found == client.get_model_metadata("both", "1")
    assert [entry["name"] for entry in found["inputs"]] == ["image", "image_bytes"]
    assert found["inputs"][0]["shape"] == [-1, 32, 32, 3]
    assert found["outputs"][3] == {
        "name": "logits_paint", "datatype": "FP32", "shape": [-1, 4],
        "parameters": {
            "task": "paint", "classes": sorted(NEW.classes), "temperature": server.service.served.temperatures["paint"],
        },
    }  # fmt: skip
    with pytest.raises(InferenceServerException, match="no such model"):
        client.get_model_metadata("other")


def test_there_is_no_management(client, server) -> None:
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="Not Found"):
            call("both")
    assert server.client.get("/v2/repository/index").status_code == 404


BLANK = {"name": "image", "shape": [1, 32, 32, 3], "datatype": "UINT8"}


def given(**changes) -> bytes:
    return json.dumps({"inputs": [{**BLANK, "data": [0] * 3072, **changes}]}).encode()


def wanting(*outputs: dict) -> bytes:
    return json.dumps({**json.loads(given()), "outputs": outputs}).encode()


def binary(head: dict, blob: bytes, header: str | None = None) -> tuple[bytes, dict[str, str]]:
    text = json.dumps(head).encode()
    return text + blob, {"Inference-Header-Content-Length": str(len(text)) if header is None else header}


PIXELS = {"inputs": [{**BLANK, "parameters": {"binary_data_size": 3072}}]}
ENCODED = {"name": "image_bytes", "shape": [1], "datatype": "BYTES"}


def encoded(blob: bytes) -> tuple[bytes, dict[str, str]]:
    return binary({"inputs": [{**ENCODED, "parameters": {"binary_data_size": len(blob)}}]}, blob)


BAD: list[tuple[int, bytes | tuple[bytes, dict[str, str]]]] = [
    (400, b""),
    (400, b"{"),
    (400, b"[]"),
    (400, b"null"),
    (400, b"\xff\xfe"),
    (400, b"[" * 100_000),
    (400, b'{"inputs": []}'),
    (400, b'{"inputs": [{}]}'),
    (400, b'{"inputs": [{"name": 1, "shape": "x", "datatype": null}]}'),
    (400, given(name="other")),
    (400, given(datatype="FP32")),
    (400, given(datatype="STRING")),
    (400, given(shape=[-1, 32, 32, 3])),
    (400, given(shape=[0, 32, 32, 3])),
    (400, given(shape=[2, 32, 32, 3])),
    (400, given(shape=[2**62, 2**62, 2**62, 3])),
    (400, given(shape=[1, 3, 32, 32])),
    (400, given(shape=[1.5, 32, 32, 3])),
    (422, given(shape=[9, 32, 32, 3])),
    (422, given(shape=[10**12, 32, 32, 3])),
    (400, given(data=[0] * 3071)),
    (400, given(data=[256] * 3072)),
    (400, given(data=[-1] * 3072)),
    (400, given(data=[0.5] * 3072)),
    (400, given(data=[True] * 3072)),
    (400, given(data=["a"] * 3072)),
    (400, given(data=[None] * 3072)),
    (400, given(data=[10**40] * 3072)),
    (400, given(data=[[0], [0, 1]])),
    (400, given(data=None)),
    (400, given().replace(b"[0, 0", b"[NaN, 0")),
    (400, given().replace(b"[0, 0", b"[1e999, 0")),
    (400, json.dumps({"inputs": [BLANK, BLANK]}).encode()),
    (400, wanting({"name": "other"})),
    (400, wanting({"name": "label_paint", "parameters": {"classification": 1}})),
    (400, wanting({"name": "logits_paint", "parameters": {"classification": -1}})),
    (400, wanting({"name": "logits_paint", "parameters": {"binary_data": 1}})),
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


@pytest.mark.parametrize(("status", "sent"), BAD, ids=range(len(BAD)))
def test_a_bad_request_is_told_why(server, status: int, sent: bytes | tuple[bytes, dict[str, str]]) -> None:
    body, headers = sent if isinstance(sent, tuple) else (sent, {})
    answer = server.client.post("/v2/models/both/infer", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert "/" not in answer.json()["error"].replace("and/or", "")
    assert "Traceback" not in answer.text
    assert server.client.get("/v2/health/ready").status_code == 200
