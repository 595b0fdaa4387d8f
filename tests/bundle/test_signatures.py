"""Signed bundles: what the owner of a key made passes, and nothing that anybody changed since."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import taskgraft
from taskgraft.bundle import digests, signatures
from taskgraft.errors import CheckpointError, InputError
from taskgraft.types import Callbacks


@pytest.fixture
def bundle(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "bundle"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    signatures.create_key(tmp_path / "alice.key")
    return tmp_path / "alice.key"


@pytest.fixture
def public(bundle: Path, key: Path) -> Path:
    taskgraft.sign(bundle, key)
    return key.with_name("alice.key.pub")


def test_a_signed_bundle_is_verified(bundle: Path, public: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")
    assert taskgraft.verify_signature(moved, public) == taskgraft.verify_signature(bundle, public)
    assert taskgraft.verify_signature(bundle, public).startswith("SHA256:")


def test_a_new_key_is_private_and_never_replaced(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "new.key"
    fingerprint = taskgraft.sign(bundle, key, new_key=True, password="seven words")
    assert key.stat().st_mode & 0o777 == 0o600
    assert taskgraft.verify_signature(bundle, tmp_path / "new.key.pub") == fingerprint
    assert taskgraft.sign(bundle, key, password="seven words") == fingerprint
    for password in (None, "six words"):
        with pytest.raises(InputError, match="is encrypted" if password is None else "the password is wrong"):
            taskgraft.sign(bundle, key, password=password)
    before = key.read_bytes()
    with pytest.raises(InputError, match="keys are never replaced"):
        taskgraft.sign(bundle, key, new_key=True)
    assert key.read_bytes() == before


def change_digests(folder: Path) -> None:
    """What a careful forger does: change a file, and make digests.json agree."""
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    digests.write(folder, digests.read(folder).inputs)


def change_signature(folder: Path) -> None:
    content = json.loads((folder / "signature.json").read_text())
    (folder / "signature.json").write_text(json.dumps({**content, "signature": content["signature"][::-1]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "model.safetensors has changed"),
        (lambda folder: (folder / "split.csv").unlink(), "split.csv is missing"),
        (lambda folder: (folder / "memory.safetensors").write_bytes(b"x"), "memory.safetensors is not listed"),
        (change_digests, "its digests.json is not what"),
        (change_signature, "its digests.json is not what"),
        (lambda folder: (folder / "signature.json").write_text("{}"), "signature.json is damaged"),
        (lambda folder: (folder / "signature.json").unlink(), "is not signed"),
        (lambda folder: (folder / "digests.json").unlink(), "has no digests.json"),
    ],
)
def test_what_was_altered_is_refused(
    change: Callable[[Path], object], message: str, bundle: Path, public: Path
) -> None:
    change(bundle)
    with pytest.raises(CheckpointError, match=message):
        taskgraft.verify_signature(bundle, public)


def test_the_key_of_somebody_else_is_refused(bundle: Path, public: Path, tmp_path: Path) -> None:
    other = signatures.create_key(tmp_path / "mallory.key")
    with pytest.raises(CheckpointError, match="is signed by another key"):
        taskgraft.verify_signature(bundle, other)
    taskgraft.sign(bundle, tmp_path / "mallory.key")
    with pytest.raises(CheckpointError, match="is signed by another key"):
        taskgraft.verify_signature(bundle, public)


def test_the_name_of_a_key_in_the_bundle_is_not_believed(bundle: Path, public: Path, tmp_path: Path) -> None:
    claimed = json.loads((bundle / "signature.json").read_text())["key"]
    signatures.create_key(tmp_path / "mallory.key")
    taskgraft.sign(bundle, tmp_path / "mallory.key")
    forged = json.loads((bundle / "signature.json").read_text())
    (bundle / "signature.json").write_text(json.dumps({**forged, "key": claimed}))
    with pytest.raises(CheckpointError, match="has been altered"):
        taskgraft.verify_signature(bundle, public)


def test_a_bundle_that_has_changed_is_not_signed(bundle: Path, key: Path) -> None:
    (bundle / "record.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"record\.json has changed; restore its files"):
        taskgraft.sign(bundle, key)
    assert not (bundle / "signature.json").exists()


def test_what_is_no_key_of_ed25519(bundle: Path, key: Path, public: Path, tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("hello")
    pem = serialization.Encoding.PEM
    pair = ec.generate_private_key(ec.SECP256R1())
    other.write_bytes(pair.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    other_public = tmp_path / "other.pub"
    other_public.write_bytes(pair.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    for path, message in ((text, "no private key"), (other, "not of Ed25519"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(InputError, match=message):
            taskgraft.sign(bundle, path)
    for path, message in ((text, "no public key"), (other_public, "not of Ed25519"), (key, "is a private key, which")):
        with pytest.raises(InputError, match=message):
            taskgraft.verify_signature(bundle, path)


def test_serve_opens_only_what_is_signed(bundle: Path, public: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, said = [], []
    monkeypatch.setattr("taskgraft.commands.serve.open_parent", lambda model, **_: opened.append(model) or 1 / 0)
    with pytest.raises(ZeroDivisionError):  # the model would be loaded next
        taskgraft.serve(bundle, port=0, require_signature=public, callbacks=Callbacks(info=said.append))
    assert opened == [bundle]
    assert "signed by" in said[0]
    (bundle / "config.json").write_text("not even JSON")
    with pytest.raises(CheckpointError, match=r"config\.json has changed"):
        taskgraft.serve(bundle, port=0, require_signature=public)
    with pytest.raises(CheckpointError, match="has no signature; give a bundle"):
        taskgraft.serve("timm/resnet18.a1_in1k", port=0, require_signature=public)
    assert opened == [bundle]
