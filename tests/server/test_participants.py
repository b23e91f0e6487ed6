"""Who takes part depends on names, seed and round only; weights under DP are public."""

from pathlib import Path

import pytest

from medfed.common.study_file import load_study
from medfed.server.participants import (
    Participant,
    draw_evaluators,
    draw_participants,
    least_present,
    site_weight,
)

DEMO = Path(__file__).parents[2] / "studies" / "demo.toml"
SITES = [Participant(f"s{number}", number, None) for number in range(10)]


def test_all_sites_take_part_by_default() -> None:
    drawn = draw_participants(SITES[::-1], load_study(DEMO), 1)
    assert [site.name for site in drawn] == sorted(site.name for site in SITES)


def test_a_fraction_is_drawn_by_name_not_by_order_or_node() -> None:
    study = load_study(DEMO, ["federation.fraction=0.3"])
    renumbered = [Participant(s.name, 100 - s.node_id, None) for s in SITES[::-1]]
    for round_number in range(1, 6):
        one = [s.name for s in draw_participants(SITES, study, round_number)]
        other = [s.name for s in draw_participants(renumbered, study, round_number)]
        assert one == other == sorted(one)
        assert len(one) == 3
    rounds = {tuple(s.name for s in draw_participants(SITES, study, r)) for r in range(1, 20)}
    assert len(rounds) > 5


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.99, 1.0])
@pytest.mark.parametrize("needed", [1, 2, 3, 4])
def test_fewest_present_sites_are_those_that_a_draw_of_enough_needs(
    fraction: float, needed: int
) -> None:
    study = load_study(DEMO, [f"federation.fraction={fraction}"])
    sites = [Participant(f"s{number}", number, None) for number in range(50)]
    drawn = [len(draw_participants(sites[:number], study, 1)) for number in range(1, 51)]
    expected = next(number for number, of in enumerate(drawn, start=1) if of >= needed)
    assert least_present(needed, study) == expected


def test_a_share_evaluates_and_all_after_the_last_round() -> None:
    study = load_study(DEMO, ["evaluation.fraction=0.5", "training.rounds=20"])
    drawn = [tuple(s.name for s in draw_evaluators(SITES, study, r)) for r in range(1, 21)]
    assert {len(names) for names in drawn[:-1]} == {round(0.5 * len(SITES))}
    assert len(set(drawn[:-1])) > 1
    assert drawn[-1] == tuple(sorted(site.name for site in SITES))
    trained = [tuple(s.name for s in draw_participants(SITES, study, r)) for r in range(1, 20)]
    assert drawn[:-1] != trained


def test_every_site_is_drawn_about_equally_often() -> None:
    study = load_study(DEMO, ["federation.fraction=0.3"])
    counts = dict.fromkeys((site.name for site in SITES), 0)
    for round_number in range(1, 401):
        for site in draw_participants(SITES, study, round_number):
            counts[site.name] += 1
    # Binomial(400, 0.3): mean 120, standard deviation 9.2; four of them on either side.
    assert all(83 < count < 157 for count in counts.values())


@pytest.mark.parametrize(
    ("weighting", "stated", "expected"),
    [
        ("uniform", (300, 100), [1, 1]),
        ("public", (300, 100), [300, 100]),
        ("public", (300, None), [1, 1]),
        ("auto", (300, 100), [300, 100]),
    ],
)
def test_weights_under_privacy_are_public(
    weighting: str, stated: tuple[int | None, ...], expected: list[int]
) -> None:
    study = load_study(DEMO, [f"federation.weighting={weighting}"])
    sites = [Participant(f"s{i}", i, count) for i, count in enumerate(stated)]
    assert [site_weight(site, study, sites) for site in sites] == expected


def test_weight_without_privacy_is_asked_of_the_site() -> None:
    study = load_study(DEMO, ["privacy.unit=none"])
    assert site_weight(SITES[0], study, SITES) is None
