import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from medfed.common.errors import DataError
from medfed.simulations.datasets.iu_xray_reports import iu_xray_reports

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{uid}"/>
<MedlineCitation><Article><Abstract>
  <AbstractText Label="INDICATION">Cough.</AbstractText>
  <AbstractText Label="FINDINGS">{findings}</AbstractText>
  <AbstractText Label="IMPRESSION">Clear &amp; normal.</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>Opacity/lung/base</major><major>Opacity/lung/hilum</major>
<major>Cardiomegaly </major><automatic>opacity</automatic></MeSH>
</eCitation>
"""


def _xml(uid: str, findings: str = "Hazy.") -> bytes:
    return XML.format(uid=uid, findings=findings).encode()


def _write_archive(folder: Path, **members: bytes) -> Path:
    with tarfile.open(folder / "NLMCXR_reports.tgz", "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"ecgen-radiology/{name}.xml")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return folder


def _write_csv(folder: Path, *rows: str) -> Path:
    header = "uid,MeSH,Problems,image,indication,comparison,findings,impression"
    (folder / "indiana_reports.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def test_iu_xray_reports_reads_the_archive_in_order_of_numbers(tmp_path: Path) -> None:
    first, second = iu_xray_reports(_write_archive(tmp_path, a=_xml("10"), b=_xml("9", "")))
    assert (first.uid, second.uid) == ("9", "10")
    assert first.report == "Clear & normal."
    assert second.report == "Hazy. Clear & normal."
    assert (second.findings, second.impression) == ("Hazy.", "Clear & normal.")
    assert second.mesh == "Opacity/lung/base;Opacity/lung/hilum;Cardiomegaly"
    assert second.problems == ("Opacity", "Cardiomegaly")
    assert second.source == "NLMCXR_reports.tgz ecgen-radiology/a.xml"
    assert second.split is None


def test_iu_xray_reports_reads_the_unpacked_archive_alike(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    packed = iu_xray_reports(_write_archive(tmp_path / "archive", a=_xml("10"), b=_xml("9")))
    folder = tmp_path / "unpacked" / "ecgen-radiology"
    folder.mkdir(parents=True)
    (folder / "a.xml").write_bytes(_xml("10"))
    (folder / "b.xml").write_bytes(_xml("9"))
    (folder / "._b.xml").write_bytes(b"resource fork")
    unpacked = iu_xray_reports(tmp_path / "unpacked")
    assert [text.report for text in unpacked] == [text.report for text in packed]
    assert unpacked[0].source == "ecgen-radiology/b.xml"


def test_iu_xray_reports_prefers_the_table(tmp_path: Path) -> None:
    _write_archive(tmp_path, a=_xml("1"), b=_xml("2"))
    _write_csv(tmp_path, '1,Opacity/lung ;Lung,Opacity ;Lung,,,,"From the\n table.",')
    (text,) = iu_xray_reports(tmp_path)
    assert text.report == "From the table."
    assert text.findings == "From the\n table."
    assert (text.mesh, text.problems) == ("Opacity/lung;Lung", ("Opacity", "Lung"))
    assert text.source == "indiana_reports.csv line 3"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<eCitation>", "no report of Open-i"),
        (b"<eCitation/>", "the number of an examination, got ''"),
        (_xml("ten"), "the number of an examination, got 'ten'"),
        (
            b'<!DOCTYPE a [<!ENTITY b "ha">]><eCitation><uId id="CXR1"/>&b;</eCitation>',
            "another XML",
        ),
        (b"<eCitation>" + b" " * 1_000_001, "another XML"),
    ],
)
def test_iu_xray_reports_refuses_another_xml(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        iu_xray_reports(_write_archive(tmp_path, a=content))
    assert "ecgen-radiology/a.xml" in str(caught.value)


def test_iu_xray_reports_never_follows_a_member_out_of_the_archive(tmp_path: Path) -> None:
    (tmp_path / "secret.xml").write_bytes(_xml("1"))
    with tarfile.open(tmp_path / "NLMCXR_reports.tgz", "w:gz") as archive:
        link = tarfile.TarInfo("ecgen-radiology/1.xml")
        link.type, link.linkname = tarfile.SYMTYPE, os.fspath(tmp_path / "secret.xml")
        archive.addfile(link)
    with pytest.raises(DataError, match="got none, or nothing in it"):
        iu_xray_reports(tmp_path)


@pytest.mark.parametrize("keep", [0, 40, 0.5, 0.95])
def test_iu_xray_reports_refuses_a_damaged_archive(tmp_path: Path, keep: float) -> None:
    path = _write_archive(tmp_path, a=_xml("1"), b=_xml("2", os.urandom(3000).hex()))
    archive = path / "NLMCXR_reports.tgz"
    content = archive.read_bytes()
    archive.write_bytes(content[: int(keep if keep > 1 else keep * len(content))])
    with pytest.raises(DataError, match=r"NLMCXR_reports\.tgz cannot be read"):
        iu_xray_reports(tmp_path)


def test_iu_xray_reports_refuses_an_examination_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"examination 1 is also in .*a\.xml"):
        iu_xray_reports(_write_archive(tmp_path, a=_xml("1"), b=_xml("1")))
    _write_csv(tmp_path, "1,,,,,,A.,", "1,,,,,,B.,")
    with pytest.raises(DataError, match=r"line 3: examination 1 is also in .* line 2"):
        iu_xray_reports(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"train": 1},
        {"train": [{"id": "CXR1_IM-1", "report": "A."}]},
        {"train": [{"id": "CXR1_IM-1", "report": "A.", "split": "dev"}]},
        {"train": ["CXR1_IM-1"]},
    ],
)
def test_iu_xray_reports_refuses_another_annotation(tmp_path: Path, content: Any) -> None:
    (tmp_path / "annotation.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotation\.json: expected the keys train, val and test"):
        iu_xray_reports(tmp_path)


def test_real_iu_xray_table_and_xml_hold_the_same_texts(real_iu_xray: Path, tmp_path: Path) -> None:
    by_table = {text.uid: text for text in iu_xray_reports(real_iu_xray)}
    shutil.copy(real_iu_xray / "NLMCXR_reports.tgz", tmp_path)
    by_xml = {text.uid: text for text in iu_xray_reports(tmp_path)}
    # The XML has 65 examinations more: those without pictures.
    assert by_table.keys() <= by_xml.keys()
    assert (len(by_table), len(by_xml)) == (2277, 2342)
    for uid, text in by_table.items():
        assert text.findings == by_xml[uid].findings
        assert text.impression == by_xml[uid].impression
        assert text.mesh == by_xml[uid].mesh
        assert text.problems == by_xml[uid].problems


def test_real_iu_xray_annotation_holds_the_findings(real_iu_xray: Path, tmp_path: Path) -> None:
    by_table = {text.uid: text for text in iu_xray_reports(real_iu_xray)}
    shutil.copy(real_iu_xray / "annotation.json", tmp_path)
    alone = iu_xray_reports(tmp_path)
    assert len(alone) == 1762
    for text in alone:
        assert text.report == " ".join(by_table[text.uid].findings.split())
        assert text.split == by_table[text.uid].split is not None
        assert text.problems is None
