"""What a model predicts. Adding a task means adding one module that implements `Task`."""

from medfed.common.study import TaskSection
from medfed.common.tasks.classification import Classification
from medfed.common.tasks.protocol import Task

__all__ = ["Classification", "Task", "make_task"]


def make_task(section: TaskSection) -> Task:
    """Return the task that `[task]` names."""
    return Classification(section)
