"""The story of a site: what was asked, what came of it, what left and what it cost."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from medfed.client.agent.story import Chapter, tell
from medfed.client.agent.wording import duration_text, size_text
from medfed.client.audit_facts import Fact
from medfed.client.audit_lines import AuditEntry
from medfed.client.audit_log import AuditLog, Event
from medfed.client.releases import Quantity, Release, read_releases
from medfed.client.site import PolicySection, load_site
from medfed.common import messages
from medfed.common.ledger import Entry, Ledger, Spend, read_ledger

sys.path.insert(0, str(Path(__file__).parent))

from trial_hospital import ask, make_site, make_store, make_study

POLICY = PolicySection(max_epsilon=8.0)
ABOUT: dict[str, Fact] = {
    "run": "run-1/federated",
    "study": "ham10000",
    "kind": "train",
    "round_number": 7,
}
SPEND = Spend(
    release="r",
    study="s",
    run="run-1/federated",
    round_number=7,
    unit="patient",
    images_per_patient=1,
    noise_multiplier=1.0,
    sample_rate=0.1,
    steps=1,
    max_grad_norm=1.0,
    noise="secure",
)
UPDATE = Release(
    time="",
    run="run-1/federated",
    study="ham10000",
    round_number=7,
    kind="update",
    quantities=(
        Quantity("site", 9, "public", "names the site"),
        Quantity("update", 1_234_567, "dp", "epsilon 3.410 of 8 at delta 1e-05 (patient)"),
    ),
)


def at(second: int) -> str:
    return f"2026-11-25T14:03:{second:02}.000+00:00"


def entry(index: int, event: Event, **facts: Fact) -> AuditEntry:
    """An entry at second `index`."""
    return AuditEntry(index, at(index), event, facts, f"{index:064x}")


def told(
    entries: list[AuditEntry],
    releases: tuple[Release, ...] = (),
    spends: tuple[tuple[int, Spend], ...] = (),
) -> list[Chapter]:
    ledger = [Entry(i, at(second), spend, "") for i, (second, spend) in enumerate(spends)]
    return tell(entries, releases, ledger, POLICY)


def test_request_and_answer_are_one_chapter_with_what_left_and_what_it_cost() -> None:
    [chapter] = told(
        [
            entry(1, "asked", **ABOUT, bytes=99),
            entry(9, "answered", **ABOUT, bytes=1_234_576, seconds=42.4, epsilon=3.41),
        ],
        (replace(UPDATE, time=at(8)),),
        ((2, SPEND),),
    )
    assert chapter.text == (
        "The coordinator asked to train round 7 of study ham10000 (run run-1/federated). "
        "Trained in 42 s. An update of 1.2 MB left. "
        "Epsilon 3.41 of 8 per patient spent (delta 1e-05), 4.59 left."
    )
    assert (chapter.time, chapter.tone, len(chapter.entries)) == (at(1), "good", 2)


@pytest.mark.parametrize(
    ("cost", "protection", "said"),
    [
        ("exact, no DP", "none", "An update of 1.2 MB left, exact, no DP."),
        (
            "exact: the server is trusted to add the noise; then epsilon 1",
            "none",
            "left, exact: the server is trusted to add the noise.",
        ),
        ("masked: the server sees sums; epsilon 1", "dp", "the server sees the sum over sites"),
        ("epsilon 1; seeded noise: a simulation, not private", "dp", "seeded noise: not private"),
    ],
)
def test_protection_of_an_update_is_said(cost: str, protection: str, said: str) -> None:
    quantity = Quantity("update", 1_234_567, protection, cost)  # type: ignore[arg-type]
    [chapter] = told(
        [entry(1, "asked", **ABOUT), entry(9, "answered", **ABOUT, bytes=5)],
        (replace(UPDATE, time=at(8), quantities=(quantity,)),),
    )
    assert said in chapter.text


def test_training_without_privacy_is_called_so() -> None:
    free = replace(SPEND, unit="none", noise="none", noise_multiplier=0.0)
    [chapter] = told(
        [entry(1, "asked", **ABOUT), entry(9, "answered", **ABOUT, bytes=5)], spends=((2, free),)
    )
    assert "No epsilon covers it" in chapter.text


@pytest.mark.parametrize(
    ("reason", "words"),
    [("budget", "over the privacy budget"), ("policy", "policy"), ("paused", "is paused")],
)
def test_refusal_says_why(reason: str, words: str) -> None:
    [chapter] = told(
        [entry(1, "asked", **ABOUT), entry(2, "refused", **ABOUT, reason=reason)],
        (replace(UPDATE, time=at(2), kind="refusal", quantities=()),),
    )
    assert "Refused: " in chapter.text
    assert words in chapter.outcome
    assert chapter.tone == "bad"


def test_refused_bundle_is_one_chapter_with_its_refusal() -> None:
    [chapter] = told(
        [
            entry(1, "asked", **ABOUT),
            entry(2, "bundle_refused", sha256="ab" * 32),
            entry(3, "refused", **ABOUT, reason="policy"),
        ]
    )
    assert chapter.outcome == "Refused: its bundle is not one that this site approved."
    assert len(chapter.entries) == 3


@pytest.mark.parametrize("event", ["worker_killed", "worker_died"])
def test_request_that_cost_the_worker_says_what_was_charged(event: Event) -> None:
    facts: dict[str, Fact] = {"code": -9}
    if event == "worker_killed":
        facts = {"reason": "over its deadline"}
    entries = [entry(1, "asked", **ABOUT), entry(5, event, **facts)]
    [chapter] = told(entries, spends=((2, SPEND),))
    assert "The budget was charged before, and stays so." in chapter.outcome
    assert "may have left" not in chapter.outcome
    [uncharged] = told(entries)
    assert "charged" not in uncharged.outcome
    # Its answer was listed, which is just before it goes.
    [late] = told(entries, (replace(UPDATE, time=at(4)),), ((2, SPEND),))
    assert "may have left" in late.outcome
    assert late.tone == "bad"


def test_request_without_an_outcome_is_open_until_the_next_comes() -> None:
    first, second = entry(1, "asked", **ABOUT), entry(5, "asked", **{**ABOUT, "round_number": 8})
    [open_one] = told([first])
    assert open_one.outcome == ""
    [lost, last] = told([first, second], (replace(UPDATE, time=at(3)),))
    assert "not answered: the process ended" in lost.outcome
    assert "may have left" in lost.outcome
    assert last.outcome == ""


def test_events_in_between_are_chapters_of_their_own() -> None:
    chapters = told(
        [
            entry(1, "started", version="0.1.0"),
            entry(2, "connected"),
            entry(3, "asked", **ABOUT),
            entry(4, "disconnected"),
            entry(5, "paused"),
            entry(6, "answered", **ABOUT, bytes=5, epsilon=1.0),
            entry(7, "worker_died", code=1),
        ]
    )
    assert [chapter.outcome[:12] for chapter in chapters] == [
        "Started, med",
        "Connected to",
        "Trained. 5 b",
        "No connectio",
        "Paused by th",
        "The worker e",
    ]


def test_what_left_without_a_request_is_told_as_such() -> None:
    early = replace(UPDATE, time="2026-11-24T00:00:00.000+00:00")
    late = replace(UPDATE, time=at(50), round_number=9)
    other = replace(UPDATE, time=at(8), run="another")
    entries = [
        entry(5, "asked", **ABOUT),
        entry(9, "answered", **ABOUT, bytes=5, epsilon=1.0),
    ]
    chapters = told(entries, (early, other, late))
    assert [chapter.time for chapter in chapters] == [early.time, at(5), at(8), at(50)]
    # Before there was an audit log, nothing can be missing from it.
    assert "no request" not in chapters[0].text
    assert "The audit log has no request for it." in chapters[2].text
    assert "round 9 of study ham10000" in chapters[3].text
    assert chapters[3].tone == "bad"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (1_234_567, "1.2 MB"), (3e9, "3.0 GB")],
)
def test_sizes_are_said_as_people_do(num_bytes: float, text: str) -> None:
    assert size_text(int(num_bytes)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.26, "1.3 s"), (42.4, "42 s"), (60, "1 min"), (185, "3 min 5 s"), (3720, "1 h 2 min")],
)
def test_durations_are_said_as_people_do(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_real_messages_make_a_story_without_a_gap(tmp_path: Path) -> None:
    site_file = make_site(tmp_path, make_store(tmp_path / "stores"), max_epsilon=4.5)
    ask(site_file, messages.JOIN)
    for number in range(1, 4):
        ask(site_file, messages.TRAIN, number)
    ask(site_file, messages.EVALUATE, 3)
    ask(site_file, messages.TRAIN, 1, make_study("none"))
    site = load_site(site_file)
    audit, state = AuditLog(site.state_folder), site.state_folder
    chapters = tell(
        audit.entries(), read_releases(state)[0], read_ledger(state).entries, site.policy
    )
    outcomes = [chapter.outcome for chapter in chapters]
    assert outcomes[1].startswith("Said that it takes part")
    spent = [one.facts["epsilon"] for one in audit.entries() if "epsilon" in one.facts]
    assert len(spent) == 2  # the third round does not fit
    for outcome, epsilon in zip(outcomes[2:], spent, strict=False):
        assert "An update of 2" in outcome
        assert f"Epsilon {epsilon:.2f} of 4.5 per patient spent" in outcome
    assert outcomes[4] == "Refused: it would go over the privacy budget."
    assert "No figures left: the policy does not release them." in outcomes[5]
    assert "asks for more than this site's policy allows" in outcomes[6]
    assert len(Ledger(state).entries()) == len(spent)
    assert not any("audit log has no" in chapter.text for chapter in chapters)
