"""Versions of generators, and which of them is in use."""
