"""How sure a run's figures are: the bootstrap over held-out patients, and figures of subgroups."""

UNCERTAINTY_FILE = "uncertainty.json"
