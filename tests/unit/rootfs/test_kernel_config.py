"""Fragments of the guest kernel: reading, merging, and the check for vanished symbols."""

import pytest

from rootfs.errors import FragmentError, SymbolError
from rootfs.kernel.build import FRAGMENTS
from rootfs.kernel.config import (
    Fragment,
    count_enabled,
    load_fragments,
    merge,
    parse_config,
    render,
    unnamed_defences,
    verify,
)

pytestmark = pytest.mark.unit


def test_parse_config_reads_values_strings_and_unset_marks() -> None:
    text = '# Comment.\n\nCONFIG_NET=y\nCONFIG_HZ=250\nCONFIG_LSM="landlock,yama"\n# CONFIG_PCI is not set\n'

    options = parse_config(text, "net.config")

    assert options == {"NET": "y", "HZ": "250", "LSM": '"landlock,yama"', "PCI": "n"}


@pytest.mark.parametrize("line", ["NET=y", "CONFIG_NET", "CONFIG_NET=", "CONFIG NET=y"])
def test_parse_config_malformed_line_names_file_and_line(line: str) -> None:
    with pytest.raises(FragmentError, match=r"Line 2 of net\.config"):
        parse_config(f"CONFIG_INET=y\n{line}\n", "net.config")


def test_parse_config_symbol_twice_in_one_file_is_refused() -> None:
    with pytest.raises(FragmentError, match="CONFIG_NET is set twice"):
        parse_config("CONFIG_NET=y\n# CONFIG_NET is not set\n", "net.config")


def test_merge_symbol_in_two_fragments_names_both() -> None:
    fragments = [Fragment("base", {"NET": "y"}), Fragment("network", {"NET": "y"})]

    with pytest.raises(FragmentError, match="base and again by network"):
        merge(fragments)


def test_render_is_read_back_unchanged_and_sorted() -> None:
    options = {"NET": "y", "HZ": "250", "BLOCK": "n"}

    text = render(options)

    assert parse_config(text, "rendered") == options
    assert text.splitlines()[0] == "# CONFIG_BLOCK is not set"


def test_verify_lists_vanished_and_changed_symbols_with_their_fragments() -> None:
    fragments = [
        Fragment("fs", {"EROFS_FS": "y", "EXT4_FS": "y"}),
        Fragment("time", {"HZ": "250", "RTC": "n"}),
    ]
    final = {"EXT4_FS": "y", "HZ": "100", "RTC": "y"}

    with pytest.raises(SymbolError) as caught:
        verify(fragments, final)

    message = str(caught.value)
    assert message.startswith("3 kernel options")
    assert "fs: CONFIG_EROFS_FS wanted y, vanished" in message
    assert "time: CONFIG_HZ wanted 250, became 100" in message
    assert "time: CONFIG_RTC wanted n, became y" in message
    assert "EXT4_FS" not in message


def test_verify_option_wanted_off_may_be_absent() -> None:
    verify([Fragment("base", {"MODULES": "n"})], {"NET": "y"})


def test_defence_that_no_fragment_names_is_switched_on() -> None:
    fragments = [Fragment("security", {"MITIGATION_RETPOLINE": "y", "MITIGATION_OLD": "n"})]
    final = {
        "MITIGATION_RETPOLINE": "y",
        "MITIGATION_OLD": "n",
        "MITIGATION_NEW": "n",
        "NET": "n",
    }
    assert unnamed_defences(fragments, final) == {"MITIGATION_NEW": "y"}


def test_count_enabled_counts_only_built_in_symbols() -> None:
    assert count_enabled({"NET": "y", "HZ": "250", "PCI": "n", "BLOCK": "y"}) == 2


def test_repository_fragments_merge_without_contradiction() -> None:
    merged = merge(load_fragments(FRAGMENTS))

    assert merged["VIRTIO_MMIO"] == "y"
    assert "m" not in merged.values()


# What the product promises to containers, whatever becomes of the fragments' arrangement.
@pytest.mark.parametrize(
    "symbol",
    [
        *("UTS_NS", "TIME_NS", "IPC_NS", "USER_NS", "PID_NS", "NET_NS"),
        *(
            "MEMCG",
            "CFS_BANDWIDTH",
            "CGROUP_PIDS",
            "CPUSETS",
            "CGROUP_BPF",
            "BLK_DEV_THROTTLING",
            "CGROUP_HUGETLB",
        ),
        *("OVERLAY_FS", "EROFS_FS", "EXT4_FS", "XFS_FS", "VIRTIO_FS", "FUSE_DAX", "BLK_DEV_LOOP"),
        *(
            "MITIGATION_SPECTRE_V1",
            "MITIGATION_SPECTRE_V2",
            "MITIGATION_SSB",
            "MITIGATION_RETBLEED",
            "MITIGATION_ITS",
            "MITIGATION_TSA",
        ),
        *("SECCOMP_FILTER", "SECURITY_LANDLOCK", "NF_TABLES", "IP_NF_IPTABLES", "IP6_NF_IPTABLES"),
        *("VETH", "BRIDGE", "TUN", "MACVLAN", "IPVLAN", "IPV6", "VIRTIO_VSOCKETS"),
        *("VMGENID", "PVPANIC_MMIO", "VIRTIO_MEM", "PAGE_REPORTING", "VIRTIO_BALLOON", "PVH", "KVM_GUEST"),
    ],
)
def test_repository_fragments_keep_promised_symbol(symbol: str) -> None:
    assert merge(load_fragments(FRAGMENTS))[symbol] == "y"
