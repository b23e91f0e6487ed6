"""`[plugins]`: whose code a study needs besides medfed's own, and where a plug-in cannot go.

A name that is not one of medfed's own is a plug-in's. Reading a study loads no plug-in: sites
decide first (`client.plugins`).
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue

from medfed.common.study.base import Section, Sorted

if TYPE_CHECKING:
    from medfed.common.study.config import StudyConfig

PluginKind = Literal["model", "task", "aggregation", "dataset"]
Requirement = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9.!+_-]+)?$")]
PluginOptions = Annotated[dict[str, JsonValue], Sorted]
"""A plug-in's own settings, checked by the plug-in."""


class PluginsSection(Section):
    """`[plugins]`: the package and version of each plug-in that the study names.

    `medfed simulate` and `medfed federation run` fill this in. A site refuses another version.
    """

    model: Requirement = ""
    """Of model.name, e.g. "my-package==1.2.0"; empty for a network of medfed's own."""
    task: Requirement = ""
    """Of task.plugin."""
    aggregation: Requirement = ""
    """Of aggregation.rule. Runs at the coordinator only."""
    dataset: Requirement = ""
    """Of simulation.dataset. Not sent to sites."""


def plugin_names(study: "StudyConfig") -> dict[PluginKind, str]:
    """Return the names of the plug-ins that `study` needs, by kind."""
    names: dict[PluginKind, str] = {}
    if study.model.is_plugin:
        names["model"] = study.model.name
    if study.task.plugin:
        names["task"] = study.task.plugin
    if study.aggregation.is_plugin:
        names["aggregation"] = study.aggregation.rule
    if study.simulation is not None and study.simulation.is_plugin:
        names["dataset"] = study.simulation.dataset
    return names


def plugin_options(study: "StudyConfig", kind: PluginKind) -> dict[str, Any]:
    """Return what the study sets of a plug-in's own settings."""
    if kind == "dataset":
        assert study.simulation is not None  # it names the plug-in
        return study.simulation.options.chosen()
    if kind == "model":
        return dict(study.model.options)
    return dict(study.task.options if kind == "task" else study.aggregation.options)


def check_plugins(study: "StudyConfig") -> None:
    """Refuse what a plug-in cannot do or would do without effect.

    Raises:
        ValueError: With the reason and the way out.
    """
    for options, key, is_plugin in (
        (study.model.options, "model.name", study.model.is_plugin),
        (study.task.options, "task.plugin", bool(study.task.plugin)),
        (study.aggregation.options, "aggregation.rule", study.aggregation.is_plugin),
    ):
        if options and not is_plugin:
            raise ValueError(
                f"{key.partition('.')[0]}.options are a plug-in's settings, and {key} names none. "
                "Remove them, or name the plug-in."
            )
    if study.model.is_plugin:
        _check_model(study)
    if study.task.plugin and study.task.type == "report":
        raise ValueError(
            f'task.plugin = "{study.task.plugin}" with task.type = "report": words, loss and beam '
            'search of reports belong together. Set task.type = "classification" or "segmentation".'
        )
    if study.aggregation.is_plugin:
        _check_rule(study)


def _check_model(study: "StudyConfig") -> None:
    named = f'model.name = "{study.model.name}", a plug-in,'
    if study.task.type == "report":
        raise ValueError(
            f'{named} with task.type = "report": words are written by report_lstm alone. Set '
            'model.name = "report_lstm".'
        )
    if study.uses_fusion:
        raise ValueError(
            f'{named} with data.tabular or model.fusion = "late": a plug-in gets images alone. '
            'Remove them; views go in side by side with fusion = "early".'
        )
    if study.model.norm == "batch":
        raise ValueError(
            f'{named} with model.norm = "batch", which it never sees. Remove it; a choice of '
            "layers belongs into model.options."
        )


def _check_rule(study: "StudyConfig") -> None:
    asked = f'aggregation.rule = "{study.aggregation.rule}", a plug-in,'
    if study.secure_aggregation.enabled:
        raise ValueError(
            f"{asked} with secure_aggregation.enabled = true: a server that sees only the sum has "
            "no updates to give it. Remove one of the two."
        )
    if study.privacy.unit == "site":
        raise ValueError(
            f'{asked} with privacy.unit = "site": its noise is for the mean of clipped updates. '
            'Remove the rule, or set privacy.unit = "patient", which noises at the sites.'
        )
    if study.federation.algorithm in ("scaffold", "fednova", "qfedavg", "cyclic", "fedbuff"):
        raise ValueError(
            f'{asked} with federation.algorithm = "{study.federation.algorithm}", which has a rule '
            "of its own. Remove one of the two."
        )
