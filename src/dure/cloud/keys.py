"""Keys: shown once, kept as digests."""

from __future__ import annotations

import hashlib
import secrets


def new_secret() -> str:
    """A key of 256 random bits."""
    return "dk-" + secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """SHA-256 in hex. A plain hash suffices: the keys are random, not chosen by people."""
    return hashlib.sha256(secret.encode()).hexdigest()
