"""Reading and writing Flower's records, strictly: types, names and sizes are checked.

Arrays are NumPy's own format read with pickle off; only the types below pass.
"""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from medfed.common.errors import MessageError
from medfed.common.state_dicts import StateDict

MESSAGE_VERSION = 3
MAX_WORDS = 100_000
_Number = TypeVar("_Number", int, float)
_ALLOWED_TYPES = ("float32", "float64", "float16", "int64", "int32", "uint32", "uint8", "bool")


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


def listed(**lists: Sequence[str]) -> dict[str, list[str]]:
    """Leave out empty lists: Flower's records cannot tell their size."""
    return {name: list(texts) for name, texts in lists.items() if texts}


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


def number_of(values: Mapping[str, Any], name: str, kind: type[_Number]) -> _Number | None:
    """Return a number of just this kind; None if there is none."""
    value = values.get(name)
    if value is not None and type(value) is not kind:
        raise MessageError(f"Expected {kind.__name__} under {name!r}, got {type(value).__name__}.")
    return value


def pack_arrays(arrays: StateDict) -> ArrayRecord:
    """Pack arrays in NumPy's format, in their order."""
    return ArrayRecord({name: Array(np.asarray(a, order="C")) for name, a in arrays.items()})


def unpack_arrays(record: ArrayRecord) -> StateDict:
    """Unpack arrays.

    Raises:
        MessageError: A type that is not allowed, or damaged bytes.
    """
    return {name: _unpack_array(name, packed) for name, packed in record.items()}


def arrays_of(content: RecordDict) -> StateDict:
    """Return a message's arrays."""
    record = content.get("arrays")
    if not isinstance(record, ArrayRecord):
        raise MessageError("Expected arrays in the message, got none.")
    return unpack_arrays(record)


def _unpack_array(name: str, packed: Array) -> npt.NDArray[np.generic]:
    if packed.stype != "numpy.ndarray" or packed.dtype not in _ALLOWED_TYPES:
        raise MessageError(
            f"Array {name!r}: expected NumPy's format and one of {', '.join(_ALLOWED_TYPES)}, "
            f"got {packed.stype!r} of {packed.dtype!r}."
        )
    try:
        _check_size(packed.data)
        array = packed.numpy()  # reads with allow_pickle=False
    except (ValueError, EOFError, OSError) as error:
        raise MessageError(f"Array {name!r} is damaged: {error}.") from None
    if array.dtype.name != packed.dtype or array.shape != tuple(packed.shape):
        raise MessageError(f"Array {name!r} is not what its header says.")
    return cast(npt.NDArray[np.generic], array)


def _check_size(data: bytes) -> None:
    """Refuse an array that states another size than it has: NumPy would allocate what is stated.

    Raises:
        ValueError: Or a header that is none.
    """
    stream = io.BytesIO(data)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("expected version 1.0 of NumPy's format")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (MemoryError, RecursionError):  # the parser's own, of a header with deep nesting
        raise ValueError("its header is nested too deeply") from None
    stated, got = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if stated != got:
        raise ValueError(f"its header states {stated} bytes, and it has {got}")
