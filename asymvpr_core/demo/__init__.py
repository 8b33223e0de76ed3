"""The embedded default: a small rendered town and the whole story on it."""
