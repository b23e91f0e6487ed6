"""What the gate lists is read as it grows: whole lines, of this round, by site."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from medfed.server.turned_away import TurnedAway

START = datetime(2026, 11, 25, 12, tzinfo=UTC)
PUSH = "/v1/fleet/push-object"


def line(site: str, reason: str, after_s: float = 1.0, what: str = PUSH) -> str:
    time = (START + timedelta(seconds=after_s)).isoformat()
    return json.dumps({"time": time, "site": site, "what": what, "reason": reason}) + "\n"


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rejections.jsonl"


def test_the_last_reason_of_each_site_since_a_moment_is_told(path: Path) -> None:
    away = TurnedAway(str(path))
    assert away.reasons(START.isoformat()) == {}
    append(path, line("paris", "old", -1) + line("berlin", "first") + line("berlin", "second"))
    append(path, line("", "a stranger") + line("rome", "x" * 1000))
    assert away.reasons(START.isoformat()) == {"berlin": "second", "rome": "x" * 200}


def test_what_stood_there_before_is_not_read(path: Path) -> None:
    append(path, line("berlin", "before"))
    away = TurnedAway(str(path))
    append(path, line("paris", "after"))
    assert away.reasons(START.isoformat()) == {"paris": "after"}


def test_only_uploads_mean_that_no_answer_will_come(path: Path) -> None:
    away = TurnedAway(str(path))
    append(path, line("berlin", "no", what="/v1/fleet/pull-messages") + line("paris", "too large"))
    assert away.upload_age_s("berlin", START.isoformat()) == 0.0
    assert away.upload_age_s("paris", (START + timedelta(seconds=2)).isoformat()) == 0.0
    age = (datetime.now(UTC) - START).total_seconds() - 1
    # Of a moment in the future there is no age.
    assert away.upload_age_s("paris", START.isoformat()) == pytest.approx(max(0.0, age), abs=5)


def test_a_list_that_was_begun_anew_is_read_from_its_start(path: Path) -> None:
    append(path, line("berlin", "x" * 500))
    away = TurnedAway(str(path))
    path.replace(path.with_suffix(".1"))
    append(path, line("paris", "new"))
    assert away.reasons(START.isoformat()) == {"paris": "new"}


def test_half_and_damaged_lines_harm_nothing(path: Path) -> None:
    away = TurnedAway(str(path))
    whole = line("paris", "whole")
    append(path, "[]\n{}\nnonsense\n" + whole[:20])
    assert away.reasons(START.isoformat()) == {}
    append(path, whole[20:] + '{"time": "yesterday", "site": "a", "what": "", "reason": ""}\n')
    assert away.reasons(START.isoformat()) == {"paris": "whole"}


def test_without_a_list_nobody_was_turned_away(tmp_path: Path) -> None:
    away = TurnedAway("")
    assert away.reasons(START.isoformat()) == {}
    assert away.upload_age_s("berlin", START.isoformat()) == 0.0
