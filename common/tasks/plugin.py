"""A task from a researcher's own package (ADR 26)."""

from medfed.common.errors import StudyError
from medfed.common.plugins import TaskPlugin
from medfed.common.plugins.loading import blaming, load_plugin
from medfed.common.study import StudyConfig
from medfed.common.tasks.protocol import Task


def make_plugin_task(study: StudyConfig) -> Task:
    """Return the task that the study's plug-in makes.

    Raises:
        StudyError: The plug-in cannot be had, failed, or made something else.
    """
    loaded = load_plugin(study, "task", TaskPlugin)
    with blaming(loaded.origin):
        task = loaded.plugin.make(loaded.options, study)
    lacking = [name for name in dir(Task) if name[0] != "_" and not hasattr(task, name)]
    if lacking:
        raise StudyError(
            f"The {loaded.origin}: expected a Task, got {type(task).__name__} without "
            f"{', '.join(lacking)}. That is for the package's authors to mend."
        )
    return task
