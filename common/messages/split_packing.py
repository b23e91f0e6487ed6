"""Messages of split learning: packing and unpacking."""

from collections.abc import Sequence
from typing import Protocol

from flwr.app import RecordDict

from medfed.common.messages.kinds import SplitReply, SplitRequest
from medfed.common.messages.records import (
    arrays_of,
    at_least_one,
    listed_numbers,
    numbers_of,
    pack,
    pack_arrays,
    present,
    text_of,
    text_or_empty,
    unpack,
)
from medfed.common.state_dicts import StateDict
from medfed.common.study import StudyConfig
from medfed.common.study_file import parse_study_json


class SplitContents(Protocol):
    """Makes the content for half a step of one site."""

    def __call__(self, step: int, arrays: StateDict, countersignature: str = "") -> RecordDict:
        """Return a content with what is this site's own; the rest is everyone's."""
        ...


def pack_split(
    study: StudyConfig,
    run: str,
    round_number: int,
    *,
    frozen_sha256: str,
    reference: Sequence[float] = (),
    num_participants: int = 1,
) -> SplitContents:
    """Return a maker of contents for the steps of a round of split learning."""
    values = {
        "study": study.for_sites().to_json(),
        "run": run,
        "round_number": round_number,
        "frozen_sha256": frozen_sha256,
        "num_participants": num_participants,
        **listed_numbers(reference=reference),
    }

    def content(step: int, arrays: StateDict, countersignature: str = "") -> RecordDict:
        own = present(step=step, countersignature=countersignature or None)
        packed = pack("split", {**values, **own})
        packed["arrays"] = pack_arrays(arrays)
        return packed

    return content


def unpack_split_request(content: RecordDict) -> SplitRequest:
    """Unpack a `SplitRequest`."""
    values = unpack(content, "split")
    return SplitRequest(
        study=parse_study_json(text_of(values, "study")),
        run=text_of(values, "run"),
        round_number=at_least_one(values, "round_number"),
        step=at_least_one(values, "step") if values.get("step") != 0 else 0,
        frozen_sha256=text_of(values, "frozen_sha256"),
        arrays=arrays_of(content),
        reference=numbers_of(values, "reference"),
        num_participants=at_least_one(values, "num_participants"),
        countersignature=text_or_empty(values, "countersignature"),
    )


def pack_split_reply(reply: SplitReply) -> RecordDict:
    """Pack a `SplitReply`; its kind is what it holds."""
    content = pack(reply.name, {"site": reply.site})
    content["arrays"] = pack_arrays({reply.name: reply.array})
    return content
