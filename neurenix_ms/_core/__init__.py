"""Internals that every part of the package builds on; no part of the public API."""
