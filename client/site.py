"""`SiteConfig`: a hospital's own `site.toml`. Never transmitted."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medfed.client.data.pacs.settings import PacsSection
from medfed.common.errors import SiteConfigError
from medfed.common.study import Name, PositiveFloat, PositiveInt, Section
from medfed.common.study.labels import AnnotationSection
from medfed.common.study.model import CLASSIFIERS, REPORTERS, SEGMENTERS
from medfed.common.toml_files import parse_toml, read_text

Metric = Literal[
    "loss", "tables", "scores", "calibration", "overlap", "surfaces", "text", "findings"
]
"""Groups of evaluation sums (`Task.families`)."""


class SiteDataSection(Section):
    """`[data]`: what this site trains on."""

    stores: tuple[str, ...] = Field(min_length=1)
    """Prepared stores, relative to site.toml."""
    subset: str = ""
    """JSON file naming which images of the stores are this site's, and their split."""
    public_num_patients: PositiveInt | None = None
    """Patients that this site states publicly; never computed from the data."""


class PolicySection(Section):
    """`[policy]`: what this site allows, whatever the server asks.

    A study that asks more is refused before any data is read: the reason goes into this site's log,
    a code without detail to the server. Nothing that a study says can change what stands here.
    """

    unit: Literal["patient", "record", "site", "none"] = "patient"
    """Weakest unit of privacy accepted: patient, record, site, none, in this order.
    patient, record: this site's own training adds the noise, nobody else is trusted. site: also
    studies that hide whole sites, for which this site trains without noise and the server (or all
    sites together) adds it. Its update is then as good as the raw data against who sees it alone:
    the server, unless secure aggregation with distributed noise is on. none: also studies
    without privacy."""
    max_epsilon: PositiveFloat = 8.0
    """Budget of this data set, over all rounds, runs and studies together."""
    target_delta: float = Field(default=1e-5, gt=0, lt=1)
    """Delta at which the budget is stated."""
    max_images_per_patient: PositiveInt = 8
    """Largest K accepted under patient-level privacy."""
    min_noise_multiplier: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Least noise that a private study may ask for, in training, in words and in statistics; 0
    leaves it to the budget."""
    allow_seeded_noise: bool = False
    """Let DP noise come from the study's seed. For simulations: such a run is not private."""

    tasks: tuple[Literal["classification", "segmentation", "report"], ...] = ()
    """Kinds of task allowed; empty: all."""
    models: tuple[str, ...] = ()
    """Networks allowed, by model.name, and a report model's encoder too; empty: all."""
    allow_plugins: tuple[Name, ...] = ()
    """Packages whose models and tasks studies may use here; empty: none. Their code runs beside
    the images: name a package once it was looked at, and install it yourself. A study names the
    version too, and another one than the installed is refused."""
    min_participants: PositiveInt = 1
    """Fewest sites that must take part in a round. Without secure aggregation it is the server's
    word; with it, this site counts the keys of the others."""
    require_secure_aggregation: bool = False
    """Take part only where the server sees the sum of the updates and no update alone."""
    allow_activations: bool = False
    """Take part in split learning, in which this site trains the first and the last layers and the
    server those between. For every training image the server then gets what the first layers make
    of it, in every step, and a gradient. No noise covers that: an image can be made out from the
    one, the better the fewer layers are here, and its label worked out from the other. Images and
    labels themselves stay."""

    max_steps_per_round: PositiveInt = 10_000
    """Most optimiser steps a round, of studies that state steps."""
    max_epochs_per_round: PositiveInt = 50
    """Most passes over this site's images a round, of studies that state passes."""
    max_parameters: PositiveInt = 500_000_000
    """Largest network built here, numbers."""
    max_megapixels: PositiveFloat = 1024.0
    """Most pixels (or voxels) times channels that one batch holds, in millions."""

    release_evaluation: bool = False
    """Let exact evaluation sums of the held-out patients leave. No DP covers these."""
    release_metrics: tuple[Metric, ...] = ()
    """Which groups of those sums may leave; empty: all. Classification: loss; tables (truth
    against prediction: accuracy, sensitivity, kappa); scores (histograms of 1,024 bins: AUROC,
    average precision; of few patients they hold nearly every single score); calibration.
    Segmentation: loss; overlap; surfaces. Reports: loss; text; findings. The number of images goes
    with any of them."""
    min_patients_per_count: PositiveInt = 5
    """Fewest held-out patients that a sum may be about. Images that show (or lack) a class,
    structure or finding which fewer patients show (or lack) are left out of the evaluation as
    though they were not there, so that nothing about these patients follows from the rest; with
    too few patients in all, no sums leave."""
    release_words: Literal["never", "dp", "threshold"] = "dp"
    """Words of reports that may leave: never any; dp, chosen with noise that is charged to the
    budget; threshold, also chosen without noise, which no DP covers."""
    min_patients_per_word: PositiveInt = 5
    """Fewest patients whose reports hold a word before it leaves (under dp: but for a chance of
    the study's words_delta). A study can ask for more, never for less."""

    release_statistics: Literal["never", "dp", "suppressed"] = "dp"
    """Statistics of the training data that may leave (counts of patients, images and classes, grey
    levels, image sizes): never any; dp, with noise that is charged to the budget; suppressed, also
    without noise, small counts left out, which no DP covers."""
    min_statistics_count: PositiveInt = 10
    """Without noise: fewest patients that a statistic may be about. A study can ask for more, never
    for less."""

    @model_validator(mode="after")
    def _known_models(self) -> Self:
        known = (*CLASSIFIERS, *SEGMENTERS, *REPORTERS)
        for name in self.models:
            if name not in known and not self.allow_plugins:
                raise ValueError(
                    f'models: expected some of {", ".join(known)}, got "{name}". Correct it.'
                )
        return self


class SiteComputeSection(Section):
    """`[compute]`: this site's machine."""

    device: Literal["study", "auto", "cpu", "cuda"] = "study"
    """Where to train; study follows the study's compute.device."""
    weights: str = ""
    """Folder with pretrained weights files, relative to site.toml; studies name them by hash."""
    download_weights: bool = False
    """Fetch weights that are not there from the address that a study names. Else this site asks
    nobody but its coordinator."""


class ConnectionSection(Section):
    """`[connection]`: how this site reaches its coordinator. All connections go outward."""

    address: str = ""
    """host:port of the coordinator; `medfed site enroll` writes it."""
    ca: str = "keys/ca.pem"
    """Certificate authority that the coordinator's certificate must come from, relative to
    site.toml. No other is trusted."""
    key: str = "keys/node.key"
    """This site's private key towards the coordinator, relative to site.toml. It never leaves."""
    bundles: tuple[str, ...] = ()
    """SHA-256 of the bundles accepted; empty: that of the installed medfed alone. A bundle only
    names programs that this site installed: no code in it is ever run."""
    message_timeout_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """A message that takes longer is given up and its process ended; 0: the message's own
    deadline."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on 127.0.0.1 for Prometheus; unset: none."""


class SiteConfig(Section):
    """All of `site.toml`."""

    name: Name
    """This site's name in the federation."""
    data: SiteDataSection
    policy: PolicySection = PolicySection()
    compute: SiteComputeSection = SiteComputeSection()
    connection: ConnectionSection = ConnectionSection()
    annotation: AnnotationSection | None = None
    """Simulations only: an annotator who labels, as training goes on, some of the patients that
    `data.subset` calls unlabelled, with the labels of the store."""
    pacs: PacsSection | None = None
    """The hospital's own PACS, for `medfed data pacs` (docs/pacs.md)."""
    state: str = "state"
    """Folder of this site's ledger, keys and release list, relative to site.toml. Back it up;
    never share it."""
    folder: Path = Field(default=Path(), exclude=True)
    """Where site.toml lies (set on loading)."""

    def path(self, relative: str) -> Path:
        """Return a path of site.toml as an absolute one."""
        return Path(os.path.normpath(self.folder / relative))

    @property
    def state_folder(self) -> Path:
        """Folder of the ledger and keys."""
        return self.path(self.state)


def load_site(path: Path) -> SiteConfig:
    """Read and validate a `site.toml`.

    Raises:
        SiteConfigError: Missing, not TOML, unknown key or impossible value, with the way out.
    """
    missing = (
        f"Expected a site file at {path}, found none. Name it, or make a site with "
        "`medfed site init`."
    )
    text = read_text(path, SiteConfigError, missing)
    return _parsed(path.absolute(), text)


@lru_cache(maxsize=4096)
def _parsed(path: Path, text: str) -> SiteConfig:
    """Worked out once for each text: every message reads the file."""
    return parse_toml(text, path, SiteConfig, SiteConfigError, folder=path.resolve().parent)
