"""Fake hospitals from public data sets: data sets, partitions, grids, study arms, reports."""
