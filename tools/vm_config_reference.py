"""Writes docs/vm-config.md from the dataclasses of vmm.config and the strings below their fields, and how a
VM ends from vmm.exit_report.

Run as ``python -m tools.vm_config_reference``; a test compares the committed page with `render`.
"""

import ast
import dataclasses
import inspect
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from vmm import config, exit_report

PAGE = Path(__file__).parents[1] / "docs" / "vm-config.md"

_INTRODUCTION = """\
# VM configuration

*Written by `python -m tools.vm_config_reference` from `vmm/config.py`; do not edit.*

One file describes one virtual machine: TOML or JSON for `strato vm run FILE` and `strato vm plan FILE`, JSON
for `strato-vmm --config`. Unknown fields and wrong types are refused with their path, like `nets[0].mac`.
Relative paths are relative to the file's folder; in JSON passed by descriptor they must be absolute.
`strato vm run` chooses `runtime_dir` and `name` where they are missing.

```toml
[boot]
kernel = "/usr/lib/strato/vmlinux"
initrd = "initramfs.img"

[memory]
size_mib = 512

[[drives]]
id = "root"
path = "disk.img"

[[shares]]
tag = "work"
directory = "/srv/work"
```
"""


def render() -> str:
    """Return the page."""
    documented = _documents(config)
    sections = [_INTRODUCTION]
    for prefix, kind in _sections(config.VmConfig, ""):
        title = f"`{prefix}`" if prefix else "Top level"
        rows = [
            f"\n## {title}\n",
            (inspect.getdoc(kind) or "") + "\n",
            "| field | type | default | meaning |",
        ]
        rows.append("|---|---|---|---|")
        for item in dataclasses.fields(kind):
            text = documented[kind.__name__, item.name]
            rows.append(f"| `{item.name}` | {_type_name(item.type)} | {_default(item)} | {text} |")
        sections.append("\n".join(rows) + "\n")
    return "".join([*sections, _ends()])


def _ends() -> str:
    kinds = _documents(exit_report)
    lines = [
        "\n## How a VM ends\n",
        "`exit.json` in `runtime_dir` says it by `kind`, `message` and `console_tail`.\n",
        "| kind | exit status | meaning |",
        "|---|---|---|",
    ]
    for kind in exit_report.ExitKind:
        status = int(exit_report.ExitReport(kind, "").code)
        lines.append(f"| `{kind}` | {status} | {kinds['ExitKind', kind.name]} |")
    return "\n".join(lines) + "\n"


def _sections(kind: Any, prefix: str) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = [(prefix, kind)]
    for item in dataclasses.fields(kind):
        inner = item.type
        name = f"{prefix}.{item.name}" if prefix else item.name
        arguments = get_args(inner)
        if arguments and dataclasses.is_dataclass(arguments[0]):
            found += _sections(
                arguments[0], f"{name}[]" if len(arguments) > 1 and arguments[1] is ... else name
            )
        elif dataclasses.is_dataclass(inner) and isinstance(inner, type):
            found += _sections(inner, name)
    return found


def _documents(module: ModuleType) -> dict[tuple[str, str], str]:
    """The string below each field or member, by class and name."""
    documents: dict[tuple[str, str], str] = {}
    for node in ast.parse(inspect.getsource(module)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        for field, text in zip(node.body, node.body[1:], strict=False):
            match field, text:
                case (
                    (ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)])),
                    ast.Expr(value=ast.Constant(value=str(document))),
                ):
                    documents[node.name, name] = " ".join(document.split())
    return documents


def _type_name(kind: Any) -> str:
    arguments = get_args(kind)
    if arguments and arguments[-1] is ...:
        return f"list of {_type_name(arguments[0])}"
    if arguments:
        return f"{_type_name(arguments[0])} or null"
    if dataclasses.is_dataclass(kind):
        return "table"
    if issubclass(kind, StrEnum):
        return ", ".join(f"`{value}`" for value in kind)
    return {str: "string", int: "integer", bool: "boolean", Path: "path"}[kind]


def _default(item: "dataclasses.Field[Any]") -> str:
    if item.default_factory is not dataclasses.MISSING:
        return "its defaults"
    if item.default is dataclasses.MISSING:
        return "required"
    if item.default is None:
        return "null"
    if item.default == ():
        return "empty"
    if isinstance(item.default, bool):
        return "`true`" if item.default else "`false`"
    return f"`{item.default}`" if item.default != "" else "empty"


if __name__ == "__main__":
    PAGE.write_text(render())
