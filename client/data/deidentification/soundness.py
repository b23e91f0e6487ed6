"""What a damaged length or tag does: an element that swallowed its neighbours, or took their place.

A kept element is kept for what its tag says that it is. One whose length is damaged holds the
elements behind it as well, the patient's name among them; one whose tag is damaged holds another
attribute's value. Neither can hide anything here: headers of elements hold control characters,
which no text may, and values are of the type and number that PS3.6 states for the tag.
"""

import re
from typing import Any

from pydicom.datadict import dictionary_has_tag, dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.multival import MultiValue

from medfed.client.data.deidentification.values import FREE_TEXT, mapped

_NUMBERS = frozenset({"FL", "FD", "SL", "SS", "SV", "UL", "US", "UV"})
# Within a class, files often state another representation than PS3.6 does, and mean no harm.
_CLASSES = (
    FREE_TEXT | {"AE", "CS", "LO", "SH"},
    frozenset({"DS", "IS"}),
    _NUMBERS | {"AT", "OB", "OD", "OF", "OL", "OV", "OW"},
)
# PS3.5 6.1.3 allows tab, line feed, form feed, carriage return and escape.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


def is_sound(element: DataElement) -> bool:
    """Whether an element is of the type, and has the number of values, that its tag stands for."""
    if element.tag.is_private or not dictionary_has_tag(element.tag):
        return True
    stated = dictionary_VR(element.tag).split(" or ")
    return any(_are_kin(element.VR, vr) for vr in stated) and not _has_too_many(element)


def cut_at_control_characters(element: DataElement) -> bool:
    """Shorten text to what is before a control character; return whether there was one."""
    texts = element.value if isinstance(element.value, MultiValue) else [element.value]
    if not any(isinstance(text, str) and _CONTROL.search(text) for text in texts):
        return False
    element.value = mapped(element.value, lambda text: _CONTROL.split(text, maxsplit=1)[0])
    return True


def _are_kin(one: str, other: str) -> bool:
    if one == other or "UN" in (one, other):
        return True
    return any(one in kin and other in kin for kin in _CLASSES)


def _has_too_many(element: DataElement) -> bool:
    most: Any = dictionary_VM(element.tag).rpartition("-")[2]
    numbers = element.VR in _NUMBERS and most.isdecimal()
    return numbers and int(most) < element.VM
