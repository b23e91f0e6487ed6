"""Attacks that anyone could run on what a study publishes, and what their results are worth."""
