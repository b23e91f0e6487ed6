import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.uid import UID

from medfed.client.data.deidentification.dates import kept_time, shifted_date, shifted_datetime
from medfed.client.data.deidentification.identity import (
    mapped_uid,
    normalised,
    patient_identity,
    replacement_for,
)
from medfed.client.data.deidentification.rules import Rules
from medfed.client.data.deidentification.values import stated_age
from medfed.client.data.pseudonyms import pseudonym

_KEY = bytes(range(32))


def _patient(**values: str) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


@pytest.mark.parametrize("written", ["ab-12", " AB-12", "AB-12\0", "aB-12  ", "ＡＢ-12"])  # noqa: RUF001
def test_pseudonym_is_the_same_however_the_id_is_written(written: str) -> None:
    replacement = replacement_for(_patient(PatientID=written), Rules(), _KEY)
    assert replacement.patient == pseudonym(_KEY, "patient", "AB-12")


def test_pseudonym_tells_leading_zeros_apart() -> None:
    assert normalised("007") != normalised("7")


def test_issuer_parts_patients_only_when_asked() -> None:
    one = _patient(PatientID="1", IssuerOfPatientID="North")
    two = _patient(PatientID="1", IssuerOfPatientID="South")
    assert patient_identity(one) == patient_identity(two)
    assert patient_identity(one, issuer=True) != patient_identity(two, issuer=True)


def test_patient_without_id_is_the_study() -> None:
    one = _patient(PatientName="A", StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.1")
    two = _patient(PatientName="A", StudyInstanceUID="1.2.3", SOPInstanceUID="1.2.3.2")
    other = _patient(PatientName="A", StudyInstanceUID="1.2.4")
    assert patient_identity(one) == patient_identity(two)
    assert patient_identity(one) != patient_identity(other)


def test_another_key_gives_other_pseudonyms_uids_and_shifts() -> None:
    patients = [_patient(PatientID=str(number)) for number in range(20)]
    mine = [replacement_for(patient, Rules(), _KEY) for patient in patients]
    theirs = [replacement_for(patient, Rules(), bytes(32)) for patient in patients]
    assert not {one.patient for one in mine} & {one.patient for one in theirs}
    assert [one.shift_days for one in mine] != [one.shift_days for one in theirs]
    assert mine[0].uid("1.2.3") != theirs[0].uid("1.2.3")


@given(st.text(max_size=20), st.integers(30, 4000))
def test_shift_is_within_its_range_and_never_zero(patient_id: str, most: int) -> None:
    rules = Rules(max_shift_days=most)
    days = replacement_for(_patient(PatientID="x" + patient_id), rules, _KEY).shift_days
    assert -most <= days <= -1


def test_shifts_reach_their_whole_range() -> None:
    rules = Rules(max_shift_days=30)
    days = {
        replacement_for(_patient(PatientID=str(number)), rules, _KEY).shift_days
        for number in range(2000)
    }
    assert days == set(range(-30, 0))


@given(st.from_regex(r"1\.2(\.[1-9]\d{0,8}){1,5}", fullmatch=True))
def test_mapped_uid_is_valid_and_holds_a_uuid_of_version_8(uid: str) -> None:
    mapped = UID(mapped_uid(_KEY, uid))
    assert mapped.is_valid
    number = int(mapped.removeprefix("2.25."))
    assert number >> 76 & 0xF == 8
    assert number >> 62 & 0b11 == 0b10


@given(st.dates(), st.dates(), st.integers(-365, -1))
def test_shifted_dates_keep_the_days_between(first: object, second: object, days: int) -> None:
    from datetime import date, datetime

    assert isinstance(first, date)
    assert isinstance(second, date)
    moved = [
        shifted_date(f"{day.year:04d}{day.month:02d}{day.day:02d}", days) for day in (first, second)
    ]
    if all(moved):
        parsed = [datetime(int(m[:4]), int(m[4:6]), int(m[6:])).date() for m in moved]
        assert parsed[1] - parsed[0] == second - first
        assert (parsed[0] - first).days == days
    else:
        assert min(first, second).year == 1


@pytest.mark.parametrize(
    ("source", "moved"),
    [
        ("20200301", "20200229"),
        ("1997.04.24", "19970423"),
        ("", ""),
        ("20190230", ""),
        ("soon", ""),
        ("2020030", ""),
    ],
)
def test_shifted_date(source: str, moved: str) -> None:
    assert shifted_date(source, -1) == moved


@pytest.mark.parametrize(
    ("source", "moved"),
    [
        ("20200301235959.123456+0100", "20200229235959.123456+0100"),
        ("20200301", "20200229"),
        ("202003", "202003"),
        ("2020", "2020"),
        ("Zweistein", ""),
    ],
)
def test_shifted_datetime(source: str, moved: str) -> None:
    assert shifted_datetime(source, -1) == moved


@pytest.mark.parametrize(
    ("source", "kept"),
    [("101112.5", "101112.5"), ("10:11:12", "101112"), ("10", "10"), ("at ten", ""), ("", "")],
)
def test_kept_time(source: str, kept: str) -> None:
    assert kept_time(source) == kept


@pytest.mark.parametrize(
    ("source", "stated"),
    [("089Y", "089Y"), ("090Y", "090Y"), ("103Y", "090Y"), ("006M", "006M"), ("old", "")],
)
def test_stated_age(source: str, stated: str) -> None:
    assert stated_age(source) == stated


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["retain_everything"], "retain_everything"),
        (["clean_pixel_data"], "burnt_in"),
        (["clean_visual_features"], "defacing"),
        (["retain_longitudinal_full", "retain_longitudinal_modified"], "got both"),
    ],
)
def test_rules_refuse_what_is_not_offered(options: list[str], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Rules.model_validate({"options": options})
