"""Documents as their users see them, kept on disk and equal among linked peers."""
