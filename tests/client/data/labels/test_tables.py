"""Tables as hospitals export them: encodings, delimiters, damage; and what a row says."""

import codecs
import sys
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from archives import KEY, LIMITS, join, write_picture, write_radiograph

from medfed.client.data.archive.limits import ReadLimits
from medfed.client.data.archive.problems import FileProblem
from medfed.client.data.deidentification.folders import deidentify_folder
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.labels.joined import LabelJoin
from medfed.client.data.labels.tables import BadRow, Row, open_table
from medfed.client.data.pseudonyms import pseudonym
from medfed.common.errors import DataError

TEXT = 'id,Größe,"the note"\nA1,1,"two\nlines, and a comma"\nB2,2,Prüfung\n'


def read(path: Path, *columns: str, **options: Any) -> tuple[list[Row | BadRow], str]:
    said: dict[str, Any] = {"delimiter": "auto", "encoding": "auto", "limits": LIMITS} | options
    with open_table(path, columns, **said) as table:
        return list(table.rows), table.note


def written(folder: Path, content: bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (TEXT.encode(), "utf-8"),
        (codecs.BOM_UTF8 + TEXT.encode(), "utf-8-sig"),
        (TEXT.encode("utf-16"), "utf-16"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "utf-16"),
        (TEXT.encode("cp1252"), "the byte f6 in line 1"),
    ],
)
def test_table_is_read_in_the_encoding_that_decodes(
    tmp_path: Path, content: bytes, note: str
) -> None:
    rows, said = read(written(tmp_path, content), "id", "größe", "the note")
    assert note in said
    assert rows[0] == Row(3, {"id": "A1", "größe": "1", "the note": "two\nlines, and a comma"})
    assert rows[1].cells["the note"] == "Prüfung"  # type: ignore[union-attr]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiter_and_line_ends_are_found(tmp_path: Path, delimiter: str, end: str) -> None:
    lines = [delimiter.join(cells) for cells in (["id", "a, b; c"], ["7", "x"], ["8", "y"])]
    if delimiter in ",;":
        lines[0] = f'id{delimiter}"a, b; c"'
    rows, _ = read(written(tmp_path, end.join(lines).encode()), "id", "a, b; c")
    assert [row.cells["id"] for row in rows if isinstance(row, Row)] == ["7", "8"]


def test_first_line_that_names_the_delimiter_is_obeyed(tmp_path: Path) -> None:
    rows, _ = read(written(tmp_path, b"sep=;\r\nid;label\r\n1;a,b\r\n"), "id", "label")
    assert rows == [Row(3, {"id": "1", "label": "a,b"})]


def test_rows_of_another_length_are_listed_and_not_shifted(tmp_path: Path) -> None:
    content = b"id,label,\n1,a\n2,b,\n3,c,d,e\n\n4,d,,,\n"
    rows, _ = read(written(tmp_path, content), "id", "label")
    assert [(type(row), row.line) for row in rows] == [
        (BadRow, 2), (Row, 3), (BadRow, 4), (Row, 6)]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", {}, "header"),
        (b"PK\x03\x04" + b"x" * 99, {}, r"spreadsheet.*Export it as CSV"),
        (b"id,label\n1,\x81\x8d\n", {}, r"the byte 81 in line 2.*encoding"),
        (b"id,label\n1,\xe9\n", {"encoding": "utf-8"}, "the byte e9 in line 2"),
        (b"id,label\n1,a\n2,\0b\n", {}, "zero character in line 3"),
        ("id,label\n1,a\n".encode("utf-16-le"), {}, r"utf-16-le"),
        (b"id,label,label\n1,a,b\n", {}, "one column 'label', got 2"),
        (b"id,lable\n1,a\n", {}, "Did you mean 'lable'"),
        (b"id;label\n1;a\n", {"delimiter": ","}, "name the delimiter"),
        (b'id,label\n1,"a\n2,b\n', {}, "quote that is never closed"),
        (b"id,label\n1,a\n", {"limits": ReadLimits(max_file_mb=1e-6)}, "at most 1e-06 MB"),
    ],
)
def test_table_that_is_none_is_refused_with_the_way_out(
    tmp_path: Path, content: bytes, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(FileProblem, match=message):
        read(written(tmp_path, content), "id", "label", **options)


def test_bomb_of_a_spreadsheet_is_never_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "labels.xlsx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(FileProblem, match="ids as text"):
            read(path, "id")
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_link_is_not_followed(tmp_path: Path) -> None:
    written(tmp_path, b"id\n1\n")
    (tmp_path / "link.csv").symlink_to("table.csv")
    with pytest.raises(FileProblem, match="got a link"):
        read(tmp_path / "link.csv", "id")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w") as file:
        file.write("id,label\n")
        file.writelines(f"{number:06d},class {number % 7}\n" for number in range(30_000))
    tracemalloc.start()
    try:
        with open_table(path, ["id", "label"], "auto", "auto", LIMITS) as table:
            assert sum(1 for _ in table.rows) == 30_000
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()


@pytest.fixture
def three_patients(tmp_path: Path) -> Path:
    for patient in ("0012", "Müller 7", "P3"):
        write_radiograph(tmp_path / "archive", patient)
    return tmp_path


def table(folder: Path, text: str, **section: Any) -> dict[str, Any]:
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    said = {"file": "labels.csv", "key": "patient", "key_column": "id", "label_column": "label"}
    return {"tables": [said | section]}


def classes_of(found: LabelJoin) -> list[tuple[str, ...]]:
    return sorted(labels.classes for labels in found.by_image.values())


def test_patients_are_found_by_their_ids_however_written(three_patients: Path) -> None:
    found = join(three_patients, table(three_patients, "id,label\n0012,a\n müller  7 ,b\nP3,c\n"))
    assert classes_of(found) == [("a",), ("b",), ("c",)]
    assert found.counts()["classes"]["b"] == {"images": 1, "patients": 1}


@pytest.mark.parametrize("by", ["raw ids", "pseudonyms"])
@pytest.mark.parametrize("archive", ["raw", "copies"])
def test_raw_ids_and_pseudonyms_find_archives_and_their_copies(
    tmp_path: Path, by: str, archive: str
) -> None:
    for patient in ("0012", "P3"):
        write_radiograph(tmp_path / "raw", patient, PatientName="Test^T", PatientSex="O",
                         PatientBirthDate="19700101", StudyDate="20260101", StudyTime="1200",
                         StudyID="1", AccessionNumber="", ReferringPhysicianName="",
                         BurnedInAnnotation="NO")  # fmt: skip
    if archive == "raw":
        (tmp_path / "raw").rename(tmp_path / "archive")
    else:
        deidentify_folder(tmp_path / "raw", tmp_path / "archive", Rules(), KEY)
    ids = ["0012", "P3"]
    if by == "pseudonyms":
        ids = [pseudonym(KEY, "patient", one) for one in ids]
    found = join(tmp_path, table(tmp_path, f"id,label\n{ids[0]},a\n{ids[1]},b\n"))
    assert classes_of(found) == [("a",), ("b",)]
    assert found.unmatched_rows == ()


@pytest.mark.parametrize(("kind", "end"), [("study", 1), ("series", 2), ("image", 3)])
@pytest.mark.parametrize("archive", ["raw", "copies"])
def test_uids_find_archives_and_their_copies(
    tmp_path: Path, kind: str, end: int, archive: str
) -> None:
    path = write_radiograph(tmp_path / "raw", "P3", BurnedInAnnotation="NO")
    uid = f"1.2.{80 + 51 * 31}.1.{end}"
    assert uid.encode() in path.read_bytes()
    if archive == "raw":
        (tmp_path / "raw").rename(tmp_path / "archive")
    else:
        deidentify_folder(tmp_path / "raw", tmp_path / "archive", Rules(), KEY)
    found = join(tmp_path, table(tmp_path, f"id,label\n{uid},a\n1.2.3.4.5,b\n", key=kind))
    assert classes_of(found) == [("a",)]
    assert [row.row for row in found.unmatched_rows] == [3]


def test_accession_number_finds_its_study(tmp_path: Path) -> None:
    write_radiograph(tmp_path / "archive", "P1", AccessionNumber="A77")
    write_radiograph(tmp_path / "archive", "P2", AccessionNumber="A78")
    found = join(tmp_path, table(tmp_path, "id,label\na77,a\nA79,b\n", key="accession"))
    assert classes_of(found) == [("a",)]


def test_keys_that_a_spreadsheet_spoilt_are_pointed_out(three_patients: Path) -> None:
    text = 'id,label\n12,a\n1.23E+05,b\n,c\n="0012",d\n'
    found = join(three_patients, table(three_patients, text))
    assert classes_of(found) == [("d",)]
    said = " ".join(found.suggestions)
    assert "1 keys would match with leading zeros" in said
    assert "key_width = 4" in said
    assert "look like 1.23E+05" in said
    assert [row.row for row in found.unmatched_rows] == [2, 3, 4]
    padded = join(three_patients, table(three_patients, "id,label\n12,a\n", key_width=4))
    assert classes_of(padded) == [("a",)]


def test_wrong_kind_of_key_is_pointed_out(three_patients: Path) -> None:
    found = join(three_patients, table(three_patients, "id,label\nP3-1.dcm,a\n"))
    assert any('"file" does' in text for text in found.suggestions)


def test_duplicate_keys_that_agree_are_one_and_others_conflict(three_patients: Path) -> None:
    text = "id,label\nP3,a\nP3,a\n0012,a\n0012,b\n"
    found = join(three_patients, table(three_patients, text))
    assert classes_of(found) == [("a",)]
    (conflict,) = found.conflicts
    assert conflict.said == (("labels.csv, line 4", "a"), ("labels.csv, line 5", "b"))
    assert "0012-1.dcm" in conflict.what
    assert len(found.left_out) == 1
    united = join(three_patients, table(three_patients, text) | {"conflicts": "any"})
    assert classes_of(united) == [("a",), ("a", "b")]


def test_class_columns_say_present_absent_uncertain_or_nothing(three_patients: Path) -> None:
    text = "id,edema,fracture\n0012,1.0,0\nP3,-1,\nMüller 7,,\n"
    columns = {"label_column": "", "class_columns": ["edema", "fracture"]}
    for uncertain, expected in (("absent", ()), ("present", ("edema",))):
        found = join(three_patients, table(three_patients, text, uncertain=uncertain, **columns))
        assert classes_of(found) == sorted([("edema",), expected])
        assert len(found.unlabelled) == 1
    left = join(three_patients, table(three_patients, text, uncertain="leave_out", **columns))
    assert classes_of(left) == [("edema",)]
    assert len(left.left_out) == 1
    bad = join(three_patients, table(three_patients, "id,edema\nP3,maybe\n", label_column="",
                                     class_columns=["edema"]))  # fmt: skip
    assert "got 'maybe'" in bad.unmatched_rows[0].reason


def test_two_tables_of_different_classes_do_not_contradict(three_patients: Path) -> None:
    (three_patients / "a.csv").write_text("id,edema\nP3,1\n")
    (three_patients / "b.csv").write_text("id,fracture\nP3,0\n")
    (three_patients / "c.csv").write_text("id,label\nP3,fracture\n")
    said = {"key": "patient", "key_column": "id"}
    a = said | {"file": "a.csv", "class_columns": ["edema"]}
    b = said | {"file": "b.csv", "class_columns": ["fracture"]}
    c = said | {"file": "c.csv", "label_column": "label"}
    assert classes_of(join(three_patients, {"tables": [a, b]})) == [("edema",)]
    found = join(three_patients, {"tables": [b, c]})
    assert [one.subject for one in found.conflicts] == ["class"]


def test_cells_of_several_classes_are_renamed_and_dropped(three_patients: Path) -> None:
    text = "id,label\nP3,Edema|Fx| \n0012,No Finding\n"
    section = table(three_patients, text, separator="|")
    section["rename"] = {"Fx": "fracture", "No Finding": ""}
    found = join(three_patients, section)
    assert classes_of(found) == [(), ("Edema", "fracture")]
    assert len(found.unlabelled) == 1


def test_split_and_columns_are_kept_and_torn_patients_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        write_radiograph(tmp_path / "archive", "P1", number)
        write_radiograph(tmp_path / "archive", "P2", number)
    text = (
        "file,part,sex\nP1-1,Training,F\nP1-2.dcm,val,F\nP2-1,train,M\nP2-2,test,M\nP2-2,test,F\n"
    )
    said = {"key": "file", "key_column": "file", "label_column": "", "split_column": "part",
            "columns": ["sex"]}  # fmt: skip
    found = join(tmp_path, table(tmp_path, text, **said))
    assert {one.subject for one in found.conflicts} == {"column sex", "split"}
    # Nothing of P2 is left, whose images are on both sides.
    assert [(one.split, one.columns["sex"]) for one in found.by_image.values()] == [
        ("train", "F")] * 2  # fmt: skip
    any_of = join(tmp_path, table(tmp_path, text, **said) | {"conflicts": "any"})
    assert {one.subject for one in any_of.conflicts} == {"column sex", "split"}
    assert len(any_of.by_image) == 2


def test_pictures_get_their_patient_from_a_table_which_others_may_use(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png"):
        write_picture(tmp_path / "archive" / name)
    (tmp_path / "who.csv").write_text("f,p\na/1.png,X\na\\2.png,X\nx/b/1,Y\n../1.png,Z\n1,Z\n")
    (tmp_path / "what.csv").write_text("p;label\nX;ill\ny;well\n")
    found = join(tmp_path, {"tables": [
        {"file": "what.csv", "key": "patient", "key_column": "p", "label_column": "label"},
        {"file": "who.csv", "key": "file", "key_column": "f", "patient_column": "p"},
    ]})  # fmt: skip
    # b/1.png agrees with x/b/1 as far as both go.
    assert found.counts()["classes"] == {
        "ill": {"images": 2, "patients": 1}, "well": {"images": 1, "patients": 1}}  # fmt: skip
    assert [labels.patient for labels in found.by_image.values()] == ["X", "X", "Y"]
    reasons = {row.row: row.reason for row in found.unmatched_rows}
    assert "leads out" in reasons[5]
    assert "fits 2 files" in reasons[6]


def test_file_of_the_same_name_elsewhere_is_not_taken(tmp_path: Path) -> None:
    write_picture(tmp_path / "archive" / "patient2" / "view1.png")
    text = "id,label\npatient1/view1.png,a\n"
    found = join(tmp_path, table(tmp_path, text, key="file"))
    assert len(found.by_image) == 0
    assert "another folder" in found.unmatched_rows[0].reason


def test_row_that_names_another_patient_than_the_file_is_not_used(three_patients: Path) -> None:
    text = "id,label,p\nP3-1,a,P3\n0012-1,b,P3\n"
    found = join(three_patients, table(three_patients, text, key="file", patient_column="p"))
    assert classes_of(found) == [("a",)]
    assert "another patient" in found.unmatched_rows[0].reason


def test_missing_table_is_an_error_that_names_it(three_patients: Path) -> None:
    section = table(three_patients, "id,label\n")
    (three_patients / "labels.csv").unlink()
    with pytest.raises(DataError, match=r"labels.csv: Expected a file, found none"):
        join(three_patients, section)


def test_nothing_that_is_kept_holds_a_raw_identity(three_patients: Path) -> None:
    text = "id,label\nP3,a\n0012,a\n0012,b\nnobody-of-ours,c\n"
    found = join(three_patients, table(three_patients, text))
    for secret in ("nobody-of-ours", "Müller", "1.2."):
        assert secret not in repr(found.to_json(with_paths=False))
        assert secret not in repr([*found.conflicts, *found.unmatched_rows])


def test_issuer_of_the_patient_id_is_counted_in(tmp_path: Path) -> None:
    rules = Rules(issuer_of_patient_id=True)
    write_radiograph(tmp_path / "raw", "P3", IssuerOfPatientID="NORTH", BurnedInAnnotation="NO")
    deidentify_folder(tmp_path / "raw", tmp_path / "archive", rules, KEY)
    text = "id,label\nP3,a\n"
    found = join(tmp_path, table(tmp_path, text, issuer="north"), issuer=True)
    assert classes_of(found) == [("a",)]
    assert len(join(tmp_path, table(tmp_path, text), issuer=True).by_image) == 0
