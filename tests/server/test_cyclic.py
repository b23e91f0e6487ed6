"""The order of a cycle, and what is remembered of a round that is begun again."""

from itertools import permutations
from pathlib import Path

import pytest

from medfed.server.cyclic import Turns, draw_order
from medfed.server.participants import Participant

SITES = [Participant(name, node, None) for node, name in enumerate("abcde", start=2)]


def names(sites: list[Participant]) -> str:
    return "".join(site.name for site in sites)


def test_order_depends_on_seed_round_and_names_alone() -> None:
    order = names(draw_order(SITES, 3, 1))
    assert sorted(order) == list("abcde")
    for shuffled in list(permutations(SITES))[::17]:
        assert names(draw_order(shuffled, 3, 1)) == order
    assert len({names(draw_order(SITES, 3, number)) for number in range(1, 9)}) > 5
    assert names(draw_order(SITES, 4, 1)) != order


def test_a_site_that_is_missing_changes_nobody_elses_place() -> None:
    order = names(draw_order(SITES, 3, 2))
    for missing in SITES:
        left = [site for site in SITES if site != missing]
        assert names(draw_order(left, 3, 2)) == order.replace(missing.name, "")


def test_every_site_is_last_about_as_often() -> None:
    last = [names(draw_order(SITES, 1, number))[-1] for number in range(1, 501)]
    for site in "abcde":
        assert 70 < last.count(site) < 130  # 100 expected, deviation 9


def test_who_has_answered_comes_first_when_the_round_is_begun_again(tmp_path: Path) -> None:
    order = draw_order(SITES, 3, 1)
    first = Turns(tmp_path, 1, "w")
    assert first.resumed(order) == order
    answered = [order[0].name, order[3].name]
    first.note(answered[:1])
    first.note(answered)
    again = names(Turns(tmp_path, 1, "w").resumed(order))
    assert again == "".join([*answered, *(s.name for s in order if s.name not in answered)])


@pytest.mark.parametrize(("number", "start"), [(2, "w"), (1, "other")])
def test_turns_of_another_round_or_other_weights_do_not_count(
    tmp_path: Path, number: int, start: str
) -> None:
    Turns(tmp_path, 1, "w").note(["e", "d"])
    order = draw_order(SITES, 3, number)
    assert Turns(tmp_path, number, start).resumed(order) == order


def test_a_second_attempt_that_dies_early_forgets_nobody(tmp_path: Path) -> None:
    Turns(tmp_path, 1, "w").note(["c", "a", "e"])
    Turns(tmp_path, 1, "w").note(["c"])
    assert names(Turns(tmp_path, 1, "w").resumed(SITES)) == "caebd"
