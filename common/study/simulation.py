"""`[simulation]`: what stands in for hospitals. Not sent to sites."""

import difflib
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from medfed.common.study.base import Fraction, Name, PositiveFloat, PositiveInt, Section
from medfed.common.study.failures import FailuresSection
from medfed.common.study.labels import AnnotationSection, LabelsSection
from medfed.common.study.shift import ShiftSection


class MissingSection(Section):
    """`[simulation.partition.missing]`: classes that sites lack. Drawn, or given by site."""

    num_classes: PositiveInt | None = None
    """Classes that each site lacks, drawn so that every class is at some site."""
    at_sites: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """The classes that a site lacks, by site name."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.num_classes is None) == (not self.at_sites):
            raise ValueError(
                "expected one of num_classes and at_sites. num_classes = 1 draws a class a site; "
                'at_sites names them, e.g. site-1 = ["normal"].'
            )
        return self


class LabelNoiseSection(Section):
    """`[simulation.partition.noise]`: wrong training labels. Held-out labels stay true."""

    rate: Fraction
    """Probability that a training patient's labels are wrong: all of the patient's images."""
    pairs: dict[str, str] = Field(default_factory=dict)
    """What a class is mistaken for, by class, e.g. mel = "nv"; empty: any other class."""
    sites: tuple[str, ...] = ()
    """Sites that make these mistakes; empty: all."""


class PartitionSection(Section):
    """`[simulation.partition]`: how a data set becomes sites. Always by patient."""

    method: Literal[
        "iid", "dirichlet", "quantity", "pathological", "natural", "scanner", "temporal"
    ] = "iid"
    """iid; dirichlet label skew; quantity skew (sizes differ); pathological (some classes a site);
    natural (a metadata column); scanner (the columns that name the machine); temporal (periods of
    a date column)."""
    num_sites: PositiveInt = 4
    """Fake hospitals; natural and scanner take one for each value of the column."""
    alpha: PositiveFloat = 0.5
    """Dirichlet concentration: small is skewed."""
    sizes: Literal["auto", "equal", "lognormal", "power"] = "auto"
    """Law of the sites' sizes, with any method that draws or cuts; auto: equal, with quantity
    lognormal."""
    sigma: PositiveFloat = 1.0
    """Standard deviation of log site size (lognormal)."""
    exponent: PositiveFloat = 1.0
    """Sizes fall as rank^-exponent, site 1 the largest (power)."""
    classes_per_site: PositiveInt = 2
    """Classes at each site (pathological), by each patient's most frequent class."""
    column: str = ""
    """Metadata column whose values are the sites (natural), or dates (temporal), or which names
    the scanner (unset: scanner, manufacturer, model as far as there are)."""
    min_patients: PositiveInt = 8
    """Patients every site must have; a natural site with fewer is left out and reported."""
    missing: MissingSection | None = None
    """Classes that sites lack."""
    shift: ShiftSection | None = None
    """Scanners of the sites' own."""
    noise: LabelNoiseSection | None = None
    """Wrong training labels."""

    @property
    def size_law(self) -> Literal["equal", "lognormal", "power"]:
        """`sizes` with auto resolved."""
        if self.sizes == "auto":
            return "lognormal" if self.method == "quantity" else "equal"
        return self.sizes

    @model_validator(mode="after")
    def _column(self) -> Self:
        if self.method in ("natural", "temporal") and not self.column:
            example = "dataset" if self.method == "natural" else "study_date"
            raise ValueError(
                f'expected column with method = "{self.method}", got none. '
                f'Name the metadata column, e.g. column = "{example}".'
            )
        return self

    @model_validator(mode="after")
    def _combination(self) -> Self:
        if self.method in ("natural", "scanner") and self.sizes != "auto":
            raise ValueError(
                f'sizes = "{self.sizes}" with method = "{self.method}": these sites are as large '
                "as they are. Remove it."
            )
        if self.method == "quantity" and self.sizes == "equal":
            raise ValueError('sizes = "equal" with method = "quantity". Set method = "iid".')
        if self.method == "pathological" and self.missing is not None:
            raise ValueError(
                'missing with method = "pathological": sites have classes_per_site classes and '
                "lack the others already. Remove it."
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


class PaceSection(Section):
    """`[simulation.pace]`: with fedbuff, how long a site trains, by a clock that nobody waits for.

    Decides who is first; comes from the study's seed, so a run repeats bit for bit.
    """

    seconds: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Median virtual seconds of one round's training, by site name; 1 for the others."""
    sigma: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    """Standard deviation of the logarithm of a training's time; 0 for always the median."""


class OptionsSection(Section):
    """`[simulation.options]`: what a data set's loader lets one choose. Unset: the loader's own.

    Those of a plug-in are its own, and checked by it.
    """

    model_config = ConfigDict(extra="allow")

    uncertain: Literal["zeros", "ones", "leave_out"] | None = None
    """chexpert: an uncertain observation is absent (zeros, unless set), present (ones), or leaves
    the image out."""
    observer: Literal[1, 2] | None = None
    """chase_db1: whose masks, the first observer's (unless set) or the second's."""

    def chosen(self) -> dict[str, Any]:
        """Return the options that are set, by name."""
        return self.model_dump(exclude_none=True)


# By data set. A test holds this to the loaders' signatures.
LOADER_OPTIONS = {"chexpert": ("uncertain",), "chase_db1": ("observer",)}


DATASETS = (
    "phantom",
    "ham10000",
    "medmnist",
    "lgg",
    "msd",
    "chase_db1",
    "busi",
    "covid_chestxray",
    "iu_xray",
    "isic2019",
    "brats",
    "diabetic_retinopathy",
    "aptos",
    "refuge",
    "oct_amd",
    "vqa_rad",
    "nih_chestxray14",
    "chexpert",
    "montgomery_tb",
    "shenzhen_tb",
    "tb_chestxray",
    "luna16",
    "cbis_ddsm",
    "duke_breast_mri",
)


class SimulationSection(Section):
    """`[simulation]`: what stands in for hospitals. Not sent to sites."""

    dataset: Name = Field(examples=list(DATASETS))
    """The data set; `medfed simulate --data FOLDER` says where its files are. Any other name is a
    plug-in's."""
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
    resamples: Annotated[int, Field(ge=0, le=100_000)] = 1000
    """Bootstrap resamples of the held-out patients, for 95 % intervals of the final figures and of
    differences between arms; 0 for none."""
    subgroups: tuple[str, ...] = ()
    """Metadata columns, e.g. sex and age, by whose values the final figures are told apart."""
    failures: FailuresSection = FailuresSection()
    labels: LabelsSection = LabelsSection()
    annotation: AnnotationSection | None = None
    pace: PaceSection = PaceSection()
    partition: PartitionSection = PartitionSection()
    phantom: PhantomSection = PhantomSection()
    options: OptionsSection = OptionsSection()

    @property
    def is_plugin(self) -> bool:
        """Whether the data set is not one of those that medfed reads itself."""
        return self.dataset not in DATASETS

    @model_validator(mode="after")
    def _options_of_the_loader(self) -> Self:
        if self.is_plugin:
            return self
        if self.options.model_extra:
            name, ours = next(iter(self.options.model_extra)), list(OptionsSection.model_fields)
            nearest = difflib.get_close_matches(name, ours, n=1, cutoff=0.5)
            raise ValueError(
                f"options.{name}: unknown key. "
                + (f"Did you mean {nearest[0]}?" if nearest else f"Known: {', '.join(ours)}.")
            )
        known = LOADER_OPTIONS.get(self.dataset, ())
        wrong = [name for name in self.options.chosen() if name not in known]
        if wrong:
            theirs = [name for name, options in LOADER_OPTIONS.items() if wrong[0] in options]
            has = f"which has {', '.join(known)}" if known else "which has none"
            raise ValueError(
                f"options.{wrong[0]} is an option of {', '.join(theirs)}, got it with dataset = "
                f'"{self.dataset}", {has}. Remove it.'
            )
        return self

    @model_validator(mode="after")
    def _arms(self) -> Self:
        if "federated" not in self.arms:
            raise ValueError('expected "federated" among arms. Add it: it is what this runs.')
        return self
