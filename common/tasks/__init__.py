"""What a model predicts. Adding a task means adding one module that implements `Task`."""

from collections.abc import Callable, Sequence

from medfed.common.study import StudyConfig
from medfed.common.tasks.apart import evaluate_apart
from medfed.common.tasks.classification import Classification
from medfed.common.tasks.pooling import pooled_metrics
from medfed.common.tasks.protocol import Batch, Examples, Figure, ImageLoss, Task
from medfed.common.tasks.report import Report
from medfed.common.tasks.segmentation import Segmentation
from medfed.common.text import Vocabulary

__all__ = [
    "Batch",
    "Classification",
    "Examples",
    "Figure",
    "ImageLoss",
    "Report",
    "Segmentation",
    "Task",
    "evaluate_apart",
    "is_own_task",
    "make_task",
    "pooled_metrics",
]

_TASKS: dict[str, Callable[[StudyConfig, Vocabulary], Task]] = {
    "classification": lambda study, _: Classification(study),
    "segmentation": lambda study, _: Segmentation(study),
    "report": Report,
}


def is_own_task(task: Task, study: StudyConfig) -> bool:
    """Whether `task` is medfed's own of the study's type, or a plug-in's that extends it."""
    kinds: dict[str, type] = {
        "classification": Classification,
        "segmentation": Segmentation,
        "report": Report,
    }
    return isinstance(task, kinds[study.task.type])


def make_task(study: StudyConfig, words: Sequence[str] = ()) -> Task:
    """Return the task of `study`.

    Args:
        study: `[task]` names it.
        words: The vocabulary of a report task, in its agreed order.

    Raises:
        StudyError: A plug-in that cannot be had, or failed.
    """
    if study.task.plugin:
        from medfed.common.tasks.plugin import make_plugin_task

        return make_plugin_task(study)
    return _TASKS[study.task.type](study, Vocabulary(words))
