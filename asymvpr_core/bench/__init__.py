"""The benchmark suite: which measurements there are, and what becomes of their results."""
