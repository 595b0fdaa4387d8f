"""The Hugging Face Hub: fetch a repository's files into its cache, and upload a folder. Errors are one line."""

from __future__ import annotations

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from taskgraft.errors import InputError, SetupError, TaskgraftError

PREFIX = "hf-hub:"
FAILURES = (OSError, ValueError, HTTPError)  # what the client raises; not all errors of the network are OSErrors
# of a model: never what a training program may have left beside it
FILES = ["*.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "cards/*.json", "README.md"]
LOGIN = "log in by `hf auth login`, set HF_TOKEN, or pass token="


def split_name(name: str) -> tuple[str, str | None]:
    """Return repository and revision of a name such as `hf-hub:user/name@v2`."""
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    return repo, revision or None


def fetch_config(name: str, token: str | None = None) -> Path | None:
    """Download the config.json of a repository, or find it in the cache; None where there is none.

    Raises:
        SetupError: There is no such repository or no access to it, or no network.
    """
    repo, revision = split_name(name)
    try:
        with offline_without_network():
            return Path(hf_hub_download(repo, "config.json", revision=revision, token=token))
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError too
        raise _explain(error, name) from error
    except EntryNotFoundError:
        return None
    except FAILURES as error:
        raise _explain(error, name) from error


def fetch_model(name: str, token: str | None = None) -> Path:
    """Download the files of a model, or find them in the cache.

    Args:
        name: The repository, also with a revision, as `split_name` reads it.
        token: Access token; None = that of the login.

    Returns:
        The folder that has them, which is a part of the Hub's cache.

    Raises:
        SetupError: There is no such repository or no access to it, or no network.
    """
    repo, revision = split_name(name)
    try:
        with offline_without_network():
            return Path(snapshot_download(repo, revision=revision, token=token, allow_patterns=FILES))
    except FAILURES as error:
        raise _explain(error, name) from error


def upload_folder(
    folder: Path, repo: str, *, private: bool | None, revision: str | None, token: str | None, message: str
) -> str:
    """Upload a folder to a model repository, which is made if there is none.

    Returns:
        The address of the repository.

    Raises:
        InputError: The name is no name of a repository.
        SetupError: There is no login or no right to write, or no network.
    """
    api = HfApi(token=token)
    try:
        with offline_without_network():
            url = api.create_repo(repo, private=private, exist_ok=True)
            if revision:
                api.create_branch(url.repo_id, branch=revision, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, revision=revision, commit_message=message)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is not the name of a repository; write user/name") from error
    except FAILURES as error:
        raise _explain(error, repo, write=True) from error
    return str(url)


@contextmanager
def offline_without_network() -> Iterator[None]:
    """Put the hub's client in offline mode where its host cannot be resolved: else it retries for up to a minute."""
    before = constants.HF_HUB_OFFLINE
    try:
        if not urllib.request.getproxies():  # a proxy resolves the name itself
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _explain(error: Exception, name: str, *, write: bool = False) -> TaskgraftError:
    """Say in one line why the Hub did not do what was asked."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    what = f"cannot upload to {name!r}" if write else f"cannot download {name!r}"
    kind = type(error).__name__
    if isinstance(error, LocalTokenNotFoundError) or (write and status == 401):
        return SetupError(f"{what}: there is no login to the Hub ({kind}); {LOGIN}")
    if write and status == 403:
        return SetupError(f"{what}: the login may not write there ({kind}); use a token that may, or your own name")
    if isinstance(error, GatedRepoError):
        return SetupError(f"{what}: its owner grants access first ({kind}); ask for it on its page, then {LOGIN}")
    if isinstance(error, RevisionNotFoundError):
        return SetupError(f"{what}: the repository has no such revision ({kind}); leave it out, or give another")
    if isinstance(error, RepositoryNotFoundError):
        return SetupError(
            f"{what}: the Hub has no such repository, or it is private ({kind}); check the name, or {LOGIN}"
        )
    if isinstance(error, HFValidationError):
        return InputError(f"{name!r} is not the name of a repository; write user/name")
    reason = " ".join(str(error).split())[:120].rstrip(" .")
    remedy = "check the network" if write else "without a network give a local folder (local-dir:FOLDER)"
    return SetupError(f"{what} ({kind}: {reason}); {remedy}")
