"""Settings: layers, refusals, and the page generated from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim import config, config_files
from shim.errors import ConfigError

pytestmark = pytest.mark.unit

CHECKOUT = Path(__file__).resolve().parents[3]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_defaults_without_any_file() -> None:
    assert config.load_settings(files=[]) == config.Settings()


def test_layers_later_ones_override_earlier_ones(tmp_path: Path) -> None:
    first = write(
        tmp_path / "a.toml", "[vm]\ndefault_vcpus = 2\noverhead_mib = 10\ndefault_memory_mib = 100\n"
    )
    second = write(tmp_path / "b.toml", "[vm]\ndefault_vcpus = 3\n")
    options = write(tmp_path / "o.toml", "[vm]\ndefault_memory_mib = 200\nspare_nics = 4\n")

    settings = config.load_settings(
        files=[first, second],
        options_path=options,
        options_body=b"[shim]\nlog_level = 'debug'",
        annotations={"io.strato.vm.spare_nics": "5", "other": "x"},
    )

    assert (settings.vm.overhead_mib, settings.vm.default_vcpus) == (10, 3)
    assert (settings.vm.default_memory_mib, settings.vm.spare_nics) == (200, 5)
    assert settings.shim.log_level == "debug"


def test_files_main_file_then_drop_ins_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = write(tmp_path / "config.toml", "")
    (tmp_path / "config.d").mkdir()
    names = ["20.toml", "10.toml", "30.toml.bak"]
    paths = [write(tmp_path / "config.d" / name, "") for name in names]
    monkeypatch.setenv(config_files.ENVIRONMENT, main)

    assert config_files.files() == [main, paths[1], paths[0]]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[nonsense]\n", r"unknown section \[nonsense\]"),
        ("[vm]\nnonsense = 1\n", "unknown key vm.nonsense"),
        ("vm = 1\n", "vm must be a table"),
        ("[vm]\ndefault_vcpus = '2'\n", "vm.default_vcpus must be a number"),
        ("[vm]\ndefault_vcpus = true\n", "vm.default_vcpus must be a number"),
        ("[vm]\ndefault_vcpus = 0\n", "must be at least 1"),
        ("[vm]\nengine = 'xen'\n", "vm.engine must be one of auto, kvm, tcg"),
        ("[vm]\nkernel = 'vmlinux'\n", "vm.kernel must be an absolute path"),
        ("[vm]\nkernel_params = 1\n", "vm.kernel_params must be a string"),
        ("[annotations]\nallow = [1]\n", "annotations.allow must be a list of strings"),
        ("[vm\n", "no TOML"),
    ],
)
def test_file_mistake_names_file_and_key(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "config.toml", text)

    with pytest.raises(ConfigError, match=complaint) as caught:
        config.load_settings(files=[path])
    assert path in str(caught.value)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load_settings(files=[str(tmp_path)])


def test_options_may_not_set_what_belongs_to_the_file() -> None:
    with pytest.raises(ConfigError, match="state_root can only be set in the configuration file"):
        config.load_settings(files=[], options_body=b"[shim]\nstate_root = '/tmp'\n")


@pytest.mark.parametrize("name", ["vm.kernel", "nonsense"])
def test_annotation_that_is_not_permitted_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="not permitted"):
        config.load_settings(files=[], annotations={f"io.strato.{name}": "/x"})


def test_annotation_that_only_the_list_permits_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[annotations]\nallow = ['shim.state_root']\n")

    with pytest.raises(ConfigError, match="unknown key"):
        config.load_settings(files=[path], annotations={"io.strato.shim.state_root": "/x"})


def test_annotation_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="no whole number"):
        config.load_settings(files=[], annotations={"io.strato.vm.spare_nics": "many"})


def test_jail_is_on_and_can_be_switched_off(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[jail]\nenabled = false\n")

    assert config.load_settings(files=[]).jail.enabled
    assert not config.load_settings(files=[path]).jail.enabled


def test_switch_that_is_neither_on_nor_off_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "c.toml", "[jail]\nenabled = 'no'\n")

    with pytest.raises(ConfigError, match=r"jail\.enabled must be true or false"):
        config.load_settings(files=[path])


def test_page_is_what_the_code_says() -> None:
    assert (CHECKOUT / "docs/configuration.md").read_text() == config.document()
