"""Makes a study that was read from a file complete: whose plug-ins it names, with what settings."""

from typing import Any

from medfed.common.plugins.apart import check_images_apart
from medfed.common.plugins.kinds import ModelPlugin, Plugin, TaskPlugin
from medfed.common.plugins.loading import load_plugin, pin
from medfed.common.plugins.trying import check_together
from medfed.common.study import PluginsSection, StudyConfig
from medfed.common.study.plugins import PluginKind, plugin_names
from medfed.common.tasks import make_task

_TABLES: dict[PluginKind, str] = {
    "model": "model",
    "task": "task",
    "aggregation": "aggregation",
    "dataset": "simulation",
}


def with_plugins(study: StudyConfig, others: dict[PluginKind, type[Plugin]]) -> StudyConfig:
    """Return `study` with the version of each plug-in and all of its settings written out.

    Loads them, so this is for the machine that a study starts from, never for a site.

    Args:
        study: As read from a study file.
        others: What rules and data sets are, which only the server and simulations know.

    Raises:
        StudyError: A plug-in is not installed, does not take its settings, does not work
            together with the others, or mixes patients.
    """
    names = plugin_names(study)
    pins = {kind: pin(kind, name, getattr(study.plugins, kind)) for kind, name in names.items()}
    pinned: dict[str, Any] = {"plugins": PluginsSection(**pins)}
    study = study.model_copy(update=pinned)
    expected: dict[PluginKind, type[Plugin]] = {"model": ModelPlugin, "task": TaskPlugin, **others}
    for kind in names:
        if kind in expected:
            study = _with_settings(study, kind, expected[kind])
    if names.keys() & {"model", "task"}:
        _check(study)
    return study


def _with_settings(study: StudyConfig, kind: PluginKind, expected: type[Plugin]) -> StudyConfig:
    settings = load_plugin(study, kind, expected).options.model_dump(mode="json", exclude_none=True)
    table = getattr(study, _TABLES[kind])
    if kind == "dataset":
        settings = type(table.options).model_validate(settings)
    written = table.model_copy(update={"options": settings})
    return study.model_copy(update={_TABLES[kind]: written})


def _check(study: StudyConfig) -> None:
    """Build what the plug-ins make once, try it, and hold it to what privacy needs."""
    from medfed.common.models import build_model

    task = make_task(study)
    # Pretrained weights have a check of their own, and may be large.
    bare = study.model.model_copy(update={"weights": "", "weights_sha256": ""})
    model = build_model(study.model_copy(update={"model": bare}), task.num_outputs)
    check_together(model, task, study)
    if study.privacy.enabled:
        check_images_apart(model, task, study)
