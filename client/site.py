"""`SiteConfig`: a hospital's own `site.toml`. Never transmitted."""

import os
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from medfed.common.errors import SiteConfigError
from medfed.common.study import Name, PositiveFloat, PositiveInt, Section
from medfed.common.study_file import describe_errors


class SiteDataSection(Section):
    """`[data]`: what this site trains on."""

    stores: tuple[str, ...] = Field(min_length=1)
    """Prepared stores, relative to site.toml."""
    subset: str = ""
    """JSON file naming which images of the stores are this site's, and their split."""
    public_num_patients: PositiveInt | None = None
    """Patients that this site states publicly; never computed from the data."""


class PolicySection(Section):
    """`[policy]`: what this site allows, whatever the server asks."""

    unit: Literal["patient", "record", "none"] = "patient"
    """Weakest unit of privacy accepted. none allows studies without privacy."""
    max_epsilon: PositiveFloat = 8.0
    """Budget of this data set, over all rounds, runs and studies together."""
    target_delta: float = Field(default=1e-5, gt=0, lt=1)
    """Delta at which the budget is stated."""
    max_images_per_patient: PositiveInt = 8
    """Largest K accepted under patient-level privacy."""
    allow_seeded_noise: bool = False
    """Let DP noise come from the study's seed. For simulations: such a run is not private."""
    release_evaluation: bool = False
    """Let exact evaluation counts of the held-out patients leave. No DP covers these."""
    release_words: Literal["never", "dp", "threshold"] = "dp"
    """Words of reports that may leave: never any; dp, chosen with noise that is charged to the
    budget; threshold, also chosen without noise, which no DP covers."""
    min_patients_per_word: PositiveInt = 5
    """Fewest patients whose reports hold a word before it leaves (under dp: but for a chance of
    the study's words_delta). A study can ask for more, never for less."""


class SiteComputeSection(Section):
    """`[compute]`: this site's machine."""

    device: Literal["study", "auto", "cpu", "cuda"] = "study"
    """Where to train; study follows the study's compute.device."""
    weights: str = ""
    """Folder with pretrained weights files, relative to site.toml; studies name them by hash."""


class SiteConfig(Section):
    """All of `site.toml`."""

    name: Name
    """This site's name in the federation."""
    data: SiteDataSection
    policy: PolicySection = PolicySection()
    compute: SiteComputeSection = SiteComputeSection()
    state: str = "state"
    """Folder of this site's ledger and keys, relative to site.toml. Back it up; never share it."""
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
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SiteConfigError(f"Expected a site file at {path}, found none.") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteConfigError(f"{path} cannot be read: {error}. Mend that line.") from None
    if "folder" in table:
        raise SiteConfigError(f"{path}: folder: unknown key. It is where the file lies.")
    try:
        return SiteConfig.model_validate({**table, "folder": path.resolve().parent})
    except ValidationError as error:
        raise SiteConfigError(describe_errors(error, SiteConfig, str(path))) from None
