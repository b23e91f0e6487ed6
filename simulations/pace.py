"""Who is first in a simulation with fedbuff: `[simulation.pace]`, handed to the server in its plan.

The server gets no `[simulation]`: a study is the same for it as in a deployment.
"""

from collections.abc import Collection
from dataclasses import replace

from medfed.common.errors import StudyError
from medfed.common.study import StudyConfig
from medfed.server.records import RunPlan


def with_pace(plan: RunPlan, study: StudyConfig) -> RunPlan:
    """Return the plan of an arm that runs `study`, with a virtual clock if that is fedbuff.

    Sites that the section does not name take one second.
    """
    if study.simulation is None or study.federation.algorithm != "fedbuff":
        return plan
    pace = study.simulation.pace
    return replace(plan, virtual_seconds=dict(pace.seconds), virtual_sigma=pace.sigma)


def check_pace(study: StudyConfig, sites: Collection[str]) -> None:
    """Check that sites which have a time by name exist.

    Raises:
        StudyError: One does not.
    """
    assert study.simulation is not None
    unknown = set(study.simulation.pace.seconds) - set(sites)
    if unknown:
        raise StudyError(
            f"simulation.pace.seconds names {', '.join(sorted(unknown))}; the sites are "
            f"{', '.join(sorted(sites))}. `medfed data partition` shows them."
        )
