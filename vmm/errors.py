"""The error tree of the vmm package.

VmmError
├── ConfigError            the user's fault: a VmConfig that cannot be (has ``json_path``)
├── HostError              the host's fault: a program missing, a process dead, a resource refused
│   └── ProgramNotFoundError
├── EngineError            the wanted engine cannot run here, or cannot do what was asked
├── StateError             an operation that the VM's present state does not allow
└── QmpError               the control channel
    ├── QmpProtocolError   the peer sent something that is not QMP
    ├── QmpCommandError    the peer answered with an error (has ``error_class``, ``description``)
    └── QmpClosedError     the connection ended

Messages start with a capital, name the object and its value, and say what to do. The cause is left to
exception chaining; `chain_text` prints the chain once, at the top.
"""


class VmmError(Exception):
    """Base of everything that vmm raises on purpose."""


class ConfigError(VmmError):
    """A configuration that cannot be used. ``json_path`` says where, in the form ``nets[0].mac``."""

    def __init__(self, json_path: str, reason: str) -> None:
        self.json_path = json_path
        self.reason = reason
        super().__init__(f"{json_path}: {reason}" if json_path else reason)


class HostError(VmmError):
    """Something on the host is missing, refused or dead."""


class ProgramNotFoundError(HostError):
    """A program that strato-vmm has to start is not on this host."""


class EngineError(VmmError):
    """The engine cannot run here, or does not offer the operation."""


class StateError(VmmError):
    """The operation is not possible in the VM's present state."""


class QmpError(VmmError):
    """Base of the errors of the control channel."""


class QmpProtocolError(QmpError):
    """The peer sent bytes that are not QMP."""


class QmpCommandError(QmpError):
    """A command was refused by the peer; the two attributes are QMP's own ``class`` and ``desc``."""

    def __init__(self, error_class: str, description: str) -> None:
        self.error_class = error_class
        self.description = description
        super().__init__(description)


class QmpClosedError(QmpError):
    """The connection ended before the answer came."""


def chain_text(error: BaseException) -> str:
    """Return the message of an error followed by those of its causes, in one line."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = " ".join(str(current).split()) or type(current).__name__
        if text not in parts:
            parts.append(text)
        current = current.__cause__
    return ": ".join(parts)
