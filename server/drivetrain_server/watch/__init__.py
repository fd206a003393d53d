"""Watching a running server through its `/metrics`."""
