"""A network from a researcher's own package (ADR 26)."""

from torch import nn

from medfed.common.errors import StudyError
from medfed.common.plugins import ModelPlugin, NetworkShape
from medfed.common.plugins.loading import blaming, load_plugin
from medfed.common.study import StudyConfig


def build_plugin(study: StudyConfig, num_outputs: int) -> nn.Module:
    """Return the network that the study's plug-in builds.

    Raises:
        StudyError: The plug-in cannot be had, failed, or built something else.
    """
    loaded = load_plugin(study, "model", ModelPlugin)
    with blaming(loaded.origin):
        model = loaded.plugin.build(loaded.options, NetworkShape.of(study, num_outputs))
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        raise StudyError(
            f"The {loaded.origin}: expected a torch.nn.Module with parameters, got "
            f"{type(model).__name__}. That is for the package's authors to mend."
        )
    return model
