"""`taskgraft sign` and `taskgraft verify`: who made a bundle, and that it is still what they made."""

from __future__ import annotations

from pathlib import Path

from taskgraft.bundle import signatures
from taskgraft.errors import CheckpointError
from taskgraft.types import PathLike


def sign(bundle: PathLike, key: PathLike, *, new_key: bool = False, password: str | None = None) -> str:
    """Sign a finished bundle with a private key; its files have to be those of its digests.json.

    Args:
        bundle: A bundle.
        key: The private key: Ed25519, in PEM.
        new_key: Create the key first, and the public key beside it as KEY.pub.
        password: Of the key, if it is encrypted; a new key is encrypted with it.

    Returns:
        The fingerprint of the key, which verify_signature returns as well.

    Raises:
        CheckpointError: It is not a finished bundle, or it has changed since.
        InputError: The key cannot be used, or a new one would replace a file.
        MissingDependency: cryptography is not installed.
    """
    folder = _as_folder(bundle)
    if new_key:
        signatures.create_key(Path(key), password)
    return signatures.sign(folder, Path(key), password)


def verify_signature(bundle: PathLike, key: PathLike) -> str:
    """Check that a bundle is signed by the owner of a public key, and that every file of it is what was signed.

    Args:
        bundle: A bundle.
        key: The public key: Ed25519, in PEM.

    Returns:
        The fingerprint of the key.

    Raises:
        CheckpointError: It is not signed, signed by another key, or altered since.
        InputError: The key cannot be used.
        MissingDependency: cryptography is not installed.
    """
    return signatures.verify(_as_folder(bundle), Path(key))


def _as_folder(bundle: PathLike) -> Path:
    """The folder of a bundle. No other model can be signed: it has no digests that say which files belong to it."""
    folder = Path(str(Path(bundle)).removeprefix("local-dir:"))
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder, so it has no signature; give a bundle, the OUT of train or extend"
        )
    return folder
