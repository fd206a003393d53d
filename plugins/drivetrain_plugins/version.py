"""The version of the backend contract, in a module that imports nothing."""

from __future__ import annotations

CONTRACT_VERSION = 1
"""Raised when a backend written for the old contract would no longer work. Additions with defaults do not raise it."""
