import sys
import zipfile
from pathlib import Path

import pytest

from medfed.common.errors import DataError
from medfed.simulations.datasets.spreadsheet import read_xlsx

sys.path.insert(0, str(Path(__file__).parent))

from layouts_other import write_xlsx

ROWS = (("ID", "ImgName", "Label"), (1, "V0001.jpg", 1), (2, "A & B <1>", 0.5))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "inline"])
def test_xlsx_gives_texts_and_numbers_by_line_and_column(tmp_path: Path, shared: bool) -> None:
    write_xlsx(tmp_path / "t.xlsx", ROWS, shared=shared)
    table = read_xlsx(tmp_path / "t.xlsx", columns=("ImgName", "Label"), how_to_get="There.")
    assert table.header == ("ID", "ImgName", "Label")
    assert dict(table.rows) == {
        2: {"ID": "1", "ImgName": "V0001.jpg", "Label": "1"},
        3: {"ID": "2", "ImgName": "A & B <1>", "Label": "0.5"},
    }
    assert table.content == (tmp_path / "t.xlsx").read_bytes()


def _write_sheet(path: Path, sheet: str | bytes, strings: str = "") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", sheet)
        if strings:
            archive.writestr("xl/sharedStrings.xml", strings)


MAIN = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def test_xlsx_leaves_out_empty_rows_and_fills_gaps_and_joins_runs(tmp_path: Path) -> None:
    cells = (
        '<row r="1"><c r="A1" t="s"><v>0</v></c><c r="C1" t="s"><v>1</v></c></row>'
        '<row r="2"><c r="A2" s="3"/><c r="C2"/></row>'
        '<row r="5"><c r="B5"><v>7</v></c><c r="C5" t="str"><f>1+1</f><v>2</v></c></row>'
    )
    runs = "<r><t>Img</t></r><r><t>Name</t></r><rPh><t>reading</t></rPh>"
    strings = f"<sst {MAIN}><si>{runs}</si><si><t>Label</t></si></sst>"
    sheet = f"<worksheet {MAIN}><sheetData>{cells}</sheetData></worksheet>"
    _write_sheet(tmp_path / "t.xlsx", sheet, strings)
    table = read_xlsx(tmp_path / "t.xlsx", columns=("ImgName",), how_to_get="There.")
    assert dict(table.rows) == {5: {"ImgName": "", "Label": "2"}}


def test_xlsx_says_which_column_is_missing(tmp_path: Path) -> None:
    write_xlsx(tmp_path / "t.xlsx", ROWS)
    with pytest.raises(DataError, match=r"t\.xlsx line 1: expected the columns Name.*got ID, Img"):
        read_xlsx(tmp_path / "t.xlsx", columns=("Name",), how_to_get="There.")


BOMB = f'<!DOCTYPE a [<!ENTITY b "x">]><worksheet {MAIN}>&b;</worksheet>'


@pytest.mark.parametrize(
    ("sheet", "reason"),
    [
        ("<worksheet", "unclosed token"),
        (BOMB, "declarations"),
        (BOMB.encode("utf-16"), "codec"),
        (f'<worksheet {MAIN}><c r="A1" t="s"><v>9</v></c></worksheet>', "out of range"),
        (f"<worksheet {MAIN}><c><v>9</v></c></worksheet>", "without place"),
        (b" " * 50_000_001, "more than 50 MB"),
    ],
    ids=["broken", "entities", "utf-16", "no string", "no place", "bomb"],
)
def test_xlsx_refuses_a_wicked_sheet(tmp_path: Path, sheet: str | bytes, reason: str) -> None:
    _write_sheet(tmp_path / "t.xlsx", sheet)
    with pytest.raises(DataError, match=rf"t\.xlsx cannot be read.*{reason}.*There\."):
        read_xlsx(tmp_path / "t.xlsx", columns=("ImgName",), how_to_get="There.")


def test_xlsx_refuses_another_file(tmp_path: Path) -> None:
    # Old Excel, and a page that a browser saved instead of the file.
    for content in (b"\xd0\xcf\x11\xe0 old", b"<html>sign in</html>", b""):
        (tmp_path / "t.xlsx").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as an Excel sheet"):
            read_xlsx(tmp_path / "t.xlsx", columns=("ImgName",), how_to_get="There.")
