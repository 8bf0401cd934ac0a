"""Blocks between peers: finding who has a manifest, and fetching from many at once."""
