"""Projects and keys, for an admin."""

from __future__ import annotations

import msgspec

from dure.client.connection import Connection
from dure.model.view import KeyMade, KeyView, ProjectView


class _Name(msgspec.Struct, frozen=True):
    name: str


class _Project(msgspec.Struct, frozen=True):
    project: str


class Tenants:
    """The part of `Client` that only an admin's key may use."""

    connection: Connection

    def projects(self) -> list[ProjectView]:
        return self.connection.call("GET", "/api/projects", list[ProjectView])

    def create_project(self, name: str) -> ProjectView:
        return self.connection.call("POST", "/api/projects", ProjectView, msgspec.json.encode(_Name(name)))

    def keys(self) -> list[KeyView]:
        return self.connection.call("GET", "/api/keys", list[KeyView])

    def create_key(self, project: str) -> KeyMade:
        """A new key; its secret is in this answer and never again."""
        return self.connection.call("POST", "/api/keys", KeyMade, msgspec.json.encode(_Project(project)))
