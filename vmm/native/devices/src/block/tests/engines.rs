//! Which engine is chosen, and what each is allowed to do.

use super::*;

/// Runs `test` on a thread of its own on which system call `number` fails with EPERM, as it does in many
/// containers.
fn without_system_call(number: i64, test: impl FnOnce() + Send + 'static) {
    let filtered = move || {
        let statement =
            |code: u32, k: u32, jt: u8, jf: u8| libc::sock_filter { code: code as u16, jt, jf, k };
        let deny = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
        let mut filter = [
            statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, number as u32, 0, 1),
            statement(libc::BPF_RET | libc::BPF_K, deny, 0, 0),
            statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program is valid for the length of the call, which binds this thread only.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            let mode = libc::SECCOMP_SET_MODE_FILTER;
            assert_eq!(libc::syscall(libc::SYS_seccomp, mode, 0, &raw const program), 0);
        }
        test();
    };
    std::thread::spawn(filtered).join().unwrap();
}

#[test]
fn io_uring_is_used_where_the_host_has_it() {
    let m = machine(EngineChoice::Auto);
    assert_eq!(m.metric("uring"), 1);
}

#[test]
fn host_that_forbids_io_uring_gets_threads() {
    for number in [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register] {
        without_system_call(number, move || {
            let mut m = machine(EngineChoice::Auto);
            assert_eq!(m.metric("uring"), 0);
            assert_eq!(m.ask(IN, 5, &[(DATA, 512, true)]).0, 0);
            assert_eq!(m.ask(FLUSH, 0, &[]).0, 0);
            let file = memory_file(SECTORS);
            assert!(Block::new(config(&file, EngineChoice::Uring)).is_err(), "{number}");
        });
    }
}

#[test]
fn data_beside_the_page_cache_is_read_by_both_engines() {
    for engine in ENGINES {
        let file = disk_file(SECTORS);
        // SAFETY: no pointers are passed. Only a hint, but file systems on disks take it.
        unsafe {
            use std::os::fd::AsRawFd;
            libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED);
        }
        let mut m = start(Block::new(config(&file, engine)).unwrap(), file, VIRTIO_F_VERSION_1);
        assert_eq!(m.ask(IN, 5, &[(DATA, 4096, true)]).0, 0);
        assert_eq!(m.drivers[0].read(DATA + 3584, 512), [13; 512]);
        assert_eq!(m.ask(IN, 5, &[(DATA, 4096, true)]).0, 0);
    }
}
