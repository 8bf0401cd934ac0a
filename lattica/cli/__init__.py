"""The `lattica` command."""
