"""Aggregation rules: pure functions and accumulators on arrays. No Flower, no files."""
