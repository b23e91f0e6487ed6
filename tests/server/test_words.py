"""The words that sites agree on: who is believed, who is not, and what is written down."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from medfed.common import messages
from medfed.common.errors import RefusalReason, RunError, StudyError
from medfed.common.ledger.countersigning import read_countersignatures
from medfed.common.messages import JoinReply, Refusal, WordsReply
from medfed.common.study import StudyConfig
from medfed.server.countersigning import HEADS_FILE, SERVER_KEY, Countersigner
from medfed.server.participants import Participant
from medfed.server.records import ArmFolder, RunPlan
from medfed.server.words import agree_on_words, read_public_words
from medfed.simulations.grids.local import LocalGrid

STUDY = StudyConfig.model_validate(
    {
        "study": {"name": "words"},
        "task": {"type": "report", "report": {"vocabulary_size": 4}},
        "model": {"name": "report_lstm"},
        "training": {"local_epochs": 1},
        "privacy": {"unit": "none"},
    }
)
Answer = Callable[[], RecordDict]


def named(site: str, *words: str) -> Answer:
    return lambda: messages.pack_words_reply(WordsReply(site=site, words=words))


def refused(site: str) -> Answer:
    return lambda: messages.pack_refusal(Refusal(site=site, reason=RefusalReason.POLICY))


def broken() -> RecordDict:
    raise TypeError("lost")


def countersigner_of(arm: ArmFolder) -> Countersigner:
    return Countersigner(arm.folder / HEADS_FILE, arm.folder / "server_state" / SERVER_KEY, "r")


def agree(
    tmp_path: Path, answers: dict[str, Answer], min_sites: int = 2, study: StudyConfig = STUDY
) -> tuple[tuple[str, ...], dict[str, dict[str, object]]]:
    app = ClientApp()
    by_node = {number: site for number, site in enumerate(answers, start=2)}

    @app.query("words")
    def answer(message: Message, context: Context) -> Message:
        return Message(answers[by_node[context.node_id]](), reply_to=message)

    arm = ArmFolder(tmp_path / "arm")
    arm.write_plan(RunPlan(run="r"))
    sites = [Participant(site, node, None) for node, site in by_node.items()]
    plan = RunPlan(run="r", min_sites=min_sites, expected_sites=len(sites))
    with LocalGrid(app, dict.fromkeys(by_node, tmp_path)) as grid:
        words = agree_on_words(grid, study, plan, arm, sites, countersigner_of(arm))
    return words, json.loads((arm.folder / "vocabulary.json").read_text())["sites"]


def test_words_of_most_sites_are_agreed_and_each_answer_is_recorded(tmp_path: Path) -> None:
    words, sites = agree(
        tmp_path,
        {
            "a": named("a", ".", "effusion", "lungs"),
            "b": named("b", ".", "lungs", "nodule"),
            "c": named("c", "clear", "lungs"),
        },
    )
    assert words == (".", "clear", "effusion", "lungs")
    assert {name: facts["words"] for name, facts in sites.items()} == {"a": 3, "b": 3, "c": 2}
    assert all(facts["status"] == "ok" and facts["bytes"] for facts in sites.values())


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (refused("c"), "refused"),
        (broken, "failed"),
        (named("a", "lungs"), "rejected"),
        (named("c", "Two Words"), "rejected"),
        (named("c", "x" * 65), "rejected"),
        (named("c", "a", "b", "c", "d", "e"), "rejected"),
        (named("c", "lungs", "lungs"), "rejected"),
        (
            lambda: messages.pack_join_reply(JoinReply(site="c", public_num_patients=None)),
            "rejected",
        ),
        (RecordDict, "rejected"),
    ],
)
def test_an_answer_that_is_no_list_of_words_counts_for_nothing(
    tmp_path: Path, answer: Answer, status: str
) -> None:
    words, sites = agree(
        tmp_path, {"a": named("a", "lungs"), "b": named("b", "lungs"), "c": answer}
    )
    assert words == ("lungs",)
    assert sites["c"]["status"] == status
    assert "Two" not in json.dumps(sites)


def test_too_few_answers_end_the_run_and_name_the_reasons(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"at least 2 sites, got them from 1 \(.*b: policy"):
        agree(tmp_path, {"a": named("a", "lungs"), "b": refused("b")})
    assert not (tmp_path / "arm" / "vocabulary.json").exists()


def test_a_run_keeps_the_words_that_it_has(tmp_path: Path) -> None:
    first, _ = agree(tmp_path, {"a": named("a", "lungs"), "b": named("b", "heart")})
    again, _ = agree(tmp_path, {"a": named("a", "other"), "b": named("b", "other")})
    assert again == first == ("heart", "lungs")


def test_public_words_are_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("lungs\n\n nodule \n.\n")
    assert read_public_words(path) == ("lungs", "nodule", ".")
    for text, match in (("Two Words\n", "word 1"), ("a\na\n", "twice|more than once|duplicate")):
        path.write_text(text)
        with pytest.raises(StudyError, match=match):
            read_public_words(path)
    with pytest.raises(StudyError, match="cannot be read"):
        read_public_words(tmp_path / "none.txt")


def test_ledger_heads_of_named_words_are_countersigned_as_round_0(tmp_path: Path) -> None:
    def charged(site: str, head: str) -> Answer:
        reply = WordsReply(site=site, words=("lungs",), epsilon=0.5, ledger_head=head)
        return lambda: messages.pack_words_reply(reply)

    _, sites = agree(
        tmp_path,
        {
            "a": charged("a", "a" * 64),
            "b": charged("b", "b" * 64),
            "c": named("c", "lungs"),
            "d": charged("d", "D" * 64),
            "e": charged("e", "e" * 63),
        },
    )
    signed = read_countersignatures(tmp_path / "arm" / HEADS_FILE)
    assert [(s.site, s.round_number, s.head, s.run) for s in signed] == [
        ("a", 0, "a" * 64, "r"),
        ("b", 0, "b" * 64, "r"),
    ]
    assert {site: facts["status"] for site, facts in sites.items()} == {
        "a": "ok", "b": "ok", "c": "ok", "d": "rejected", "e": "rejected",
    }  # fmt: skip
    assert "hexadecimal" in str(sites["d"]["reason"])


def test_site_level_privacy_asks_no_site_for_words(tmp_path: Path) -> None:
    table = STUDY.model_dump()
    table["task"]["report"]["words_noise_multiplier"] = 1.0
    study = StudyConfig.model_validate(table)
    # No such study can be written; the server does not count on that.
    privacy = study.privacy.model_copy(update={"unit": "site"})
    study = study.model_copy(update={"privacy": privacy})
    with pytest.raises(RunError, match=r"public task\.report\.vocabulary"):
        agree(tmp_path, {"a": named("a", "lungs"), "b": named("b", "lungs")}, study=study)
