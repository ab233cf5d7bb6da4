use std::collections::BTreeSet;

use super::*;

const HEADER: &str = include_str!("../../include/strato_sys.h");
const SOURCE: &str = include_str!("../abi.rs");

/// Every `strato_sys_x(` of a text, without comments.
fn functions(text: &str) -> BTreeSet<String> {
    let code: String =
        text.split("/*").map(|part| part.split_once("*/").map_or(part, |(_, code)| code)).collect();
    code.match_indices("strato_sys_")
        .map(|(at, _)| {
            code[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        })
        .filter(|name| code.contains(&format!("{name}(")))
        .collect()
}

#[test]
fn the_header_declares_what_the_library_exports() {
    let declared = functions(HEADER);
    let mut exported: BTreeSet<String> = SOURCE
        .split("extern \"C\" fn ")
        .skip(1)
        .filter_map(|rest| rest.split_once('(').map(|(name, _)| name.to_owned()))
        .filter(|name| name.starts_with("strato_sys_"))
        .collect();
    let sizes = SOURCE.split("sizes! {").nth(1).unwrap().split('}').next().unwrap();
    exported.extend(
        sizes.lines().filter_map(|line| line.split_once(" => ").map(|(name, _)| name.trim().to_owned())),
    );
    assert_eq!(declared, exported);
    assert!(declared.len() > 25, "{declared:?}");
}

fn last_error() -> String {
    let mut buffer = [0 as c_char; 200];
    // SAFETY: the buffer is writable for its length.
    unsafe { strato_sys_last_error(buffer.as_mut_ptr(), buffer.len()) };
    // SAFETY: the call has ended it with NUL.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_str().unwrap().to_owned()
}

#[test]
fn wrong_sizes_and_null_pointers_are_refused() {
    let mut reading = RawTscReading { size: 3, method: 0, khz: 0 };
    // SAFETY: the place is live.
    assert_eq!(unsafe { strato_sys_tsc(0, &raw mut reading) }, -libc::EINVAL);
    assert!(last_error().contains("3 bytes"), "{}", last_error());
    // SAFETY: null is checked by the function.
    assert_eq!(unsafe { strato_sys_tsc(0, std::ptr::null_mut()) }, -libc::EINVAL);
    // SAFETY: null is checked by the function.
    assert_eq!(unsafe { strato_sys_umount(std::ptr::null(), 0) }, -libc::EINVAL);
    // SAFETY: null is checked by the function.
    assert_eq!(unsafe { strato_sys_pump_remove(std::ptr::null_mut(), 1) }, -libc::EINVAL);
    // SAFETY: null is allowed.
    unsafe { strato_sys_pump_destroy(std::ptr::null_mut()) };
}
