"""Keys, signatures, grants and tickets."""
