"""What the daemon has to say before it can log: kept, and logged while the guest boots.

To import logging costs 5 ms, which prepare.py has no time for: the VM has not been started yet. Nothing is
lost by it: whatever ends the daemon early is an error that its caller sees (see server.py).
"""

from __future__ import annotations

import time

TYPE_CHECKING = False  # importing typing costs 2 ms
if TYPE_CHECKING:
    from typing import Any

VMM_LEVELS = {"debug": "debug", "info": "info", "warning": "warn", "error": "error"}
"""What strato-vmm calls the levels (vmm/log.py)."""

_KEPT_MAX = 1000

_kept: list[tuple[float, str, str, str, tuple[object, ...], dict[str, Any]]] | None = []
"""When, logger, level, message, its arguments and the options of the call; None once logging is set up."""


def fields(**values: object) -> dict[str, Any]:
    """The `extra` argument of a log call: key=value pairs for the end of the line."""
    return {"fields": values}


class EarlyLogger:
    """As the `logging.Logger` of that name, as far as it goes; that one's lines from `deliver` on."""

    def __init__(self, name: str) -> None:
        self._name = name

    def debug(self, message: str, *arguments: object, **options: Any) -> None:
        """Log what only developers want to know."""
        self._log("DEBUG", message, arguments, options)

    def warning(self, message: str, *arguments: object, **options: Any) -> None:
        """Log what is not as it should be."""
        self._log("WARNING", message, arguments, options)

    def error(self, message: str, *arguments: object, **options: Any) -> None:
        """Log what ends the sandbox."""
        self._log("ERROR", message, arguments, options)

    def _log(self, level: str, message: str, arguments: tuple[object, ...], options: dict[str, Any]) -> None:
        if _kept is None:
            _emit(time.time(), self._name, level, message, arguments, options)
        elif len(_kept) < _KEPT_MAX:
            _kept.append((time.time(), self._name, level, message, arguments, options))


def set_level(level: str) -> None:
    """Log from this level on (a name of logging's); before `deliver` that is its caller's business."""
    if _kept is None:
        import logging

        logging.getLogger().setLevel(level.upper())


def deliver() -> None:
    """Log what was kept, and from now on everything at once; to be called when the handlers are set up."""
    global _kept
    kept, _kept = _kept or [], None
    for entry in kept:
        _emit(*entry)


def _emit(
    at: float, name: str, level: str, message: str, arguments: tuple[object, ...], options: dict[str, Any]
) -> None:
    import logging

    logger = logging.getLogger(name)
    number = logging.getLevelNamesMapping()[level]
    if not logger.isEnabledFor(number):
        return
    error = options.get("exc_info")
    described = (type(error), error, error.__traceback__) if isinstance(error, BaseException) else None
    record = logger.makeRecord(name, number, "", 0, message, arguments, described, extra=options.get("extra"))
    record.created = at
    logger.handle(record)
