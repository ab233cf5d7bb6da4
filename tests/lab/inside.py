"""Plugin of the pytest that runs in the test host: each report goes to a file, from which the pytest outside
takes it while the tests run (delegation.py).

One JSON object per line, in pytest's own form of a report; a line `{"begins": node id}` when a test starts.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from .settings import RESULTS_VARIABLE

REPORTS = "reports.jsonl"


class ReportWriter:
    """Appends to the file; every line is there for the reader once it is written."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self._config = config
        self._stream = path.open("a", buffering=1, encoding="utf-8")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"begins": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._write(self._config.hook.pytest_report_to_serializable(config=self._config, report=report))

    def pytest_unconfigure(self) -> None:
        self._stream.close()

    def _write(self, document: dict[str, Any]) -> None:
        self._stream.write(json.dumps(document, default=str) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(ReportWriter(config, Path(os.environ[RESULTS_VARIABLE]) / REPORTS))
