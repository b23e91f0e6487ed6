"""A researcher's own model and task, from a package of their own (ADR 26).

Rules are `server.aggregation.plugin`, data sets `simulations.datasets.plugin`.
"""

from medfed.common.plugins.kinds import ModelPlugin, NetworkShape, TaskPlugin
from medfed.common.plugins.loading import Loaded, load_plugin
from medfed.common.study import Section

__all__ = ["Loaded", "ModelPlugin", "NetworkShape", "Section", "TaskPlugin", "load_plugin"]
