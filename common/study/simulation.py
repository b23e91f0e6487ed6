"""`[simulation]`: what stands in for hospitals. Not sent to sites."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfed.common.study.base import PositiveFloat, PositiveInt, Section


class PartitionSection(Section):
    """`[simulation.partition]`: how a data set becomes sites. Always by patient."""

    method: Literal["iid", "dirichlet", "quantity", "natural"] = "iid"
    """iid; dirichlet label skew; quantity skew (log-normal sizes); natural (a metadata column)."""
    num_sites: PositiveInt = 4
    """Fake hospitals; natural takes one for each value of the column."""
    alpha: PositiveFloat = 0.5
    """Dirichlet concentration: small is skewed."""
    sigma: PositiveFloat = 1.0
    """Standard deviation of log site size (quantity)."""
    column: str = ""
    """Metadata column whose values are the sites (natural)."""
    min_patients: PositiveInt = 8
    """Patients every site must have; a natural site with fewer is left out and reported."""

    @model_validator(mode="after")
    def _column(self) -> Self:
        if self.method == "natural" and not self.column:
            raise ValueError(
                'expected column with method = "natural", got none. '
                'Name the metadata column, e.g. column = "dataset".'
            )
        return self


class PhantomSection(Section):
    """`[simulation.phantom]`: size of the procedural cohort."""

    num_patients: PositiveInt = 1200
    """Patients in the whole cohort."""
    max_images_per_patient: PositiveInt = 3
    """Each patient has 1 to this many images."""
    num_scanners: Annotated[int, Field(ge=1, le=64)] = 4
    """Scanners, each with its own physics, prevalence and wording (the column scanner)."""
    modality: Literal["xray", "ct"] = "xray"
    """Chest radiograph-like or CT-slice-like images."""
    co_occurrence: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability of each further finding in a patient who has one (multilabel, reports)."""


class SimulationSection(Section):
    """`[simulation]`: what stands in for hospitals. Not sent to sites."""

    dataset: Literal[
        "phantom",
        "ham10000",
        "medmnist",
        "lgg",
        "msd",
        "chase_db1",
        "busi",
        "covid_chestxray",
        "iu_xray",
    ]
    """The data set; `medfed simulate --data FOLDER` says where its files are."""
    name: str = ""
    """Which set of a family, e.g. pneumoniamnist."""
    data: str = ""
    """Folder or file of the data set; relative to the study file. `--data` overrides it."""
    arms: tuple[Literal["federated", "pooled", "local"], ...] = ("federated", "pooled", "local")
    """What to train: the federation, all data in one place, every site alone."""
    max_epsilon: PositiveFloat = 10.0
    """Budget in each simulated site's policy for its data set: epsilon at target_delta."""
    public_num_patients: dict[str, PositiveInt] = Field(default_factory=dict)
    """Patients that a site states publicly, by site name; used under DP instead of counts."""
    partition: PartitionSection = PartitionSection()
    phantom: PhantomSection = PhantomSection()

    @model_validator(mode="after")
    def _arms(self) -> Self:
        if "federated" not in self.arms:
            raise ValueError('expected "federated" among arms. Add it: it is what this runs.')
        return self
