"""Importing it is what loads the bridge."""
