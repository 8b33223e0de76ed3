"""Metrics, plots and reports; every metric states its protocol."""
