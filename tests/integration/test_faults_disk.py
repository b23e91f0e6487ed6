"""The fault table, a full disk at a hospital: nothing leaves that cannot be written down."""

from collections.abc import Iterator

import pytest
import small_disk
from deployment import Deployment
from faults import SITES, Row, three_hospitals

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(small_disk.why_not()), reason=small_disk.why_not()),
]

VICTIM = "scanner-1"


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A coordinator that runs, and three hospitals."""
    with three_hospitals(tmp_path_factory.mktemp("faults")) as deployed:
        yield deployed


def test_site_sits_out_while_its_disk_is_full_and_is_back_once_it_is_not(
    hospitals: Deployment,
) -> None:
    state = hospitals.sites[VICTIM] / "state"
    with small_disk.small_disk(state) as disk:
        hospitals.start_sites()
        row = Row(hospitals, "noisy", "disk", rounds=4, min_sites=2, round_timeout_s=120)
        before = hospitals.site_status(VICTIM)
        with row.frozen_in_training(VICTIM, 2):
            disk.fill()
        # The second round was paid for and nothing of it left; the third is not even begun.
        row.until("two rounds without it", lambda: row.num_rounds() == 3)
        disk.free()
        records = row.finish()
        after = hospitals.site_status(VICTIM)
        assert after["pid"] == before["pid"]
        said = hospitals.medfed("site", "ledger", "verify", hospitals.sites[VICTIM] / "site.toml")
        assert "chain and signatures hold" in said
        hospitals.medfed("site", "stop", hospitals.sites[VICTIM] / "site.toml")
    statuses = [record.sites[VICTIM].status for record in records]
    assert statuses[0] == statuses[3] == "ok"
    assert set(statuses[1:3]) <= {"refused", "failed"}
    for record in records[1:3]:
        assert "/" not in record.sites[VICTIM].reason
    for site in set(SITES) - {VICTIM}:
        assert {record.sites[site].status for record in records} == {"ok"}
    charged = [entry.spend.round_number for entry in row.entries(VICTIM)]
    assert charged == [1, 2, 4]
