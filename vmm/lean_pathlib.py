"""pathlib without urllib, whose import is a thirteenth of all that strato-vmm imports.

Before Python 3.13 pathlib imports `urllib.parse`, and with it ipaddress, for `Path.as_uri` alone. It gets a
stand-in here that imports the real one when it is called; nobody else ever sees that.
"""

from __future__ import annotations

import sys
from types import ModuleType

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

_WANTED = "urllib.parse"


def _quote_from_bytes(*arguments: Any, **options: Any) -> str:
    from urllib.parse import quote_from_bytes

    return quote_from_bytes(*arguments, **options)


def install() -> None:
    """Import pathlib, if nobody has."""
    if "pathlib" in sys.modules or _WANTED in sys.modules:
        return
    stand_in = ModuleType(_WANTED)
    stand_in.__dict__["quote_from_bytes"] = _quote_from_bytes
    sys.modules[_WANTED] = stand_in
    try:
        import pathlib  # noqa: F401  (imported for whoever imports it next, with the stand-in in place)
    finally:
        del sys.modules[_WANTED]
