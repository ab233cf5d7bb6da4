"""The `run` verb: the daemon behind a sandbox's address. Wires the parts together, nothing else.

Started by bootstrap.py with the listening socket as descriptor 3 and what came on stdin as descriptor 4,
in the bundle's directory. The order matters: the VM is started first, with few modules loaded; logging,
asyncio, protobuf and the services are imported while the guest boots.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path

from . import params
from .bootstrap import LISTENER_FD, STDIN_FD, write
from .prepare import Preparation

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from .sandbox import Sandbox

ABANDONED_AFTER_S = 60.0
"""A sandbox whose VM failed and that has no container ends by itself after this time."""

FLUSH_TIMEOUT_S = 3.0


def main(arguments: params.ShimParams) -> int:
    """Serve one sandbox until it is shut down; return the exit code."""
    # `start` writes it too, unless it was killed meanwhile: then `delete` finds us by it.
    write("shim.pid", str(os.getpid()))
    stdin = params.read_stdin(STDIN_FD)
    os.close(STDIN_FD)
    params.apply_stdin(arguments, stdin)
    # Ctrl-C in a terminal is not ours; SIGPIPE is ignored by Python already.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preparation = Preparation(arguments)
    preparation.begin()

    import logging

    from . import log

    log.set_up(preparation.log_level)
    if preparation.lock_fd >= 0:
        log.add_files(preparation.layout.shim_log, preparation.layout.vmm_log)

    import asyncio

    preparation.phases.mark("asyncio_imported")
    try:
        asyncio.run(_serve(preparation))
    except Exception as error:
        logging.getLogger("shim.server").critical("shim fails", exc_info=error)
        return 1
    # All is closed and delivered; the interpreter's own tidying up would hold up whoever waits in `delete`.
    logging.shutdown()
    os._exit(0)


async def _serve(preparation: Preparation) -> None:
    import asyncio
    import contextlib
    import logging
    import socket

    from . import events, launch, log, task
    from .sandbox import Sandbox
    from .ttrpc.server import TtrpcServer

    preparation.phases.mark("modules_imported")
    loop = asyncio.get_running_loop()
    reaper = launch.Reaper()
    arguments = preparation.params
    sender: events.Sender | None = None
    if arguments.ttrpc_address:
        sender = events.TtrpcSender(arguments.ttrpc_address)
    elif arguments.publish_binary and arguments.address:
        sender = events.BinarySender(arguments.publish_binary, arguments.address, reaper)
    publisher = events.EventPublisher(arguments.namespace, sender)
    sandbox = Sandbox(preparation, publisher, reaper)
    loop.add_signal_handler(signal.SIGCHLD, reaper.reap)
    reaper.reap()

    ending = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    services = task.TaskService(sandbox, ending.set).services()
    listener = socket.socket(fileno=LISTENER_FD)
    listener.setblocking(False)
    socket_path = listener.getsockname()
    if preparation.settings.shim.transport == "grpc":
        from .grpc_transport import GrpcServer

        server: TtrpcServer | GrpcServer = GrpcServer(services, preparation.layout.root / "grpc.sock")
    else:
        server = TtrpcServer(services)
    await server.listen(listener)
    gc.enable()  # see __main__.py
    preparation.phases.mark("serving")
    watchdog = asyncio.create_task(_end_if_abandoned(sandbox, ending))
    logging.getLogger("shim.server").debug(
        "serving", extra=log.fields(address=socket_path, modules=len(sys.modules))
    )

    await ending.wait()
    watchdog.cancel()
    try:
        await sandbox.shut_down()
    finally:
        # What failed there is told by `main`. A new shim of this name may listen as soon as the file is gone.
        with contextlib.suppress(OSError):
            Path(socket_path).unlink()
        await publisher.flush(FLUSH_TIMEOUT_S)
        await publisher.close()
        await server.close()


async def _end_if_abandoned(sandbox: Sandbox, ending: object) -> None:
    # containerd calls Shutdown or `delete` after a failure; this is for when containerd itself is gone, or
    # its `start` was killed after it had started us.
    import asyncio
    import logging

    assert isinstance(ending, asyncio.Event)
    idle_since: float | None = None
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(5.0)
        failed = sandbox.failure is not None or sandbox.preparation.error is not None
        if not (failed or sandbox.unused) or not sandbox.idle:
            idle_since = None
        elif idle_since is None:
            idle_since = loop.time()
        elif loop.time() - idle_since > ABANDONED_AFTER_S:
            logging.getLogger("shim.server").info("nobody ended the failed or unused sandbox")
            ending.set()
            return
