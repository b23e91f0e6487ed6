"""`explain_examination`: from a run folder and image files to a page."""

from collections.abc import Sequence
from pathlib import Path

from medfed.common.errors import RunError
from medfed.common.tasks import Classification, Report, Segmentation, is_own_task
from medfed.simulations.explaining.about_classes import about_classes
from medfed.simulations.explaining.about_masks import about_masks
from medfed.simulations.explaining.about_reports import about_reports
from medfed.simulations.explaining.grey_levels import harmonised
from medfed.simulations.explaining.load import (
    Examination,
    Trained,
    load_examination,
    load_trained,
)
from medfed.simulations.explaining.page import Content, write_explanation


def explain_examination(
    run: Path, images: Sequence[str], columns: Sequence[str], out: Path, site: str = ""
) -> tuple[str, Path, str]:
    """Explain what the run's federated model says about one examination.

    Args:
        run: Run folder.
        images: FILE, or VIEW=FILE for each view that there is.
        columns: COLUMN=VALUE for each known metadata column.
        out: Folder for the page, its pictures and its figures.
        site: Whose own model to ask (`load_trained`), or as whose images the files are to be seen
            (`harmonised`); empty for the global model and files as they are.

    Returns:
        The prediction in a line, the path of the page, and with data.harmonise what was done to
        grey levels.

    Raises:
        MedfedError: Not a finished run, or files that do not fit its study.
    """
    trained = load_trained(run, site)
    examination = load_examination(images, columns, trained.study)
    examination = harmonised(examination, trained.study, run / "arms" / "federated", site)
    content = explain(trained, examination)
    page = write_explanation(trained, examination, content, out)
    return content.headline, page, examination.grey_levels


def explain(trained: Trained, examination: Examination) -> Content:
    """Return what there is to say about one examination."""
    task = trained.task
    _check_explainable(trained)
    if isinstance(task, Classification):
        return about_classes(trained, task, examination)
    if isinstance(task, Segmentation):
        return about_masks(trained, task, examination)
    assert isinstance(task, Report)
    return about_reports(trained, task, examination)


def _check_explainable(trained: Trained) -> None:
    study = trained.study
    if not is_own_task(trained.task, study):
        raise RunError(
            f"Expected a task that medfed explains, got {study.task.plugin}, a plug-in of "
            f"{study.plugins.task} that extends none of medfed's. Only its authors can."
        )
    classifies = study.task.type == "classification"
    if study.model.is_plugin and classifies and not hasattr(trained.model, "grid"):
        raise RunError(
            f"Expected a network with grid(images), its last feature map, got {study.model.name}, "
            f"a plug-in of {study.plugins.model} without. Have its authors add the method."
        )
