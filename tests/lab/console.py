"""The test host's console: told apart into what host.sh says to the harness and what the kernel prints."""

import re
from dataclasses import dataclass

# Numbers alone: the kernel may print into the same line, before it and after it.
_MARKED = re.compile(r"strato-lab: (?:(beat) ([0-9]+)|(up) ([0-9.]+)|(ended) ([0-9]+) ([0-9.]+))")


@dataclass(frozen=True)
class Sign:
    """One marked line, such as `beat 1` or `up 3.41`."""

    kind: str
    words: tuple[str, ...]


class Console:
    """Cuts the stream into lines and keeps those that are not beats."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._rest = ""

    def feed(self, data: bytes) -> list[Sign | str]:
        """Takes bytes; returns the marked lines as signs and others as they are, in their order."""
        *whole, self._rest = (self._rest + data.decode(errors="replace")).split("\n")
        found: list[Sign | str] = []
        for line in (line.rstrip("\r") for line in whole):
            marked = _MARKED.search(line)
            if marked is None:
                self.lines.append(line)
                found.append(line)
                continue
            kind, *words = (word for word in marked.groups() if word is not None)
            of_the_kernel = line[: marked.start()] + line[marked.end() :]
            if kind != "beat" or of_the_kernel:
                self.lines.append(line)
            found.append(Sign(kind, tuple(words)))
        return found

    def tail(self, count: int = 80) -> str:
        """The end of what was printed, beats left out."""
        return "\n".join([*self.lines, *([self._rest] if self._rest else [])][-count:])
