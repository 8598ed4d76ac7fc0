"""What the processes are told: the environment (read here alone) and files of the home."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from dure.metering.cost import Prices, load_prices

_CHILD = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TERM")
_FETCH_PREFIXES = ("PIP_", "SSL_CERT_", "XDG_", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_FETCH = (
    "HF_TOKEN",
    "HF_ENDPOINT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NETRC",
    "NO_PROXY",
    "ALL_PROXY",
    "all_proxy",
)


def environment() -> Mapping[str, str]:
    """All of it, for a child that picks what it needs."""
    return dict(os.environ)


def child_environment(fetches: bool) -> Mapping[str, str]:
    """What a process of Dure needs of our environment; one that fetches models also needs pip's."""
    return {
        name: value
        for name, value in environment().items()
        if name in _CHILD or (fetches and (name in _FETCH or name.startswith(_FETCH_PREFIXES)))
    }


def prices_of(home: Path) -> Prices:
    """HOME/prices.toml, or the shipped example."""
    own = home / "prices.toml"
    return load_prices(own if own.exists() else None)
