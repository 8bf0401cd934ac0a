"""The content of a document: what pycrdt updates say, and whether they may be applied."""
