"""Ends of processes by a signal, in words."""

import signal


def killed_by(number: int) -> str:
    """Return what has ended a process that this signal has ended."""
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal between the first and the last
        name = f"signal {number}"
    if number == signal.SIGSYS:
        return f"was killed by {name}: it made a forbidden system call (audit type 1326 in the kernel's log)"
    return f"was killed by {name}"
