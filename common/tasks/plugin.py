"""A task from a researcher's own package (ADR 26)."""

from medfed.common.plugins import TaskPlugin
from medfed.common.plugins.loading import blaming, load_plugin
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import Task


def make_plugin_task(study: StudyConfig) -> Task:
    """Return the task that the study's plug-in makes.

    Raises:
        StudyError: The plug-in cannot be had, or failed.
    """
    loaded = load_plugin(study, "task", TaskPlugin)
    with blaming(loaded.origin):
        return loaded.plugin.make(loaded.options, study)
