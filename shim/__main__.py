"""`containerd-shim-strato-v2`: one binary, four verbs.

    start     bootstrap.py   print the address of the sandbox's shim, starting it when there is none
    run       server.py      the daemon that start leaves behind (internal)
    delete    cleanup.py     clean up after a shim that is gone
    -info/-v  info.py

Imports nothing before the verb is known: each verb pays for what it uses.
"""

from __future__ import annotations

import os
import sys

from . import params as _params


def main(argv: list[str] | None = None) -> int:
    """Run the shim binary with *argv* (default: the process's arguments); return its exit code."""
    try:
        params = _params.parse_command_line(sys.argv[1:] if argv is None else argv, dict(os.environ))
        if params.version:
            from . import info

            return info.print_version()
        if params.info:
            from . import info

            return info.print_info(_params.read_stdin())
        if params.verb == "start":
            return _start(params)
        if params.verb == "delete":
            from . import cleanup

            return cleanup.main(params)
        if params.verb == "run":
            import gc

            # There is no garbage while modules are imported, and looking for it takes a twelfth of that time.
            gc.disable()
            from vmm import lean_pathlib

            lean_pathlib.install()
            from . import server

            return server.main(params)
        raise _params.ParamsError(f"Unknown verb {params.verb!r}; containerd calls this program")
    except (_params.ParamsError, OSError) as error:
        return _complain(str(error))


def _start(params: _params.ShimParams) -> int:
    from . import bootstrap

    try:
        _params.apply_stdin(params, _params.read_stdin())
        answer = bootstrap.start(params, _launcher())
    except bootstrap.StartError as error:
        return _complain(str(error))
    except Exception as error:
        # A configuration error: its class lives in a module that start normally does not load.
        if type(error).__name__ != "ConfigError":
            raise
        return _complain(str(error))
    os.write(1, answer)
    return 0


def _launcher() -> str:
    return os.path.abspath(sys.argv[0])  # noqa: PTH100 (pathlib is slow to import)


def _complain(text: str) -> int:
    os.write(2, text.encode("utf-8", "replace"))
    return 1


if __name__ == "__main__":
    sys.exit(main())
