"""signature.json: an Ed25519 signature over digests.json, which finds forgers who can write the folder as well."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from taskgraft.bundle import digests
from taskgraft.errors import CheckpointError, InputError, first_line, require
from taskgraft.results.files import atomic, write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

FILE = "signature.json"
PURPOSE = b"taskgraft bundle, digests.json\n"  # signed as well, so that no signature of something else is valid here
MAX_KEY_BYTES = 2**16


class Signature(BaseModel):
    """The contents of signature.json. `key` only serves messages: what counts is the key that the reader trusts."""

    model_config = ConfigDict(extra="forbid")
    algorithm: Literal["Ed25519"]
    key: str
    signature: str


def create_key(path: Path, password: str | None = None) -> Path:
    """Create a key pair: the private key, which only its owner can read, and the public key beside it.

    Args:
        path: Where the private key goes (PEM); the public key goes to the same name with .pub.
        password: Encrypt the private key; None = do not.

    Returns:
        The path of the public key.

    Raises:
        InputError: One of the files exists, or cannot be written.
        MissingDependency: cryptography is not installed.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_name(f"{path.name}.pub")
    for file in (path, public):
        if os.path.lexists(file):
            raise InputError(f"{file} exists, and keys are never replaced; leave --new-key out, or choose another name")
    key = Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, encryption))
        with atomic(public) as temporary:
            temporary.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; choose another path for the key") from error
    return public


def sign(folder: Path, key: Path, password: str | None = None) -> str:
    """Sign a finished bundle; an older signature is replaced.

    Args:
        folder: The bundle.
        key: The private key.
        password: Of the key, if it is encrypted.

    Returns:
        The fingerprint of the key.

    Raises:
        CheckpointError: The bundle is not finished, or its files are not those of its digests.json.
        InputError: The key cannot be used.
        MissingDependency: cryptography is not installed.
    """
    _require_cryptography()
    private = _load_private(key, password)
    message = _read_digests(folder)
    _require_unchanged(folder, "restore its files, or run the command that made it again")
    fingerprint = _fingerprint(private.public_key())
    signature = base64.b64encode(private.sign(PURPOSE + message)).decode()
    content = Signature(algorithm="Ed25519", key=fingerprint, signature=signature)
    write_json(folder / FILE, content.model_dump())
    return fingerprint


def verify(folder: Path, key: Path) -> str:
    """Check that a bundle is what the owner of a key has signed, to the byte of every file that is read from it.

    Nothing of the bundle is interpreted before its signature has been checked, apart from signature.json itself.

    Args:
        folder: The bundle.
        key: The public key that is trusted.

    Returns:
        The fingerprint of the key.

    Raises:
        CheckpointError: It is not signed, signed by another key, or altered since.
        InputError: The key cannot be used.
        MissingDependency: cryptography is not installed.
    """
    _require_cryptography()
    from cryptography.exceptions import InvalidSignature

    public = _load_public(key)
    stored = _read_signature(folder)
    message, fingerprint = _read_digests(folder), _fingerprint(public)
    try:
        public.verify(base64.b64decode(stored.signature, validate=True), PURPOSE + message)
    except (InvalidSignature, binascii.Error, ValueError) as error:
        if stored.key != fingerprint:
            raise CheckpointError(
                f"{folder} is signed by another key ({stored.key[:80]!r}), not by {key} ({fingerprint}); "
                "get it from its publisher, or give the publisher's public key"
            ) from error
        raise CheckpointError(
            f"{folder} has been altered: its {digests.FILE} is not what {key} signed; get it from its publisher again"
        ) from error
    _require_unchanged(folder, "get it from its publisher again")
    return fingerprint


def _require_cryptography() -> None:
    require("sign", "cryptography", what="a signature")


def _require_unchanged(folder: Path, remedy: str) -> None:
    """Compare the files with digests.json; a file that is missing or more than it lists counts as well."""
    files = digests.compare(folder)
    differing = [f"{name} has changed" for name in files.changed] + [f"{name} is missing" for name in files.missing]
    differing += [f"{name} is not listed in {digests.FILE}" for name in files.added]
    if differing:
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        raise CheckpointError(f"{folder} has been altered: {differing[0]}{more}; {remedy}")


def _read_digests(folder: Path) -> bytes:
    """The bytes of digests.json, which are what is signed."""
    try:
        return (folder / digests.FILE).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no {digests.FILE}, so there is nothing to sign or to check; give the OUT folder of a "
            "finished run"
        ) from error


def _read_signature(folder: Path) -> Signature:
    try:
        return Signature.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} is not signed: it has no {FILE}; its publisher makes one with `taskgraft sign`"
        ) from error
    except (OSError, ValueError, ValidationError) as error:
        raise CheckpointError(f"{folder / FILE} is damaged: {first_line(error)}; sign the bundle again") from error


def _load_private(path: Path, password: str | None) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _read_key(path)
    try:
        key = load_pem_private_key(content, password.encode() if password else None)
    except TypeError as error:  # a password is missing, or there is one too many
        remedy = "leave --password out" if password else "set --password (or TASKGRAFT_KEY_PASSWORD)"
        raise InputError(f"{path} is {'not ' if password else ''}encrypted; {remedy}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        reason = "the password is wrong, or it" if password else "it"
        raise InputError(f"{path} cannot be used: {reason} is no private key in PEM; --new-key creates one") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InputError(f"{path} is a private key, but not of Ed25519; --new-key creates one")
    return key


def _load_public(path: Path) -> Ed25519PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    content = _read_key(path)
    if b"PRIVATE KEY-----" in content:
        raise InputError(f"{path} is a private key, which stays with its owner; give the public key (.pub)")
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InputError(f"{path} is no public key in PEM; give the .pub file of `taskgraft sign --new-key`") from error
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(f"{path} is a public key, but not of Ed25519; give the .pub file of `taskgraft sign`")
    return key


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; give a key file in PEM") from error


def _fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the 32 bytes of a public key, as OpenSSH and git write theirs."""
    return f"SHA256:{base64.b64encode(hashlib.sha256(key.public_bytes_raw()).digest()).decode().rstrip('=')}"
