from pathlib import Path

import pytest

from medfed.common.errors import DataError
from medfed.simulations.datasets.tables import Table, line_of_key, read_table


def _read(path: Path, text: str, **options: tuple[str, ...]) -> Table:
    path.write_bytes(text.encode())
    return read_table(path, columns=("id", "name"), how_to_get="Fetch it.", **options)


def test_read_table_numbers_rows_by_their_last_line(tmp_path: Path) -> None:
    table = _read(tmp_path / "a.csv", 'id,name,\n1,"a, ""b""\nc",\n2,d,x\n')
    assert table.header == ("id", "name", "")
    assert {line: dict(row) for line, row in table.rows.items()} == {
        3: {"id": "1", "name": 'a, "b"\nc', "": ""},
        4: {"id": "2", "name": "d", "": "x"},
    }
    assert line_of_key(table, "id") == {"1": 3, "2": 4}


@pytest.mark.parametrize("text", ["id\tname\r\n1\ta\r\n", "\ufeffid,name\n1,a"])
def test_read_table_takes_tabs_and_byte_order_mark(tmp_path: Path, text: str) -> None:
    assert dict(_read(tmp_path / "a.csv", text).rows[2]) == {"id": "1", "name": "a"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: expected the columns id, name, each once, got nothing"),
        ("id,title\n", r"got id, title \(missing: name\)"),
        ("id,name,name\n", "each once"),
        ("id,name\n1\n", "line 2: expected 2 values, got fewer"),
        ("id,name\n1,a,b\n", "line 2: expected 2 values, got more"),
        ("id,name\n,a\n", "line 2: column id is empty"),
        ('id,name\n1,"a"b\n', "not valid CSV"),
    ],
)
def test_read_table_refuses_another_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path / "a.csv", text, keys=("id",))
    assert "a.csv" in str(caught.value)


def test_read_table_lets_optional_columns_be_missing_alone(tmp_path: Path) -> None:
    assert _read(tmp_path / "a.csv", "id\n1\n", optional=("name",)).header == ("id",)
    with pytest.raises(DataError, match="missing: id"):
        _read(tmp_path / "a.csv", "name\n1\n", optional=("name",))


def test_line_of_key_refuses_a_value_twice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 3, column id: 1 is also in line 2"):
        line_of_key(_read(tmp_path / "a.csv", "id,name\n1,a\n1,b\n"), "id")
