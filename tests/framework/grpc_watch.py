"""Recognises in containerd's log a container that containerd itself gave up: a race of its gRPC client.

containerd 2.1 to 2.4 watch a gRPC connection to a shim from a goroutine that takes the state "idle" for
"lost" (core/runtime/v2/shim.go, `grpcDialContext`). A connection is idle until it carries its first call; a
watcher that runs earlier than that gives a healthy shim up and has it deleted. One that runs in time warns of
the states CONNECTING or READY, which it does not expect either: a connection that ends without such a line
was never used.
"""

import re
from collections.abc import Iterable

_CONNECTING = re.compile(r'msg="connecting to shim (?P<id>\S+)" address=(?P<address>\S+) .*protocol=grpc')
_USED = re.compile(r'msg="shim grpc connection unexpected state" addr="unix://(?P<address>[^"]+)"')
_LOST = re.compile(r'msg="shim disconnected" id=(?P<id>\S+)')


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
