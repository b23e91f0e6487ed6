"""What Prometheus scrapes, read back by a strict parser of its text format."""

import re
from dataclasses import replace
from typing import NamedTuple

import pytest

from medfed.server.federation.metrics import metrics_text
from medfed.server.federation.status_types import (
    Alarm,
    CertificateStatus,
    FederationStatus,
    GateStatus,
    MemberStatus,
    ProcessStatus,
    RunStatus,
    SupervisorStatus,
)

STATUS = FederationStatus(
    time="2026-11-25T12:00:00.000+00:00",
    folder="/federation",
    name="trial",
    address="fed.example.org:8443",
    supervisor=SupervisorStatus(
        state="up",
        pid=1,
        processes=(
            ProcessStatus(name="superlink", state="running", pid=2),
            ProcessStatus(name="superexec", state="waiting", restarts=3),
        ),
    ),
    certificate=CertificateStatus(expires="2027-01-01T00:00:00+00:00", days_left=36.5),
    sites=(
        MemberStatus(
            name="north",
            state="approved",
            online=True,
            bytes_down=10**12,
            bytes_up=7,
            epsilon=2.5,
            refusals={"budget": 2, "paused": 1},
            num_rejected=3,
        ),
        MemberStatus(name="south", state="approved", online=False),
        MemberStatus(name="west", state="approved"),
        MemberStatus(name="east", state="enrolled"),
    ),
    runs=(
        RunStatus(
            name="first",
            state="running",
            round_number=3,
            rounds=10,
            metric="auroc",
            values=((1, 0.5), (2, 0.75)),
            round_s=12.5,
        ),
        RunStatus(name="second", state="waiting"),
    ),
    gate=GateStatus(num_turned_down=4, reasons={"unknown key": 4}, sites={"": 3, "north": 1}),
    alarms=(Alarm(level="warning", what="x"),),
)

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\"|\\n)*)"'
_SAMPLE = re.compile(rf"({_NAME})(?:{{({_LABEL}(?:,{_LABEL})*)}})? (\S+)")
_VALUE = re.compile(r"[+-]?(Inf|NaN|(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?)")


class Scrape(NamedTuple):
    """Values by metric and labels; kinds by metric."""

    values: dict[tuple[str, tuple[tuple[str, str], ...]], float]
    kinds: dict[str, str]

    def get(self, name: str, **labels: str) -> float | None:
        return self.values.get((f"medfed_federation_{name}", tuple(sorted(labels.items()))))


def parse(text: str) -> Scrape:
    """Read an exposition; anything that the format does not allow is an error.

    Reference: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    assert text.endswith("\n")
    found = Scrape({}, {})
    helped: set[str] = set()
    current = ""
    for line in text[:-1].split("\n"):
        if line.startswith("# HELP "):
            name, _, meaning = line[7:].partition(" ")
            assert re.fullmatch(_NAME, name)
            assert name not in helped
            assert meaning
            assert not re.search(r"\\(?![\\n])", meaning), meaning
            helped.add(name)
        elif line.startswith("# TYPE "):
            current, kind = line[7:].split(" ")
            assert kind in ("gauge", "counter")
            assert current not in found.kinds, f"{current} twice"
            assert current in helped
            found.kinds[current] = kind
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample, line
            assert sample[1] == current, f"{sample[1]} outside its family"
            assert _VALUE.fullmatch(sample[sample.re.groups]), line
            labels = tuple(sorted((n, _plain(v)) for n, v in re.findall(_LABEL, sample[2] or "")))
            assert len({n for n, _ in labels}) == len(labels)
            assert (current, labels) not in found.values, f"{line} twice"
            found.values[current, labels] = float(sample[sample.re.groups])
    return found


def _plain(value: str) -> str:
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value)


def test_metrics_say_what_the_status_says() -> None:
    found = parse(metrics_text(STATUS))
    assert found.get("up") == 1
    assert found.get("process_up", process="superlink") == 1
    assert found.get("process_up", process="superexec") == 0
    assert found.get("alarms", level="warning") == 1
    assert found.get("alarms", level="error") == 0
    # 2027-01-01 is 57 years after the epoch, 14 of them leap years.
    assert found.get("certificate_expiry_timestamp_seconds") == (57 * 365 + 14) * 86400
    assert found.get("turned_down_requests_last_hour", site="") == 3
    assert found.get("sites", state="approved") == 3
    assert found.get("sites", state="revoked") == 0
    assert found.get("site_online", site="north") == 1
    assert found.get("site_online", site="south") == 0
    assert found.get("site_epsilon_spent", site="north") == 2.5
    assert found.get("bytes_total", site="north", direction="down") == 10**12
    assert found.get("bytes_total", site="north", direction="up") == 7
    assert found.get("refusals_total", site="north", reason="budget") == 2
    assert found.get("rejections_total", site="north") == 3
    assert found.get("run_round", run="first") == 3
    assert found.get("run_rounds", run="first") == 10
    assert found.get("run_state", run="first", state="running") == 1
    assert found.get("run_state", run="first", state="waiting") == 0
    assert found.get("run_metric", run="first", metric="auroc") == 0.75
    assert found.get("run_round_seconds", run="first") == 12.5
    assert {n for n, kind in found.kinds.items() if kind == "counter"} == {
        f"medfed_federation_{name}_total" for name in ("bytes", "refusals", "rejections")
    }


def test_metrics_leave_out_what_is_not_known() -> None:
    found = parse(metrics_text(STATUS))
    assert found.get("site_online", site="west") is None
    assert found.get("site_online", site="east") is None
    assert found.get("site_epsilon_spent", site="south") is None
    assert found.get("run_metric", run="second", metric="") is None
    unknown = replace(STATUS, certificate=CertificateStatus())
    assert "expiry" not in metrics_text(unknown)


def test_metrics_of_a_federation_that_is_down() -> None:
    down = replace(STATUS, supervisor=replace(STATUS.supervisor, state="silent"))
    found = parse(metrics_text(down))
    assert found.get("up") == 0
    assert found.get("process_up", process="superlink") == 0


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\\nb", "a\nb", "é{},=", '\\"', "\\"])
def test_metrics_escape_labels(name: str) -> None:
    status = replace(
        STATUS,
        sites=(replace(STATUS.sites[0], name=name, refusals={name: 1}),),
        runs=(replace(STATUS.runs[0], name=name),),
    )
    found = parse(metrics_text(status))
    assert found.get("site_online", site=name) == 1
    assert found.get("refusals_total", site=name, reason=name) == 1
    assert found.get("run_round", run=name) == 3


@pytest.mark.parametrize(
    "text",
    [
        "x 1",
        "x 1\n",
        "# HELP x y\n# TYPE x gauge\nx one\n",
        '# HELP x y\n# TYPE x gauge\nx{a="b"c"} 1\n',
        "# HELP x y\n# TYPE x gauge\nx 1\nx 1\n",
        "# HELP x y\n# TYPE x gauge\nz 1\n",
    ],
)
def test_parser_refuses_what_the_format_does_not_allow(text: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        parse(text)
