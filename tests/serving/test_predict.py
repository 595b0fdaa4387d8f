"""/predict, /about and /metrics: predictions, and requests that cannot be answered."""

from __future__ import annotations

import asyncio
import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from malformed_requests import FORM_TYPE, png_header
from servers import Running, assert_error, running
from taskgraft.data.decode import decode_bytes
from taskgraft.serving import service
from taskgraft.serving.decoding import DecoderPool


def test_predicts_every_task(server: Running, image: bytes) -> None:
    response = server.client.post("/predict", content=image, params={"top": 2}).json()
    (result,) = response["images"]
    assert list(result["tasks"]) == ["shape", "paint"]
    for task in result["tasks"].values():
        assert task["label"] == task["top"][0]["label"]
        assert task["probability"] == task["top"][0]["probability"] >= task["top"][1]["probability"]
        assert len(task["top"]) == 2
    assert response["model"] == "both"
    assert 0 < response["seconds"] < 20


def test_form_gives_the_same_predictions(server: Running, image_files: list[Path], image: bytes) -> None:
    files = [("file", (file.name, file.read_bytes(), "image/png")) for file in image_files[:3]]
    images = server.client.post("/predict", files=files, data={"note": "x"}).json()["images"]
    assert [result["name"] for result in images] == [file.name for file in image_files[:3]]
    single = server.client.post("/predict", content=image).json()["images"][0]["tasks"]
    for task, result in images[0]["tasks"].items():
        assert result["label"] == single[task]["label"]
        assert result["probability"] == pytest.approx(single[task]["probability"], abs=1e-5)


@pytest.mark.slow
def test_onnx_backend_gives_the_same_predictions(branched: Path, server: Running, image: bytes) -> None:
    expected = server.client.post("/predict", content=image).json()["images"][0]["tasks"]
    with running(branched, backend="onnx") as onnx_server:
        tasks = onnx_server.client.post("/predict", content=image).json()["images"][0]["tasks"]
    for task, result in tasks.items():
        assert result["probability"] == pytest.approx(expected[task]["probability"], abs=1e-5)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (png_header(30_000, 30_000), "pixels"),
        (png_header(1001, 1000), "more than 1000000 pixels"),
        (png_header(100, 100), "damaged"),
        (png_header(1, 1), "smaller than"),
        (b"<svg/>", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "known format"),
        (b"<script>alert(1)</script>", "known format"),
    ],
    ids=range(7),
)
def test_unusable_image_is_422(server: Running, data: bytes, reason: str) -> None:
    assert_error(server.client.post("/predict", content=data), 422, reason)


def test_unusable_image_is_rejected_within_a_second(server: Running) -> None:
    assert_error(server.client.post("/predict", content=b"x"), 422)
    response = server.client.post("/predict", content=png_header(30_000, 30_000))
    assert response.elapsed.total_seconds() < 1  # 0.1 s on an idle machine


def test_invalid_requests(server: Running, image: bytes) -> None:
    post_request = server.client.post
    form = {"Content-Type": FORM_TYPE}
    many = [("file", (str(number), b"x", "image/png")) for number in range(1000)]
    two = [("file", ("a", image, "image/png")), ("file", ("b", b"x", "image/png"))]
    bomb = gzip.compress(bytes(50 * 2**20))
    assert_error(post_request("/predict"), 400, "empty")
    assert_error(post_request("/predict", content=image, params={"top": 0}), 422, "top")
    assert_error(post_request("/predict", content=image, headers={"Content-Encoding": "br"}), 415)
    assert_error(post_request("/predict", content=b"x" * (2 * 2**20 + 1)), 413, "2 MiB")
    assert_error(post_request("/predict", content=bomb, headers={"Content-Encoding": "gzip"}), 413)
    assert_error(post_request("/predict", content=b"no gzip", headers={"Content-Encoding": "gzip"}), 400)
    assert_error(post_request("/predict", files=many), 400, "Too many files")
    assert_error(
        post_request("/predict", data={str(n): "x" for n in range(999)}, files={"f": b""}), 400, "Too many fields"
    )
    assert_error(post_request("/predict", files=two), 422, "image 2 of 2")
    assert_error(post_request("/predict", content=b"--x\r\nbad", headers=form), 400)
    assert_error(post_request("/predict", content=b"--x--", headers={"Content-Type": "multipart/form-data"}), 400)
    assert_error(post_request("/predict", content=b"--x--", headers=form), 400, "no file")
    assert_error(server.client.put("/predict", content=image), 405)
    assert_error(server.client.get("/page/..%2f..%2fpyproject.toml"), 404)
    assert_error(server.client.get("/page/page.py"), 404)
    assert server.client.get("/v2/health/ready").status_code == 200


def test_file_name_in_a_strange_charset(server: Running, image: bytes) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a\\ud800.png"\r\n\r\n' + image + b"\r\n--x--"
    headers = {"Content-Type": f"{FORM_TYPE}; charset=unicode_escape"}
    response = server.client.post("/predict", content=part, headers=headers)
    assert response.json()["images"][0]["name"] == "a?.png"


def test_images_are_decoded_as_in_training(server: Running) -> None:
    preprocessing = server.service.decoders.preprocessing
    file, rotated = io.BytesIO(), Image.Exif()
    rotated[0x0112] = 6
    Image.effect_noise((40, 20), 90).convert("RGBA").save(file, "PNG", exif=rotated)

    async def decode() -> np.ndarray:
        pool = DecoderPool(preprocessing, server.service.limits)
        try:
            return await pool.decode(file.getvalue())
        finally:
            pool.close()

    np.testing.assert_array_equal(asyncio.run(decode()), decode_bytes(file.getvalue(), preprocessing).pixels)


def test_no_image_is_written_to_disk(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    files = {"file": ("a.png", b"x" * (2 * 2**20 - 1000), "image/png")}
    assert_error(server.client.post("/predict", files=files), 422)


def test_bodies_in_memory_are_limited(server: Running, image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(service, "MAX_BODIES", 0)
        response = server.client.post("/predict", content=image)
        assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
    assert server.client.post("/predict", content=image).status_code == 200
    assert server.service.body_bytes == 0


def test_about_names_no_path(server: Running, branched: Path) -> None:
    for path in ("/about", "/v2/models/both", "/openapi.json"):
        assert str(branched.parent) not in server.client.get(path).text
    about = server.client.get("/about").json()
    assert [task["name"] for task in about["tasks"]] == ["shape", "paint"]
    assert about["lineage"][-1]["task"] == "paint"
    assert about["results"][0]["forgetting"]["mean"] == 0
