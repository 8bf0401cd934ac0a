"""Manifests and the contents of their files, on disk."""
