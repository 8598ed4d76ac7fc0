"""A typed client of the control API and of `/v1`; imports nothing of the server."""

from __future__ import annotations

from dure.client.chat import Message, Tokens
from dure.client.cloud import Client
from dure.client.errors import ApiError
from dure.client.home import find

__all__ = ["ApiError", "Client", "Message", "Tokens", "find"]
