"""The documentation as a site: no link leads nowhere, every setting and command is there."""

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "docs"))

import build_docs as build
import docs_reference as reference

from medfed.cli.keys import sections
from medfed.client.data.archive.dataset_file import DatasetFile
from medfed.common import errors
from medfed.common.study import ModelSection, StudyConfig
from medfed.server.federation.home import FederationConfig

_LINK = re.compile(r'(?:href|src)="([^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    assert build.build(folder, ()) == []
    return folder


def test_every_link_of_every_page_leads_to_a_file(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for link in _LINK.findall(page.read_text()):
            if not re.match(r"https?:|mailto:", link):
                assert (page.parent / link.partition("#")[0]).exists(), f"{page}: {link}"


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text()
        assert "<script" not in text
        assert not re.search(r'<(?:link|img|iframe)[^>]+(?:href|src)="https?:', text), page


def test_front_page_leads_every_group_to_a_guide_and_a_tutorial(site: Path) -> None:
    links = set(_LINK.findall((site / "index.html").read_text()))
    for name in ("hospital", "research", "auditing", "coordinator", "data", "pacs"):
        assert f"{name}.html" in links
    for name in ("hospital", "research", "auditor"):
        assert f"tutorials/{name}.html" in links


def test_broken_link_and_anchor_are_found(tmp_path: Path) -> None:
    page = build.Page("x", "docs/x.md", "# X\n[a](none.md) [b](hospital.md#none) [c](#y) [d](#x)")
    broken: list[str] = []
    anchors = {"docs/hospital.md": {"there"}, "docs/x.md": {"x"}}
    places = {"docs/hospital.md": "hospital.html", "docs/x.md": "x.html"}
    build.rendered(page, places, anchors, tmp_path, broken)
    assert [line.split(": ")[1] for line in broken] == ["none.md", "hospital.md#none", "#y"]


def test_reference_has_every_setting_with_type_default_and_meaning() -> None:
    text = reference.settings(StudyConfig)
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert "## `[simulation.partition]`" in text
    assert len(rows) > 100
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 4, row
        assert all(cells), row
    [norm] = [row for row in rows if row.startswith("| `norm`")]
    assert "`group` or `batch`" in norm
    assert '`"group"`' in norm
    field = ModelSection.model_fields["hidden_size"]
    assert reference.kind(field.annotation, field) == "whole number, > 0"


def test_reference_has_every_command(site: Path) -> None:
    text = (site / "reference" / "commands.html").read_text()
    for command in ("medfed simulate", "medfed site enroll", "medfed data prepare"):
        assert f"<code>{command}</code>" in text
    assert "--install-completion" not in text
    assert not re.search(r"<li><code>[a-z-]+</code>: .*\.\.\.</li>", text)
    # Of an argument, too, it says what it is.
    assert "<code>RUN</code>: Run folder." in text


def test_reference_has_every_key_of_every_file(site: Path) -> None:
    for page, model in (("dataset", DatasetFile), ("federation", FederationConfig)):
        text = (site / "reference" / f"{page}.html").read_text()
        for _, section in [("", model), *sections(model)]:
            for name, field in section.model_fields.items():
                if not field.exclude and not reference._section(field.annotation):
                    assert f"<td><code>{name}</code>" in text, name
    text = (site / "reference" / "dataset.html").read_text()
    assert "[[labels.tables]]" in text
    assert "Limits that a file is held to by its header" in text
    assert "&quot;*_mask.png&quot;, &quot;old/*&quot;" in text


def test_reference_has_every_exit_code() -> None:
    rows = dict(re.findall(r"\| (\d+) \| (.*) \|", reference.exit_codes()))
    assert list(rows) == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "130"]
    assert "privacy ledger" in rows[str(errors.LedgerError.exit_code)]
    assert "study file" in rows[str(errors.StudyError.exit_code)]


@pytest.mark.slow
def test_docstrings_become_pages(tmp_path: Path) -> None:
    build.write_api(tmp_path, ["medfed.common.plugins", "medfed.server.aggregation.plugin"])
    page = (tmp_path / "medfed" / "common" / "plugins.html").read_text()
    assert "medfed.models" in page
    assert "ModelPlugin" in (tmp_path / "search.js").read_text()
