"""`medfed site init`'s folder: explained, private, read back as it was meant, never overwritten."""

import stat
import sys
from pathlib import Path

import pytest

from medfed.client.agent.setup import (
    Answers,
    check_alike,
    check_site_name,
    check_store,
    set_up,
    site_toml,
)
from medfed.client.agent.site_file import add_address
from medfed.client.audit_log import AuditLog
from medfed.client.site import PolicySection, load_site
from medfed.common.errors import SiteConfigError
from medfed.common.ledger import Ledger, Spend

sys.path.insert(0, str(Path(__file__).parent))

from trial_hospital import NUM_PATIENTS, make_store

SPEND = Spend(
    release="r",
    study="s",
    run="run",
    round_number=1,
    unit="patient",
    images_per_patient=1,
    noise_multiplier=1.0,
    sample_rate=0.1,
    steps=1,
    max_grad_norm=1.0,
    noise="secure",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("stores"), "a", "b")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_site_reads_back_as_it_was_answered(tmp_path: Path, store: Path) -> None:
    subset = tmp_path / "subset.json"
    subset.write_text('{"train": [[0]], "test": [[1]]}')
    site = set_up(
        tmp_path / "hospital",
        Answers(
            name="st-mary",
            stores=(store,),
            subset=subset,
            unit="site",
            max_epsilon=2.5,
            target_delta=1e-6,
            public_num_patients=120,
            release_evaluation=True,
        ),
    )
    assert site.name == "st-mary"
    assert [site.path(path) for path in site.data.stores] == [store]
    assert site.path(site.data.subset) == subset
    assert site.data.public_num_patients == 120
    assert site.policy == PolicySection(
        unit="site", max_epsilon=2.5, target_delta=1e-6, release_evaluation=True
    )


def test_defaults_are_the_strictest_that_make_sense(tmp_path: Path, store: Path) -> None:
    site = set_up(tmp_path, Answers(name="one", stores=(store,)))
    assert site.policy == PolicySection()
    assert (site.policy.unit, site.policy.release_evaluation) == ("patient", False)
    assert not site.policy.allow_seeded_noise
    assert site.connection.bundles == ()


def test_every_policy_key_is_there_with_its_meaning(tmp_path: Path, store: Path) -> None:
    text = site_toml(tmp_path, Answers(name="one", stores=(store,)))
    lines = text.splitlines()
    for name, field in PolicySection.model_fields.items():
        [place] = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        above = []
        for line in reversed(lines[:place]):
            if not line.startswith("#"):
                break
            above.insert(0, line.removeprefix("# "))
        assert " ".join((field.description or "").split()) in " ".join(above)
    assert max(map(len, lines)) <= 100


def test_keys_and_state_are_private_and_the_log_begins(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "hospital"
    set_up(folder, Answers(name="one", stores=(store,)))
    assert mode(folder) == mode(folder / "state") == mode(folder / "keys") == 0o700
    for secret in ("site.toml", "state/ledger.key", "keys/node.key", "state/audit.jsonl"):
        assert mode(folder / secret) == 0o600, secret
    assert (folder / "keys/node.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    [entry] = AuditLog(folder / "state").entries()
    assert entry.event == "installed"


def test_nothing_is_overwritten(tmp_path: Path, store: Path) -> None:
    folder = tmp_path / "hospital"
    set_up(folder, Answers(name="one", stores=(store,)))
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(SiteConfigError, match="exists and is left as it is"):
        set_up(folder, Answers(name="two", stores=(store,)))
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (tmp_path / "file").touch()
    with pytest.raises(SiteConfigError, match="Expected a folder"):
        set_up(tmp_path / "file", Answers(name="two", stores=(store,)))


def test_state_that_is_there_already_keeps_its_ledger(tmp_path: Path, store: Path) -> None:
    with Ledger(tmp_path / "state").locked() as ledger:
        ledger.append(SPEND)
    (tmp_path / "state").chmod(0o755)
    set_up(tmp_path, Answers(name="one", stores=(store,)))
    assert [entry.spend for entry in Ledger(tmp_path / "state").entries()] == [SPEND]
    assert mode(tmp_path / "state") == 0o700


def test_enrolment_finds_the_place_for_its_address(tmp_path: Path, store: Path) -> None:
    set_up(tmp_path, Answers(name="one", stores=(store,)))
    before = (tmp_path / "site.toml").read_text()
    assert add_address(tmp_path / "site.toml", "fed.example.org:8443")
    assert load_site(tmp_path / "site.toml").connection.address == "fed.example.org:8443"
    after = (tmp_path / "site.toml").read_text()
    assert after == before.replace('address = ""', 'address = "fed.example.org:8443"')


def test_store_inside_the_folder_moves_with_it(tmp_path: Path) -> None:
    inside = make_store(tmp_path / "hospital" / "stores", "a", "b")
    site = set_up(tmp_path / "hospital", Answers(name="one", stores=(inside,)))
    assert site.data.stores == (f"stores/{inside.name}",)
    (tmp_path / "hospital").rename(tmp_path / "moved")
    moved = load_site(tmp_path / "moved" / "site.toml")
    assert check_store(moved.path(moved.data.stores[0])).classes == ("a", "b")


@pytest.mark.parametrize("path", ["sto\"re's", "ünïcode", "back\\slash", "a b", "x]#y"])
def test_odd_paths_are_written_so_that_they_read_back(tmp_path: Path, path: str) -> None:
    site = set_up(tmp_path, Answers(name="one", stores=(tmp_path / path,)))
    assert site.data.stores == (path,)


@pytest.mark.parametrize("changes", [{"max_epsilon": -1.0}, {"target_delta": 1.0}])
def test_impossible_answer_makes_nothing(tmp_path: Path, store: Path, changes: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(SiteConfigError, match=next(iter(changes))):
        set_up(tmp_path / "hospital", Answers(name="one", stores=(store,), **changes))
    assert not (tmp_path / "hospital").exists()


def test_folder_that_is_no_store_is_told_with_the_way_out(tmp_path: Path, store: Path) -> None:
    assert len(check_store(store)) == 2 * NUM_PATIENTS
    with pytest.raises(SiteConfigError, match=r"not there.*medfed data prepare"):
        check_store(tmp_path / "nowhere")
    with pytest.raises(SiteConfigError, match=r"no prepared store.*medfed data prepare"):
        check_store(tmp_path)
    with pytest.raises(SiteConfigError, match=f"holds some: name {store}"):
        check_store(store.parent)
    (tmp_path / "store.json").write_text('{"format": 2}')
    with pytest.raises(SiteConfigError, match="cannot be used"):
        check_store(tmp_path)


def test_stores_of_different_labels_are_refused(tmp_path: Path, store: Path) -> None:
    other = make_store(tmp_path, "a", "c")
    check_alike([check_store(store), check_store(store)])
    with pytest.raises(SiteConfigError, match="same task and labels"):
        check_alike([check_store(store), check_store(other)])


@pytest.mark.parametrize("name", ["", "a b", "../x", "-a", "ä", "x" * 65])
def test_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(SiteConfigError, match="Expected a name"):
        check_site_name(name)
