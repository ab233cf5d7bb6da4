import subprocess
from pathlib import Path

import pytest

from tests.lab.host import INSIDE, command_script
from tests.lab.settings import Command, inherited_environment

pytestmark = pytest.mark.unit

PRINT = "import json, os, sys; print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get('ODD')]))"


def test_environment_loses_what_belongs_to_this_machines_session() -> None:
    given = {"PATH": "/bin", "TMPDIR": "/x", "SSH_AUTH_SOCK": "/y", "BASH_FUNC_f%%": "() { :; }"}
    given["PYTHONDONTWRITEBYTECODE"] = "1"

    assert set(inherited_environment(given)) == {
        "PATH",
        "STRATO_TEST_ENGINE",
        "STRATO_TEST_KVM_EMULATED",
        "STRATO_TEST_PATIENCE",
    }


def test_tests_inside_use_engine_kvm_unless_told_otherwise() -> None:
    assert inherited_environment({})["STRATO_TEST_ENGINE"] == "kvm"
    assert inherited_environment({"STRATO_TEST_ENGINE": "tcg"})["STRATO_TEST_ENGINE"] == "tcg"


def test_script_gives_the_command_its_words_folder_and_environment(tmp_path: Path) -> None:
    folder = tmp_path / "with 'quotes' and blanks"
    folder.mkdir()
    words = ["python3", "-c", PRINT, "a b", "$HOME", "it's", ""]
    command = Command(words, directory=folder, environment={"PATH": "/usr/bin:/bin", "ODD": "line\n'two' $x"})

    done = subprocess.run(["sh"], input=command_script(command), capture_output=True, text=True, check=True)

    assert done.stdout.strip() == (f'[["a b", "$HOME", "it\'s", ""], "{folder}", "line\\n\'two\' $x"]')


def test_script_names_the_folder_of_results() -> None:
    command = Command(["sh", "-c", "echo $STRATO_LAB_RESULTS; exit 5"], Path("/"), {"PATH": "/usr/bin:/bin"})

    done = subprocess.run(["sh"], input=command_script(command), capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == (f"{INSIDE}/results\n", 5)


def test_script_in_a_folder_that_is_gone_does_not_run_the_command() -> None:
    command = Command(["echo", "ran"], Path("/nonexistent"), {})

    done = subprocess.run(["sh"], input=command_script(command), capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("", 125)
