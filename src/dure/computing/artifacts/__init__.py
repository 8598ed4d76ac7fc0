"""Model files: fetched once into a content-addressed store, refused unless they are what the catalogue says."""

from dure.computing.artifacts.source import HUB, parse_source
from dure.computing.artifacts.store import ensure

__all__ = ["HUB", "ensure", "parse_source"]
