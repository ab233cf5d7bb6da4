"""Documents: their commands exist, their examples parse, their links lead somewhere."""

import ast
import contextlib
import io
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.runtime import CHECKOUT
from vmm import cli

pytestmark = pytest.mark.style

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Two spaces and a name, as `make help` prints them.
TARGET = re.compile(r"^ {2}([a-z][a-z-]*)", re.MULTILINE)
# Targets of the kernel's own Makefile, which docs/guest-kernel.md speaks of.
KERNEL_TARGETS = {"allnoconfig", "olddefconfig", "menuconfig", "savedefconfig"}
LINK = re.compile(r"\[[^\]]*\]\(([^)#:]+)(?:#[^)]*)?\)")
REQUIRED = (
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "LICENSE",
    "docs/installation.md",
    "docs/configuration.md",
    "docs/limitations.md",
    "docs/troubleshooting.md",
    "docs/oci-coverage.md",
)


def documents() -> list[Path]:
    """All documents of the repository."""
    return sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    """All fenced blocks of a language."""
    for path in documents():
        for found, body in FENCE.findall(path.read_text(encoding="utf-8")):
            if found == language:
                yield path, body


def commands() -> Iterator[tuple[Path, list[str]]]:
    """Every command of a console block, in inline code of one program, split into words."""
    for path, body in blocks("console"):
        for line in body.splitlines():
            if line.startswith(("# ", "$ ")):
                yield path, shlex.split(line[2:], comments=True)
    for path in documents():
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        for code in re.findall(r"`((?:make|strato) [^`]+)`", text):
            yield path, shlex.split(code)


def make_targets() -> set[str]:
    """What `make help` lists."""
    done = subprocess.run(["make", "-s", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    return set(TARGET.findall(done.stdout))


@pytest.mark.parametrize("name", REQUIRED)
def test_document_exists(name: str) -> None:
    assert (CHECKOUT / name).stat().st_size > 0


def test_architecture_is_short_enough_to_be_read() -> None:
    assert len((CHECKOUT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 250


def test_make_commands_of_documents_are_in_make_help() -> None:
    targets = make_targets()
    wanted = {
        (path.name, word)
        for path, words in commands()
        if words[0] == "make"
        for word in words[1:]
        if "=" not in word and not word.startswith("-")
    }
    assert wanted, "The documents name no target at all"
    assert {(name, word) for name, word in wanted if word not in targets | KERNEL_TARGETS} == set()


def test_make_help_lists_every_target() -> None:
    text = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
    defined = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    assert defined - make_targets() == set()


def test_strato_commands_of_documents_parse() -> None:
    parser = cli._parser()
    failures = []
    for path, words in commands():
        if words[0] != "strato":
            continue
        for arguments in (words[1:], [*words[1:], "--help"]):
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    parser.parse_args(arguments)
                break
            except SystemExit as end:
                # A text may name a verb without its arguments; asking it for help must work then.
                if not end.code:
                    break
        else:
            failures.append(f"{path.name}: {shlex.join(words)}")
    assert failures == []


def test_python_examples_parse() -> None:
    for path, body in blocks("python"):
        ast.parse(body, filename=str(path))


def test_toml_examples_parse() -> None:
    found = list(blocks("toml"))
    assert found
    for path, body in found:
        try:
            tomllib.loads(body)
        except tomllib.TOMLDecodeError as error:
            pytest.fail(f"{path.name}: {error}")


def test_links_lead_to_files() -> None:
    missing = [
        f"{path.name}: {target}"
        for path in documents()
        for target in LINK.findall(path.read_text(encoding="utf-8"))
        if not (path.parent / target).exists()
    ]
    assert missing == []


def messages() -> Iterator[tuple[Path, str]]:
    """The messages that tables of documents explain: inline code at the beginning of a row."""
    for path in documents():
        _, heading, rest = path.read_text(encoding="utf-8").partition("| message |")
        if heading:
            table = rest.partition("\n\n")[0]
            yield from ((path, message) for message in re.findall(r"^\| `([^`]+)`", table, re.MULTILINE))


def test_messages_that_documents_explain_are_said() -> None:
    sources = "".join(
        path.read_text(encoding="utf-8")
        for package in ("shim", "vmm")
        for path in sorted((CHECKOUT / package).rglob("*.py"))
    )
    # One text again of those that are written in pieces, and one mark for whatever is filled in.
    said = re.sub(r"\{[^{}\"]*\}", "…", re.sub(r"\"\s*\n\s*f?\"", "", sources))
    found = list(messages())
    missing = [
        f"{path.name}: {message}"
        for path, message in found
        if any(part not in said for part in map(str.strip, message.split("…")))
    ]
    assert found
    assert missing == []


def test_tests_that_keep_regressions_away_exist() -> None:
    text = (CHECKOUT / "docs/regressions.md").read_text(encoding="utf-8")
    # Names of tests have at least two underscores; names of files have a dot or a slash.
    named = set(re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+){2,})`", text))
    paths = set(re.findall(r"`([a-z-]+/[a-z_/]+\.rs)`", text))
    native = CHECKOUT / "vmm" / "native"
    sources = "".join(
        path.read_text(encoding="utf-8") for path in native.rglob("*.rs") if "target" not in path.parts
    )
    assert named
    assert [name for name in sorted(named) if f"fn {name}(" not in sources] == []
    assert [path for path in sorted(paths) if not (native / path).is_file()] == []
