"""A researcher's own data set, from a package of their own (ADR 26). For simulations only."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from medfed.client.data.records import SourceDataset
from medfed.common.errors import StudyError
from medfed.common.plugins.loading import blaming, load_plugin
from medfed.common.study import Section, StudyConfig

Options = TypeVar("Options", bound=Section)


@dataclass(frozen=True)
class DatasetPlugin(Generic[Options]):
    """A data set; its entry point is in the group `medfed.datasets`.

    Attributes:
        options: What `[simulation.options]` may hold.
        load: From these and the folder or file of `--data` (none, if nobody gave it) to the
            records. Their `digest` is of all that they depend on: stores are kept by it.
    """

    options: type[Options]
    load: Callable[[Options, Path | None], SourceDataset]


def load_plugin_dataset(study: StudyConfig, data: Path | None) -> SourceDataset:
    """Return the data set that a plug-in makes of `data`.

    Raises:
        StudyError: The plug-in cannot be had, or failed.
        DataError: What it says of files that are missing or malformed.
    """
    loaded = load_plugin(study, "dataset", DatasetPlugin)
    with blaming(loaded.origin):
        dataset = loaded.plugin.load(loaded.options, data)
    if not isinstance(dataset, SourceDataset):
        raise StudyError(
            f"The {loaded.origin}: expected a SourceDataset, got {type(dataset).__name__}. That is "
            "for the package's authors to mend."
        )
    return dataset
