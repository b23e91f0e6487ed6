"""What sites say of their data: who is believed, what is put on record, what follows from it."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.common import messages
from medfed.common.errors import RefusalReason, RunError
from medfed.common.harmonisation import quantiles, reference_of
from medfed.common.ledger.countersigning import read_countersignatures
from medfed.common.messages import JoinReply, Refusal, StatisticsReply
from medfed.common.statistics import Floats, quantities
from medfed.common.study import StudyConfig
from medfed.server.countersigning import HEADS_FILE, SERVER_KEY, Countersigner
from medfed.server.participants import Participant
from medfed.server.records import STATISTICS_FILE, ArmFolder, RunPlan
from medfed.server.statistics import ask_for_statistics, read_statistics
from medfed.simulations.grids.local import LocalGrid

Answer = Callable[[], RecordDict]


def study_of(noise: float | None = None, harmonise: str = "histogram") -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "statistics"},
            "task": {"classes": ["a", "b"]},
            "data": {"harmonise": harmonise},
            "training": {"local_steps": 1},
            "privacy": {"unit": "patient" if noise else "none"},
            "statistics": {"collect": True, "bins": 8, "noise_multiplier": noise},
        }
    )


EXACT, NOISY = study_of(), study_of(2.0)


def values_of(study: StudyConfig, **changes: Any) -> dict[str, Floats]:
    values = {q.name: np.full(q.shape, 20.0) for q in quantities(study)}
    if study.statistics.noise_multiplier is None:
        values["intensities"] = np.full((1, 8), 0.125)
    return {**values, **changes}


def answer_of(site: str, study: StudyConfig = EXACT, **changes: Any) -> Answer:
    noisy = study.statistics.noise_multiplier is not None
    fields: dict[str, Any] = {
        "site": site,
        "values": values_of(study),
        "min_count": 0 if noisy else 10,
        "noise": "secure" if noisy else "none",
        "epsilon": 0.5 if noisy else None,
    }
    reply = StatisticsReply(**{**fields, **changes})
    return lambda: messages.pack_statistics_reply(reply)


def refused(site: str) -> Answer:
    return lambda: messages.pack_refusal(Refusal(site=site, reason=RefusalReason.POLICY))


def broken() -> RecordDict:
    raise TypeError("lost")


def ask(
    tmp_path: Path,
    answers: Mapping[str, Answer],
    study: StudyConfig = EXACT,
    min_sites: int = 2,
) -> tuple[tuple[float, ...], dict[str, Any]]:
    app = ClientApp()
    by_node = {number: site for number, site in enumerate(answers, start=2)}

    @app.query("statistics")
    def answer(message: Message, context: Context) -> Message:
        asked = messages.unpack_statistics_request(message.content)
        assert (asked.study, asked.run) == (study.for_sites(), "r")
        return Message(answers[by_node[context.node_id]](), reply_to=message)

    arm = ArmFolder(tmp_path / "arm")
    arm.write_plan(RunPlan(run="r"))
    key = arm.folder / "server_state" / SERVER_KEY
    countersigner = Countersigner(arm.folder / HEADS_FILE, key, "r")
    sites = [Participant(site, node, None) for node, site in by_node.items()]
    plan = RunPlan(run="r", min_sites=min_sites, expected_sites=len(sites))
    with LocalGrid(app, dict.fromkeys(by_node, tmp_path)) as grid:
        reference = ask_for_statistics(grid, study, plan, arm, sites, countersigner)
    path = arm.folder / STATISTICS_FILE
    return reference, read_statistics(path) if path.exists() else {}


def test_answers_are_on_record_and_make_the_reference(tmp_path: Path) -> None:
    dark = values_of(EXACT, intensities=np.array([[1.0, 0, 0, 0, 0, 0, 0, 0]]))
    reference, table = ask(tmp_path, {"a": answer_of("a"), "b": answer_of("b", values=dark)})
    functions = [quantiles(np.full(8, 0.125)), quantiles(dark["intensities"][0])]
    expected = reference_of([f for f in functions if f is not None])
    assert reference == tuple(expected.tolist())
    assert table["reference"] == [expected.tolist()]
    assert table["sites"]["b"]["values"]["classes"] == [20.0, 20.0]
    assert {facts["status"] for facts in table["sites"].values()} == {"ok"}


def test_a_study_that_asks_for_none_asks_nobody(tmp_path: Path) -> None:
    study = EXACT.model_copy(
        update={"statistics": type(EXACT.statistics)(), "data": type(EXACT.data)()}
    )
    assert ask(tmp_path, {"a": broken, "b": broken}, study) == ((), {})


def test_statistics_alone_need_no_quorum(tmp_path: Path) -> None:
    study = study_of(harmonise="none")
    reference, table = ask(tmp_path, {"a": refused("a"), "b": broken}, study)
    assert reference == ()
    assert [facts["status"] for _, facts in sorted(table["sites"].items())] == ["refused", "failed"]


def test_too_few_histograms_end_a_run_that_harmonises(tmp_path: Path) -> None:
    silent = {name: np.full_like(array, np.nan) for name, array in values_of(EXACT).items()}
    answers = {"a": answer_of("a"), "b": refused("b"), "c": answer_of("c", values=silent)}
    with pytest.raises(RunError, match=r"at least 2 sites .*got 1 \(a: ok, b: policy, c: ok\)"):
        ask(tmp_path, answers)
    assert not (tmp_path / "arm" / STATISTICS_FILE).exists()


def test_a_resumed_run_asks_nobody_again(tmp_path: Path) -> None:
    first = ask(tmp_path, {"a": answer_of("a"), "b": answer_of("b")})
    assert ask(tmp_path, {"a": broken, "b": broken}) == first


@pytest.mark.parametrize("damage", ["[]", '{"sites": {}, "reference": [[1, 2]]}', "{"])
def test_a_damaged_record_is_named(tmp_path: Path, damage: str) -> None:
    ask(tmp_path, {"a": answer_of("a"), "b": answer_of("b")})
    (tmp_path / "arm" / STATISTICS_FILE).write_text(damage)
    with pytest.raises(RunError, match=r"statistics\.json is damaged"):
        ask(tmp_path, {"a": broken, "b": broken})


def test_ledger_heads_are_countersigned_as_round_0(tmp_path: Path) -> None:
    answers = {
        "a": answer_of("a", NOISY, ledger_head="a" * 64),
        "b": answer_of("b", NOISY),
        "c": answer_of("c", NOISY, ledger_head="C" * 64),
    }
    _, table = ask(tmp_path, answers, NOISY)
    signed = read_countersignatures(tmp_path / "arm" / HEADS_FILE)
    assert [(s.site, s.round_number, s.head) for s in signed] == [("a", 0, "a" * 64)]
    assert table["sites"]["c"]["status"] == "rejected"


def only(name: str, study: StudyConfig, value: Any) -> Answer:
    changed = values_of(study)
    array = changed[name].copy()
    array.flat[0] = value
    return answer_of("c", study, values={**changed, name: array})


def without(name: str) -> Answer:
    values = values_of(EXACT)
    del values[name]
    return answer_of("c", values=values)


def unpackable() -> RecordDict:
    content = answer_of("c")()
    content["arrays"] = ArrayRecord([np.ones(3)])
    return content


BAD: dict[str, tuple[StudyConfig, Answer]] = {
    "a refusal": (EXACT, refused("c")),
    "nothing": (EXACT, broken),
    "another site's": (EXACT, answer_of("a")),
    "another kind": (
        EXACT,
        lambda: messages.pack_join_reply(JoinReply(site="c", public_num_patients=None)),
    ),
    "empty": (EXACT, RecordDict),
    "not packed by us": (EXACT, unpackable),
    "a quantity too few": (EXACT, without("classes")),
    "a quantity too many": (
        EXACT,
        answer_of("c", values=values_of(EXACT, **{"Ada Zyxwvut": np.ones(1)})),
    ),
    "another shape": (EXACT, answer_of("c", values=values_of(EXACT, classes=np.ones(3)))),
    "a huge shape": (EXACT, answer_of("c", values=values_of(EXACT, classes=np.ones(10**6)))),
    "another type": (EXACT, answer_of("c", values=values_of(EXACT, classes=np.ones(2, int)))),
    "negative": (EXACT, only("patients", EXACT, -1.0)),
    "half a patient": (EXACT, only("classes", EXACT, 10.5)),
    "infinite": (EXACT, only("classes", EXACT, np.inf)),
    "absurd": (EXACT, only("images", EXACT, 2.0**40)),
    "shares of more than 1": (EXACT, only("intensities", EXACT, 0.5)),
    "half a histogram": (EXACT, only("intensities", EXACT, np.nan)),
    "negative shares": (
        EXACT,
        answer_of(
            "c",
            values=values_of(EXACT, intensities=np.array([[2.0, -1, 0, 0, 0, 0, 0, 0]])),
        ),
    ),
    "noise unasked": (EXACT, answer_of("c", noise="secure")),
    "an unknown noise": (EXACT, answer_of("c", noise="loud")),
    "a negative min_count": (EXACT, answer_of("c", min_count=-1)),
    "no noise": (NOISY, answer_of("c", NOISY, noise="none")),
    "a hole in noise": (NOISY, only("patients", NOISY, np.nan)),
    "infinite noise": (NOISY, only("intensities", NOISY, -np.inf)),
    "absurd noise": (NOISY, only("intensities", NOISY, -1e300)),
    "no epsilon": (NOISY, answer_of("c", NOISY, epsilon=float("nan"))),
    "a negative epsilon": (NOISY, answer_of("c", NOISY, epsilon=-1.0)),
}


@pytest.mark.parametrize("name", BAD)
def test_an_answer_that_cannot_be_believed_counts_for_nothing(tmp_path: Path, name: str) -> None:
    study, bad = BAD[name]
    good = {site: answer_of(site, study) for site in ("a", "b")}
    expected, _ = ask(tmp_path / "without", good, study)
    reference, table = ask(tmp_path / "with", {**good, "c": bad}, study)
    assert reference == expected
    status = {"a refusal": "refused", "nothing": "failed"}.get(name, "rejected")
    assert table["sites"]["c"]["status"] == status
    assert "values" not in table["sites"]["c"]
    assert "Zyxwvut" not in json.dumps(table, allow_nan=False)
