"""The embedded store: LMDB in a directory, and one thread that writes it."""
