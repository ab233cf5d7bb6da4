"""Where things are in a checkout, for the developer tools. One place, so that no tool builds paths itself."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
BUILD = CHECKOUT / "build"
VENV = BUILD / "venv"
VENV_PYTHON = VENV / "bin" / "python"
LIBRARY = BUILD / "lib" / "strato"
BIN = BUILD / "bin"
TEST_TOOLS = BUILD / "test-tools"
LOGS = BUILD / "log"
DIST = CHECKOUT / "dist"
NATIVE = CHECKOUT / "vmm" / "native"
AGENT = CHECKOUT / "guest-agent"
