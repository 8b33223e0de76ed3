"""The geographical memory bank: places and the statistics of their gallery descriptors."""
