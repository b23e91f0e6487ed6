"""Auditing: what an outsider can check of a run's privacy, and the page that says it in words."""
