"""Before the first round of a report task: the words that all sites will use.

Sites name words, never reports, and only those that their own policy lets out. The agreed list is
public from then on: it travels with every message, and a resumed run keeps it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from medfed.common import messages
from medfed.common.errors import MessageError, RunError, StudyError, UpdateError
from medfed.common.files import read_json, write_json
from medfed.common.messages import Refusal, WordsReply, WordsRequest
from medfed.common.study import StudyConfig
from medfed.common.text import Vocabulary
from medfed.common.words import is_word
from medfed.server.countersigning import Countersigner, screen_head
from medfed.server.exchange import Exchange
from medfed.server.participants import Participant
from medfed.server.presence import Presence
from medfed.server.records import ArmFolder, RunPlan
from medfed.server.vocabulary import merge_vocabularies, screen_words
from medfed.server.watch import Watch

VOCABULARY_FILE = "vocabulary.json"


def agree_on_words(
    grid: Grid,
    study: StudyConfig,
    plan: RunPlan,
    arm: ArmFolder,
    sites: Sequence[Participant],
    countersigner: Countersigner,
) -> tuple[str, ...]:
    """Return the vocabulary of a report task: what the arm's folder holds, or the sites' words.

    Nothing for any other task. What sites named is written to `vocabulary.json`; a public file's
    words are there from the start.

    Args:
        grid: Reaches the sites.
        study: Of any task.
        plan: Names the run and its quorum.
        arm: Its folder.
        sites: Those that train.
        countersigner: Signs the ledger heads of sites that were charged for their words.

    Raises:
        RunError: No site named a word; or privacy.unit is "site", and words are not public.
    """
    if study.task.type != "report":
        return ()
    path = arm.folder / VOCABULARY_FILE
    if path.exists():
        return read_vocabulary(path)
    if study.task.report.vocabulary:
        raise RunError(
            f"Expected the words of {study.task.report.vocabulary} in {path}, found none. "
            "Start the run again: it writes them there."
        )
    if study.privacy.unit == "site":
        raise RunError(
            'Expected a public task.report.vocabulary with privacy.unit = "site", got none: each '
            "site's words show that it takes part, and no site-level epsilon covers them."
        )
    named: dict[str, dict[str, Any]] = {}
    heads: dict[str, str] = {}
    lists = _ask(grid, study, plan, sites, named, heads)
    countersigner.sign_round(0, heads)
    if len(lists) < plan.min_sites:
        answers = ", ".join(f"{name}: {facts.get('reason', '')}" for name, facts in named.items())
        raise RunError(
            f"Expected words from at least {plan.min_sites} sites, got them from {len(lists)} "
            f"({answers}). Ask for what the sites' policies let out (task.report.min_patients, "
            "words_noise_multiplier), or name a public task.report.vocabulary."
        )
    words = merge_vocabularies(lists, study.task.report.vocabulary_size)
    write_vocabulary(arm.folder, words, named)
    arm.emit("words", words=len(words), sites=len(named))
    return words


def write_vocabulary(
    folder: Path, words: Sequence[str], sites: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write an arm's `vocabulary.json`: the words, and what each site answered if it was asked."""
    write_json(folder / VOCABULARY_FILE, {"words": list(words), "sites": sites or {}})


def read_vocabulary(path: Path) -> tuple[str, ...]:
    """Return the words of an arm's `vocabulary.json`.

    Raises:
        RunError: Missing or damaged.
    """
    words = read_json(path).get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise RunError(f"{path} is damaged: expected a list of words. Start a new run.")
    return tuple(words)


def read_public_words(path: Path) -> tuple[str, ...]:
    """Return a public vocabulary file's words, one a line.

    Raises:
        StudyError: It cannot be read, or holds a word that no report can hold.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(
            f"task.report.vocabulary: {path} cannot be read ({error}). Name a text file with one "
            "word a line, or leave the key out to let the sites agree."
        ) from None
    words = [line.strip() for line in lines if line.strip()]
    strange = [number for number, word in enumerate(words, start=1) if not is_word(word)]
    if strange:
        raise StudyError(
            f"task.report.vocabulary: word {strange[0]} of {path} is not one word as reports are "
            "split into words (lower case, no spaces). Mend that line."
        )
    return Vocabulary(words).words


def _ask(
    grid: Grid,
    study: StudyConfig,
    plan: RunPlan,
    sites: Sequence[Participant],
    named: dict[str, dict[str, Any]],
    heads: dict[str, str],
) -> dict[str, tuple[str, ...]]:
    """Ask every site that trains for its words; `named` says what each answered.

    `heads` takes the heads of their ledgers.
    """
    content = messages.pack_words_request(WordsRequest(study=study, run=plan.run))
    timeout_s = study.federation.round_timeout_s
    by_node = {site.node_id: site.name for site in sites}
    outgoing = [
        Message(content=content, dst_node_id=node, message_type=messages.WORDS, ttl=timeout_s)
        for node in by_node
    ]
    lists: dict[str, tuple[str, ...]] = {}
    watch = Watch(Presence(grid), study.federation.lost_after_s, lambda node: 0.0)
    exchange = Exchange(grid, watch)
    for message in exchange.replies(outgoing, timeout_s, lambda: len(lists) >= plan.min_sites):
        site = by_node[message.metadata.src_node_id]
        facts: dict[str, Any] = {"bytes": messages.num_bytes(message.content)}
        try:
            reply = messages.unpack_reply(message.content)
            if reply.site != site:
                raise MessageError(f"the site that joined as {site} calls itself another name")
            if isinstance(reply, WordsReply):
                heads[site] = screen_head(reply.ledger_head)
                screen_words(reply.words, study.task.report.vocabulary_size)
                lists[site] = reply.words
                facts |= {"status": "ok", "words": len(reply.words), "epsilon": reply.epsilon}
            elif isinstance(reply, Refusal):
                facts |= {"status": "refused", "reason": reply.reason.value}
            else:
                facts |= {"status": "rejected", "reason": type(reply).__name__}
        except (MessageError, UpdateError) as error:
            facts |= {"status": "rejected", "reason": str(error)}
        named[site] = facts
    for node, reason in exchange.failures.items():
        named[by_node[node]] = {"status": "failed", "reason": reason}
    return lists
