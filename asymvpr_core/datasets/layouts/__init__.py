"""One file a benchmark layout; docs/datasets.md says how to add one."""
