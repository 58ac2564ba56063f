"""Fixtures of the tests of the data."""

from fake_sources import archive, console, npm, release, server

__all__ = ["archive", "console", "npm", "release", "server"]
