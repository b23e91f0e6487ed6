"""`check_columns`: a subgroup that is misspelt is found before anything is trained."""

import difflib
from collections.abc import Collection

from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig


def check_columns(study: StudyConfig, columns: Collection[str]) -> None:
    """Check that the data set has what `simulation.subgroups` names.

    Raises:
        StudyError: It has not; says what there is.
    """
    assert study.simulation is not None
    for name in study.simulation.subgroups:
        if name in columns:
            continue
        nearest = difflib.get_close_matches(name, columns, n=1, cutoff=0.5)
        raise StudyError(
            f"simulation.subgroups names {name}, which is no metadata column of this data set. "
            + (f"Did you mean {nearest[0]}? " if nearest else "")
            + f"There are: {', '.join(sorted(columns)) or 'none'}."
        )
