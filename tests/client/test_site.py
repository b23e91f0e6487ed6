"""A hospital's site.toml: strict defaults, errors that name the key."""

from pathlib import Path

import pytest

from medfed.client.site import load_site
from medfed.common.errors import SiteConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(text)
    return path


def test_site_defaults_are_the_strict_ones(tmp_path: Path) -> None:
    site = load_site(write(tmp_path, 'name = "north"\n[data]\nstores = ["store"]\n'))
    assert site.policy.unit == "patient"
    assert not site.policy.allow_seeded_noise
    assert not site.policy.release_evaluation
    assert site.policy.min_patients_per_count == 5
    assert site.policy.release_words == "dp"
    assert site.path("store") == tmp_path / "store"
    assert site.state_folder == tmp_path / "state"


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("name = \n", "line 1"),
        ('name = "north"\n', "data"),
        ('name = "../north"\n[data]\nstores = ["s"]\n', "name"),
        ('name = "n"\n[data]\nstores = []\n', "data.stores"),
        ('name = "n"\n[data]\nstores = ["s"]\n[policy]\nmax_epsilo = 1\n', "max_epsilon?"),
        ('name = "n"\n[data]\nstores = ["s"]\n[policy]\nmax_epsilon = -1\n', "max_epsilon"),
        ('name = "n"\n[data]\nstores = ["s"]\n[policy]\nmodels = ["rasnet18"]\n', "rasnet18"),
        ('name = "n"\n[data]\nstores = ["s"]\n[policy]\ntasks = ["detection"]\n', "policy.tasks"),
        (
            'name = "n"\n[data]\nstores = ["s"]\n[policy]\nrelease_metrics = ["auroc"]\n',
            "policy.release_metrics",
        ),
        ('name = "n"\n[data]\nstores = ["s"]\n[policy]\nmin_noise = 1\n', "min_noise_multiplier?"),
        ('name = "n"\nfolder = "/"\n[data]\nstores = ["s"]\n', "folder"),
    ],
)
def test_site_file_is_refused_by_key(tmp_path: Path, text: str, fragment: str) -> None:
    with pytest.raises(SiteConfigError) as caught:
        load_site(write(tmp_path, text))
    assert fragment in str(caught.value)


def test_a_changed_policy_holds_from_the_next_message_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'name = "n"\n[data]\nstores = ["s"]\n[policy]\nmax_epsilon = 8\n'
    path = write(tmp_path, text)
    assert load_site(path).policy.max_epsilon == 8
    write(tmp_path, text.replace("8", "2"))  # as long, and at once
    assert load_site(path).policy.max_epsilon == 2
    other = tmp_path / "other"
    other.mkdir()
    write(other, text)
    # The same name and text in another folder is another site.
    for folder in (tmp_path, other):
        write(folder, text)
        monkeypatch.chdir(folder)
        assert load_site(Path("site.toml")).state_folder == folder / "state"


def test_missing_site_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SiteConfigError, match="found none"):
        load_site(tmp_path / "site.toml")
