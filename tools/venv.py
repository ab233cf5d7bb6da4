"""The private Python environment `build/venv`, made from the lock file and nothing else."""

import hashlib
import sys
from pathlib import Path

from . import layout
from .progress import run, step

LOCK = layout.CHECKOUT / "requirements.lock"
RUNTIME_LOCK = layout.CHECKOUT / "requirements-runtime.lock"

_STAMP = layout.VENV / ".strato-stamp"


def ensure() -> None:
    """Make or refresh the environment when the lock file or the Python version changed.

    Raises CommandError when pip fails.
    """
    wanted = _fingerprint()
    if _STAMP.is_file() and _STAMP.read_text() == wanted and layout.VENV_PYTHON.exists():
        return
    log = layout.LOGS / "venv.log"
    if not _same_python():
        with step("Python environment: create build/venv"):
            run([sys.executable, "-m", "venv", "--clear", layout.VENV], log=log)
    with step("Python environment: install the locked packages"):
        run(
            [
                *(layout.VENV_PYTHON, "-m", "pip", "install", "--disable-pip-version-check"),
                *("--require-hashes", "--only-binary=:all:", "-r", LOCK),
            ],
            log=log,
        )
    _STAMP.write_text(wanted)


def site_packages() -> Path:
    """The folder that holds the environment's packages."""
    return layout.VENV / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _fingerprint() -> str:
    lock = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    return f"{lock} {sys.version} {sys.base_prefix}\n"


def _same_python() -> bool:
    settings = layout.VENV / "pyvenv.cfg"
    if not settings.is_file() or not site_packages().is_dir():
        return False
    home = next((line for line in settings.read_text().splitlines() if line.startswith("home")), "")
    return Path(home.partition("=")[2].strip()).resolve().is_relative_to(Path(sys.base_prefix).resolve())
