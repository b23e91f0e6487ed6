"""`medfed site releases`: the list as a table, and as JSON for programs."""

import json
from pathlib import Path

import pytest

from medfed.cli.site_releases import print_releases
from medfed.client.releases import Quantity, Release, write_release

SITE = 'name = "north"\n[data]\nstores = ["store"]\n'


@pytest.fixture
def site_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A site with three releases and a torn line."""
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "site.toml"
    path.write_text(SITE)
    update = (
        Quantity("site", 9, "public", "names the site"),
        Quantity("kind", 10, "public", "names the site"),
        Quantity("update", 1_234_567, "dp", "epsilon 2.310 of 8"),
    )
    for number in (1, 2):
        withheld = {"loss": "private under DP"}
        write_release(tmp_path / "state", release_of(number, "update", update, withheld))
    sums = (Quantity("count", 140, "none", "exact sums, no DP"),)
    write_release(tmp_path / "state", release_of(2, "sums", sums, {}))
    with (tmp_path / "state" / "releases.jsonl").open("a") as file:
        file.write('{"time": "2026')
    return path


def release_of(
    number: int, kind: str, quantities: tuple[Quantity, ...], withheld: dict[str, str]
) -> Release:
    return Release(
        time=f"2026-11-25T12:00:0{number}.000+00:00",
        run="run-7",
        study="pneumonia",
        round_number=number,
        kind=kind,
        quantities=quantities,
        withheld=withheld,
    )


def test_table_shows_quantities_costs_and_totals(
    site_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_releases(site_file)
    text = capsys.readouterr().out
    lines = text.splitlines()
    [first, _] = [line for line in lines if "DP: epsilon 2.310 of 8" in line]
    assert "update" in first
    assert "1,234,567" in first
    # Quantities of one cost share a line.
    assert sum("site, kind" in line and " 19 " in line for line in lines) == 2
    assert sum("withheld: private under DP" in line for line in lines) == 2
    assert "2026-11-25 12:00:01" in text
    totals = text[text.index("Bytes of all 3 replies") :]
    assert "2,469,134" in totals
    assert "140" in totals
    assert "1 half-written line(s)" in text


def test_json_holds_the_list_and_its_totals(
    site_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_releases(site_file, as_json=True)
    table = json.loads(capsys.readouterr().out)
    assert [release["kind"] for release in table["releases"]] == ["update", "update", "sums"]
    assert table["releases"][0]["num_bytes"] == 1_234_586
    assert table["releases"][0]["quantities"][2] == {
        "name": "update",
        "num_bytes": 1_234_567,
        "protection": "dp",
        "cost": "epsilon 2.310 of 8",
    }
    assert table["totals"]["update"] == {"public": 38, "dp": 2_469_134, "none": 0}
    assert table["torn_lines"] == 1


@pytest.mark.parametrize(("last", "shown"), [(0, 0), (1, 1), (2, 2), (9, 3)])
def test_last_limits_the_list_and_not_the_totals(
    site_file: Path, capsys: pytest.CaptureFixture[str], last: int, shown: int
) -> None:
    print_releases(site_file, last=last, as_json=True)
    table = json.loads(capsys.readouterr().out)
    assert len(table["releases"]) == shown
    assert table["totals"]["update"]["dp"] == 2_469_134


def test_site_from_which_nothing_left_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "site.toml").write_text(SITE)
    print_releases(tmp_path / "site.toml")
    assert "Bytes of all 0 replies" in capsys.readouterr().out
    assert not (tmp_path / "state").exists()
