import pytest

from tests.framework.containerd_log import clean_ups_not_run, lost_before_use

pytestmark = pytest.mark.unit

BEGUN = (
    'time="t" level=info msg="connecting to shim c-1" '
    "address=/run/containerd/s/aa namespace=n protocol=grpc version=3"
)
WARNED = (
    'time="t" level=warning msg="shim grpc connection unexpected state" '
    'addr="unix:///run/containerd/s/aa" state=CONNECTING'
)
ENDED = 'time="t" level=info msg="shim disconnected" id=c-1 namespace=n'


def test_connection_that_ends_before_its_first_call_is_lost() -> None:
    assert lost_before_use([BEGUN, ENDED]) == ["c-1"]


def test_connection_that_was_used_is_not() -> None:
    assert lost_before_use([BEGUN, WARNED, ENDED]) == []


def test_use_of_another_connection_does_not_count() -> None:
    assert lost_before_use([BEGUN, WARNED.replace("/aa", "/ab"), ENDED]) == ["c-1"]


def test_end_of_a_shim_that_speaks_ttrpc_is_not_told() -> None:
    assert lost_before_use([BEGUN.replace("protocol=grpc", "protocol=ttrpc"), ENDED]) == []


def test_each_container_is_told_once() -> None:
    assert lost_before_use([BEGUN, ENDED, ENDED]) == ["c-1"]


def test_clean_up_that_could_not_start_is_told_with_its_words() -> None:
    words = "/b/shim -namespace n -address /c.sock -publish-binary /b/d -id c-1 -bundle /t/c-1 -debug delete"
    line = (
        f'time="t" level=error msg="failed to delete dead shim" cmd="{words}" '
        'error="fork/exec /b/shim: no such file or directory" id=c-1 namespace=n'
    )

    assert clean_ups_not_run([BEGUN, line, ENDED]) == [words.split()]


def test_clean_up_that_ran_and_failed_is_not() -> None:
    line = 'level=error msg="failed to delete dead shim" cmd="/b/shim -id c-1 delete" error="exit status 1"'

    assert clean_ups_not_run([line]) == []
