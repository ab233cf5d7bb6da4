"""Flags and the three dialects of stdin, compared with the real protobuf library."""

from __future__ import annotations

import random

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from shim import params
from shim.protos.generated import bootstrap_pb2, runtimeoptions_pb2, task_pb2

pytestmark = pytest.mark.unit


def parse(*words: str, **environ: str) -> params.ShimParams:
    return params.parse_command_line(list(words), environ)


def options_any(path: str = "", body: bytes = b"") -> AnyMessage:
    options = runtimeoptions_pb2.Options(config_path=path, config_body=body)
    return AnyMessage(type_url="runtimeoptions.v1.Options", value=options.SerializeToString())


@pytest.mark.parametrize("dash", ["-", "--"])
def test_flags_both_dash_styles_are_read(dash: str) -> None:
    found = parse(f"{dash}namespace", "k8s.io", f"{dash}id=c1", f"{dash}debug", "start")

    assert (found.namespace, found.id, found.debug, found.verb) == ("k8s.io", "c1", True, "start")


def test_flags_environment_fills_what_isula_leaves_out() -> None:
    found = parse("--id", "c1", "start", TTRPC_ADDRESS="/t.sock", GRPC_ADDRESS="/g.sock")

    assert (found.ttrpc_address, found.address) == ("/t.sock", "/g.sock")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-nonsense"], "Unknown flag"),
        (["-id"], "needs a value"),
        (["start", "again"], "Unexpected argument"),
    ],
)
def test_flags_mistake_is_named(words: list[str], complaint: str) -> None:
    with pytest.raises(params.ParamsError, match=complaint):
        parse(*words)


def test_stdin_empty_changes_nothing() -> None:
    found = parse("-id", "c1", "start")

    params.apply_stdin(found, b"")

    assert not found.bootstrap


def test_stdin_any_with_options_is_not_taken_for_bootstrap_params() -> None:
    found = parse("-id", "c1", "-namespace", "n", "start")

    params.apply_stdin(found, options_any("/etc/strato/x.toml", b"[vm]").SerializeToString())

    assert not found.bootstrap
    assert (found.options_path, found.options_body) == ("/etc/strato/x.toml", b"[vm]")


def test_stdin_any_of_runc_options_is_ignored() -> None:
    found = parse("-id", "c1", "-namespace", "n", "start")
    runc = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\x08\x01")

    params.apply_stdin(found, runc.SerializeToString())

    assert (found.bootstrap, found.options_path) == (False, "")


@pytest.mark.parametrize("flags", [("-id", "c1", "-namespace", "n"), ()], ids=["with flags", "without"])
def test_stdin_bootstrap_params_are_read(flags: tuple[str, ...]) -> None:
    message = bootstrap_pb2.BootstrapParams(
        instance_id="c1",
        namespace="n",
        log_level=bootstrap_pb2.LOG_LEVEL_DEBUG,
        containerd_ttrpc_address="/t.sock",
        containerd_grpc_address="/g.sock",
        containerd_binary="/usr/bin/containerd",
        socket_dir="/run/s",
    )
    message.extensions.add(value=options_any("/x.toml"))
    found = parse(*flags, "start")

    params.apply_stdin(found, message.SerializeToString())

    assert found.bootstrap
    assert (found.id, found.namespace, found.debug) == ("c1", "n", True)
    assert (found.ttrpc_address, found.address) == ("/t.sock", "/g.sock")
    assert (found.publish_binary, found.socket_dir) == ("/usr/bin/containerd", "/run/s")
    assert found.options_path == "/x.toml"


@pytest.mark.parametrize("level", ["LOG_LEVEL_INFO", "LOG_LEVEL_WARN", "LOG_LEVEL_ERROR"])
def test_stdin_bootstrap_params_other_levels_are_not_debug(level: str) -> None:
    message = bootstrap_pb2.BootstrapParams(instance_id="c1", namespace="n", log_level=level)
    found = parse("-id", "c1", "-namespace", "n", "start")

    params.apply_stdin(found, message.SerializeToString())

    assert not found.debug


def test_stdin_no_protobuf_is_refused() -> None:
    with pytest.raises(params.ParamsError, match="no protobuf"):
        params.apply_stdin(parse("-id", "c1", "start"), b"\xff\xff\xff\xff")


def test_message_random_bytes_never_raise() -> None:
    chooser = random.Random(7)

    results = [params.parse_message(chooser.randbytes(chooser.randrange(60))) for _ in range(3000)]

    assert None in results


def test_message_encoding_is_protobuf() -> None:
    wanted = task_pb2.DeleteResponse(pid=300, exit_status=137)
    wanted.exited_at.FromNanoseconds(1_700_000_000_123_456_789)
    timestamp = params.encode_field(1, 1_700_000_000) + params.encode_field(2, 123_456_789)

    encoded = params.encode_field(1, 300) + params.encode_field(2, 137) + params.encode_field(3, timestamp)

    assert task_pb2.DeleteResponse.FromString(encoded) == wanted
