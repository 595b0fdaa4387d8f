"""Weights that timm fetches by name, without waiting for a network that is not there."""

from __future__ import annotations

import socket
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants
from torch import nn

from taskgraft.errors import SetupError


def fetched(source: str) -> nn.Module:
    """A timm network with the weights of its name; raises TaskgraftError (code 3) where they cannot be had."""
    try:
        with _cache_alone_without_network(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(source, pretrained=True)
    except Exception as error:  # timm, the hub's client and what they lean on raise anything
        reason = " ".join(str(error).split())[:120]
        raise SetupError(
            f"the weights of {source!r} could not be fetched ({type(error).__name__}: {reason}); without a "
            "network give a local folder (local-dir:FOLDER) or a file of weights with its --arch",
        ) from error


@contextmanager
def _cache_alone_without_network() -> Iterator[None]:
    """Put the hub's client in its offline mode where the hub's name is unknown: else it tries for up to a minute.

    Behind a proxy the name need not be known here.
    """
    before = constants.HF_HUB_OFFLINE
    try:
        if not urllib.request.getproxies():
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
