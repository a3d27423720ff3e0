"""Vectors as they are kept: their precision on disk and in memory, and the indexes that search them."""
