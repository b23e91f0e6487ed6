"""A model, a task, an aggregation rule and a data set of one's own, for medfed."""
