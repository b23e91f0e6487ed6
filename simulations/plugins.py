"""A study with its plug-ins of all four kinds, as it starts on this machine."""

from medfed.common.plugins.loading import warn_of_unused
from medfed.common.plugins.resolving import with_plugins
from medfed.common.study import StudyConfig
from medfed.common.study.plugins import plugin_names
from medfed.server.aggregation.plugin import RulePlugin
from medfed.simulations.datasets.plugin import DatasetPlugin


def complete(study: StudyConfig) -> StudyConfig:
    """Return `study` with its plug-ins' versions and settings; see `with_plugins`."""
    warn_of_unused(study)
    if not plugin_names(study):
        return study.model_copy(update={"plugins": type(study.plugins)()})
    return with_plugins(study, {"aggregation": RulePlugin, "dataset": DatasetPlugin})
