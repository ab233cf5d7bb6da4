"""Recognises in containerd's log what went wrong in containerd itself when a shim was lost.

A container that containerd gave up is a race of its gRPC client:

containerd 2.1 to 2.4 watch a gRPC connection to a shim from a goroutine that takes the state "idle" for
"lost" (core/runtime/v2/shim.go, `grpcDialContext`). A connection is idle until it carries its first call; a
watcher that runs earlier than that gives a healthy shim up and has it deleted. One that runs in time warns of
the states CONNECTING or READY, which it does not expect either: a connection that ends without such a line
was never used.

A clean-up that was not run is a race of Create and the loss of its shim: the first removes the bundle, which
the second gives the clean-up for its working directory (core/runtime/v2/binary.go, `Delete`). What the shim
has left then stays.
"""

import re
from collections.abc import Iterable

_CONNECTING = re.compile(r'msg="connecting to shim (?P<id>\S+)" address=(?P<address>\S+) .*protocol=grpc')
_USED = re.compile(r'msg="shim grpc connection unexpected state" addr="unix://(?P<address>[^"]+)"')
_LOST = re.compile(r'msg="shim disconnected" id=(?P<id>\S+)')
_NOT_RUN = re.compile(
    r'msg="failed to delete dead shim" cmd="(?P<command>[^"]+ delete)" '
    r'error="fork/exec [^"]+: no such file or directory"'
)


def lost_before_use(log: Iterable[str]) -> list[str]:
    """The containers in these lines of a log whose connection was given up before its first call."""
    unused: dict[str, str] = {}
    lost = []
    for line in log:
        if begun := _CONNECTING.search(line):
            unused[begun["address"].removeprefix("unix://")] = begun["id"]
        elif used := _USED.search(line):
            unused.pop(used["address"], None)
        elif (ended := _LOST.search(line)) and ended["id"] in unused.values():
            lost.append(ended["id"])
            unused = {address: name for address, name in unused.items() if name != ended["id"]}
    return lost


def clean_ups_not_run(log: Iterable[str]) -> list[list[str]]:
    """The words of each clean-up in these lines that containerd wanted to run and could not."""
    return [found["command"].split() for line in log if (found := _NOT_RUN.search(line))]
