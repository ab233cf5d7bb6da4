//! bzImages: what is loaded where, and every lie that a setup header can tell.

use super::super::Mode;
use super::files::*;
use crate::arch::EntryChoice;

fn changed(offset: usize, value: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, offset, value);
    file
}

#[test]
fn packed_kernel_goes_where_it_prefers_to_be_and_its_header_into_the_zero_page() {
    let ram = ram();
    let entry = start(&ram, &bzimage(), EntryChoice::Auto).unwrap();
    assert_eq!((entry.mode, entry.addr, entry.info_addr), (Mode::Long, TEXT_ADDR + 0x200, 0x7000));
    assert_eq!(read(&ram, TEXT_ADDR), [0x5A; PACKED_BYTES]);
    assert_eq!(read(&ram, TEXT_ADDR + PACKED_BYTES as u64), [0; 64]);
    let page: [u8; 4096] = read(&ram, 0x7000);
    assert_eq!(page[0x202..0x206], *b"HdrS");
    assert_eq!(page[setup::INIT_SIZE..][..4], INIT_SIZE.to_le_bytes());
    // Code behind the header is not taken for a part of it.
    assert_eq!(page[0x26C..0x290], [0; 36]);
    assert_eq!(page[0x210], 0xFF);
    assert_eq!(page[0x228..0x22C], 0x2_0000u32.to_le_bytes());
}

#[test]
fn setup_of_no_sectors_is_one_of_four() {
    let old = bzimage();
    let mut four = vec![0; 5 * 512];
    four[..4 * 512].copy_from_slice(&old[..4 * 512]);
    four[setup::SETUP_SECTS] = 0;
    four.extend(&old[4 * 512..]);
    let ram = ram();
    start(&ram, &four, EntryChoice::Auto).unwrap();
    assert_eq!(read(&ram, TEXT_ADDR), [0x5A; PACKED_BYTES]);
}

#[test]
fn signature_behind_the_kernel_is_not_loaded() {
    let ram = ram();
    let mut signed = bzimage();
    signed.resize(signed.len().next_multiple_of(16), 0x5A);
    let end = TEXT_ADDR + (PACKED_BYTES as u64).next_multiple_of(16);
    signed.extend([0xEE; 512]);
    start(&ram, &signed, EntryChoice::Auto).unwrap();
    assert_eq!(read(&ram, end), [0; 16]);
}

#[test]
fn pvh_entry_is_refused() {
    assert_eq!(
        start(&ram(), &bzimage(), EntryChoice::Pvh).unwrap_err().to_string(),
        "The kernel has no PVH entry: only an ELF kernel built with CONFIG_PVH has one"
    );
}

#[test]
fn setup_header_that_lies_is_refused_by_name() {
    for (offset, value, text) in [
        (setup::BOOT_FLAG, &[0u8, 0][..], "The kernel's setup header has boot flag 0x0 instead of 0xaa55"),
        (
            setup::VERSION,
            &[0x0B, 0x02],
            "The kernel's setup header is of protocol 0x20b; 64-bit entries begin with 0x20c",
        ),
        (
            setup::LOADFLAGS,
            &[0],
            "The kernel's setup header is that of a zImage, which is loaded below 1 MiB",
        ),
        (setup::XLOADFLAGS, &[0x7E, 0], "The kernel's setup header has no 64-bit entry: xloadflags are 0x7e"),
        (
            setup::SYSSIZE,
            &[0; 4],
            "The kernel's setup header says 0 bytes of kernel at 2048; the file has 4660",
        ),
        (
            setup::SYSSIZE,
            &[0x25, 1, 0, 0],
            "The kernel's setup header says 4688 bytes of kernel at 2048; the file has 4660",
        ),
        (
            setup::SYSSIZE,
            &[0xFF; 4],
            "The kernel's setup header says 68719476720 bytes of kernel at 2048; the file has 4660",
        ),
        (
            setup::SETUP_SECTS,
            &[0xFF],
            "The kernel's setup header says 4672 bytes of kernel at 131072; the file has 0",
        ),
        (
            setup::INIT_SIZE,
            &[0xFF; 4],
            "The kernel wants memory at 0x1000000 to 0x100ffffff to unpack itself; it may have 0x100000 to \
             0x2000000",
        ),
        (
            setup::PREF_ADDRESS,
            &[0xFF; 8],
            "The kernel wants memory at 0xffffffffffffffff to 0xffffffffffffffff to unpack itself; it may have \
             0x100000 to 0x2000000",
        ),
        (
            setup::PREF_ADDRESS,
            &[0; 8],
            "The kernel wants memory at 0x0 to 0x400000 to unpack itself; it may have 0x100000 to 0x2000000",
        ),
        (
            setup::MAGIC,
            b"hDRs",
            "The kernel is neither an ELF file nor a bzImage: it begins with 00 00 00 00",
        ),
    ] {
        assert_eq!(refusal(&changed(offset, value)), text);
    }
}

#[test]
fn size_that_the_kernel_does_not_admit_is_still_kept_clear() {
    // init_size 0: what is loaded counts.
    let ram = ram();
    start(&ram, &changed(setup::INIT_SIZE, &[0; 4]), EntryChoice::Auto).unwrap();
    let near_the_end = (RAM_BYTES - 0x1000).to_le_bytes();
    let mut file = changed(setup::INIT_SIZE, &[0; 4]);
    put(&mut file, setup::PREF_ADDRESS, &near_the_end);
    assert_eq!(
        refusal(&file),
        "The kernel wants memory at 0x1fff000 to 0x2000240 to unpack itself; it may have 0x100000 to 0x2000000"
    );
}

#[test]
fn kernel_that_is_cut_off_anywhere_is_refused() {
    let whole = bzimage();
    for len in (0..whole.len() - 16).step_by(13) {
        let text = refusal(&whole[..len]);
        assert!(text.starts_with("The kernel"), "{len}: {text}");
    }
}
