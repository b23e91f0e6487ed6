"""Reading and writing Flower's records, strictly: types, names and sizes are checked.

Arrays are safetensors; only the types below pass.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import load, save

from medfed.common.errors import MessageError
from medfed.common.state_dicts import StateDict, check_finite, digest

MESSAGE_VERSION = 4
MAX_WORDS = 100_000
MAX_NUMBERS = 100_000
_Number = TypeVar("_Number", int, float)
_ALLOWED_TYPES = (
    "float32",
    "float64",
    "float16",
    "int64",
    "int32",
    "int8",
    "uint32",
    "uint8",
    "bool",
)
_STYPE = "safetensors"
# Of a small model unpacking takes as long as a step; a large one's memory is worth more.
_MOST_REMEMBERED = 1 << 26
_DIGITS = 6


def num_bytes(content: RecordDict) -> int:
    """Return the size of a message's content: arrays with their headers, names and values."""
    return sum(
        len(name) + _size_of(value) for record in content.values() for name, value in record.items()
    )


def _size_of(value: Any) -> int:
    # Flower's own count of a record fails on an empty text or list: whoever sends one would end
    # the run.
    if isinstance(value, Array):
        return len(value.data)
    if isinstance(value, list):
        return sum(map(_size_of, value))
    if isinstance(value, str | bytes):
        return len(value)
    return 1 if isinstance(value, bool) else 8


def kind_of(content: RecordDict) -> str:
    """Return a message's kind as it states it; empty if it states none. Nothing is unpacked."""
    record = content.get("medfed")
    kind = record.get("kind") if isinstance(record, ConfigRecord) else None
    return kind if isinstance(kind, str) else ""


def listed(**lists: Sequence[str]) -> dict[str, list[str]]:
    """Leave out empty lists: Flower's records cannot tell their size."""
    return {name: list(texts) for name, texts in lists.items() if texts}


def listed_numbers(**lists: Sequence[float]) -> dict[str, list[float]]:
    """Leave out empty lists of numbers."""
    return {
        name: [float(number) for number in numbers] for name, numbers in lists.items() if numbers
    }


def present(**values: str | bytes | int | float | None) -> dict[str, Any]:
    """Leave out what is None."""
    return {name: value for name, value in values.items() if value is not None}


def pack(kind: str, values: Mapping[str, Any]) -> RecordDict:
    """Return a message of `kind` with its values."""
    return RecordDict(
        {"medfed": ConfigRecord({"version": MESSAGE_VERSION, "kind": kind, **values})}
    )


def unpack(content: RecordDict, kind: str | None = None) -> Mapping[str, Any]:
    """Return a message's values; MessageError if it is none of ours, or not of `kind`."""
    record = content.get("medfed")
    if not isinstance(record, ConfigRecord) or not isinstance(record.get("kind"), str):
        raise MessageError("Expected a medfed record, got none. Both sides must run medfed.")
    if record.get("version") != MESSAGE_VERSION:
        raise MessageError(
            f"Expected message version {MESSAGE_VERSION}, got {record.get('version')!r}. "
            "Install the same medfed release on both sides."
        )
    if kind is not None and record["kind"] != kind:
        raise MessageError(f"Expected a message of kind {kind!r}, got {record['kind']!r}.")
    return cast(Mapping[str, Any], record)


def text_of(values: Mapping[str, Any], name: str) -> str:
    """Return a text that is not empty, or MessageError; so do all below, each for its type."""
    value = values.get(name)
    if not isinstance(value, str) or not value:
        raise MessageError(f"Expected text under {name!r}, got {type(value).__name__}.")
    return value


def text_or_empty(values: Mapping[str, Any], name: str) -> str:
    """Return a text; empty if there is none."""
    return text_of(values, name) if values.get(name, "") != "" else ""


def bytes_of(values: Mapping[str, Any], name: str) -> bytes:
    """Return bytes; empty if there are none."""
    value = values.get(name, b"")
    if not isinstance(value, bytes):
        raise MessageError(f"Expected bytes under {name!r}, got {type(value).__name__}.")
    return value


def at_least_one(values: Mapping[str, Any], name: str) -> int:
    """Return a whole number from 1."""
    value = values.get(name)
    if type(value) is not int or value < 1:
        raise MessageError(f"Expected {name} >= 1, got {value!r}.")
    return value


def texts_of(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a list of texts; empty if there is none."""
    found = values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise MessageError(f"Expected a list of texts under {name!r}, got something else.")
    if len(found) > MAX_WORDS:
        raise MessageError(f"Expected at most {MAX_WORDS} texts under {name!r}, got {len(found)}.")
    return tuple(found)


def numbers_of(values: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Return a list of numbers with a decimal point, all finite; empty if there is none."""
    found = values.get(name, [])
    if not isinstance(found, list) or not all(
        type(number) is float and math.isfinite(number) for number in found
    ):
        raise MessageError(f"Expected a list of finite numbers under {name!r}, got something else.")
    if len(found) > MAX_NUMBERS:
        raise MessageError(f"Expected at most {MAX_NUMBERS} under {name!r}, got {len(found)}.")
    return tuple(found)


def number_of(values: Mapping[str, Any], name: str, kind: type[_Number]) -> _Number | None:
    """Return a number of just this kind; None if there is none."""
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise MessageError(f"Expected {kind.__name__} under {name!r}, got {type(value).__name__}.")
    return value


def pack_arrays(arrays: StateDict) -> ArrayRecord:
    """Pack arrays, in their order, into one of Flower's: a request carries each of those.

    A network of hundreds of arrays would make thousands of requests a round.
    """
    # Safetensors has an order of its own; the numbers restore ours.
    numbered = {
        f"{number:0{_DIGITS}d} {name}": np.asarray(array, order="C")
        for number, (name, array) in enumerate(arrays.items())
    }
    data = save(numbered)
    return ArrayRecord({_STYPE: Array("uint8", (len(data),), _STYPE, data)})


def unpack_arrays(record: ArrayRecord) -> StateDict:
    """Unpack arrays.

    Raises:
        MessageError: A type that is not allowed, or damaged bytes.
    """
    return _unpacked(_packed_in(record))


def _packed_in(record: ArrayRecord) -> bytes:
    packed = record.get(_STYPE)
    if len(record) != 1 or packed is None or packed.stype != _STYPE:
        stated = sorted({array.stype for array in record.values()})
        raise MessageError(f"Expected arrays as one of safetensors, got {len(record)} of {stated}.")
    return packed.data


def _unpacked(data: bytes) -> StateDict:
    try:
        # Sizes that a header states are compared with what is there before anything is allocated.
        found = load(data)
    except Exception as error:  # whatever bytes another machine can make
        raise MessageError(f"The arrays are damaged: {error}.") from None
    arrays: StateDict = {}
    for number, (numbered, array) in enumerate(sorted(found.items())):
        stated, _, name = numbered.partition(" ")
        if stated != f"{number:0{_DIGITS}d}" or name in arrays:
            raise MessageError(f"Expected the arrays numbered and each once, got {numbered!r}.")
        if array.dtype.name not in _ALLOWED_TYPES:
            raise MessageError(
                f"Array {name!r}: expected one of {', '.join(_ALLOWED_TYPES)}, got "
                f"{array.dtype.name}."
            )
        arrays[name] = array
    return arrays


@lru_cache(maxsize=1)
def _unpacked_once(data: bytes) -> StateDict:
    """Sites that are simulated in one process all get the very same bytes."""
    arrays = _unpacked(data)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


@lru_cache(maxsize=1)
def digest_of_packed(data: bytes) -> str:
    """Return the digest of the arrays in `data`; remembered for the last."""
    return digest(_unpacked_once(data))


@lru_cache(maxsize=1)
def check_finite_packed(data: bytes) -> None:
    """Check that no array in `data` holds NaN or infinite values; remembered for the last.

    Raises:
        MessageError: Naming the first one.
    """
    check_finite(_unpacked_once(data))


def array_sizes(record: ArrayRecord) -> dict[str, int]:
    """Return how many bytes each array takes, by name, of a record that was packed here.

    What names them all is counted to the first, so that the sizes add up to the record's.
    """
    data = record[_STYPE].data
    start = 8 + int.from_bytes(data[:8], "little")
    table = json.loads(data[8:start])
    sizes = {
        numbered.partition(" ")[2]: table[numbered]["data_offsets"][1]
        - table[numbered]["data_offsets"][0]
        for numbered in sorted(table)
    }
    for name in list(sizes)[:1]:
        sizes[name] += start + len(_STYPE)
    return sizes


def arrays_of(content: RecordDict, name: str = "arrays") -> StateDict:
    """Return a message's arrays; `name` says which, where it has several records of them."""
    return unpack_arrays(_arrays_in(content, name))


def model_arrays_of(content: RecordDict) -> tuple[StateDict, bytes]:
    """Return a message's arrays, and what they came in: nothing if that is too large to remember.

    Where the last message came with the same bytes, its arrays are the same; none can be written.
    """
    data = bytes(_packed_in(_arrays_in(content, "arrays")))
    if len(data) > _MOST_REMEMBERED:
        return _unpacked(data), b""
    return dict(_unpacked_once(data)), data


def _arrays_in(content: RecordDict, name: str) -> ArrayRecord:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise MessageError(f"Expected {name} in the message, got none.")
    return record
