"""Signed updates in chains, one per author, sans I/O: a replica, and how two become equal."""
