/*
 * libstrato_sys.so: descriptor, namespace and mount plumbing and the byte pump. It never sees guest memory.
 *
 * Written by hand, in the subset of C that cffi parses unaided: no preprocessor lines.
 *
 * Conventions
 *   - Functions returning int32_t return 0, or a negative errno; the text of the calling thread's last failure
 *     is then in strato_sys_last_error(). -ENOTRECOVERABLE means a bug in the library (a caught panic).
 *   - The out-parameter is last and called ret. It is written on success only.
 *   - A struct begins with its size in bytes, set by the caller; a size that the library does not know is
 *     EINVAL. strato_sys_sizeof_*() tells the library's own.
 *   - Strings are NUL-terminated bytes and are not kept. Pointers must be valid, or null where that is said.
 *   - Descriptors that come back are CLOEXEC and belong to the caller. Descriptors that go in stay the caller's.
 */

/* ---- the library itself ---- */

/* The number of this interface; changes with every incompatible change. */
uint32_t strato_sys_abi_version(void);
/* The version of the distribution that the library was built from. Static storage. */
const char *strato_sys_version(void);
/* Copies the text of the calling thread's last failure (cut to capacity - 1 bytes, NUL-terminated) and returns
 * its full length. */
size_t strato_sys_last_error(char *buffer, size_t capacity);

/* ---- namespaces and processes ---- */

int32_t strato_sys_unshare(int32_t flags);
int32_t strato_sys_setns(int32_t fd, int32_t nstype);
int32_t strato_sys_set_child_subreaper(int32_t enable);
/* The signal comes when the thread that forked this process ends, not only when its process ends. 0 = none. */
int32_t strato_sys_set_parent_death_signal(int32_t signal);
int32_t strato_sys_close_range(uint32_t first, uint32_t last, uint32_t flags);
/* What ps and top show (comm): cut to 15 bytes by the kernel. May be called from any thread. */
int32_t strato_sys_set_process_name(const char *name);

/* ---- confinement: what the calling thread gives up, for ever ---- */

/* No program that is executed from here on has a capability or gains a privilege; those of this process stay. */
int32_t strato_sys_forbid_gains(void);

enum {
    STRATO_SYS_PATH_READ = 0,            /* to be read */
    STRATO_SYS_PATH_FOLDER = 1,          /* regular files and sockets may come, go and change */
    STRATO_SYS_PATH_TREE = 2,            /* anything but executing it */
    STRATO_SYS_PATH_DEVICE = 3,          /* a device or disk: to be read, written and asked (ioctl) */
    STRATO_SYS_PATH_DEVICE_READONLY = 4  /* a device or disk: to be read and asked */
};

typedef struct {
    const char *path;
    uint32_t use;
    uint32_t reserved;  /* 0 */
} strato_sys_path;
size_t strato_sys_sizeof_path(void);

/* Restricts this thread, and those that it starts from here on, to these paths and what is below them (Landlock).
 * After strato_sys_forbid_gains. ret is the version of the interface that the kernel has, 0 when it has none
 * that would do; then nothing has changed. */
int32_t strato_sys_restrict_paths(const strato_sys_path *paths, size_t count, uint32_t *ret);

enum {
    STRATO_SYS_FORBIDDEN_KILL = 0,  /* a system call beyond the filter ends the process by SIGSYS */
    STRATO_SYS_FORBIDDEN_LOG = 1    /* the kernel logs it and lets it through */
};

/* Leaves this thread, strato-vmm's first, without capabilities and with the system calls of the role control. */
int32_t strato_sys_confine_control(uint32_t forbidden);
/* 0: nobody of this user may look into this process, and it leaves no core dump. */
int32_t strato_sys_set_dumpable(int32_t enable);

/* ---- mounts ---- */

/* source, fstype and data may be null. */
int32_t strato_sys_mount(const char *source, const char *target, const char *fstype, uint64_t flags,
                         const char *data);
int32_t strato_sys_umount(const char *target, int32_t flags);
int32_t strato_sys_open_tree(int32_t dirfd, const char *path, uint32_t flags, int32_t *ret);
int32_t strato_sys_move_mount(int32_t from_dirfd, const char *from_path, int32_t to_dirfd, const char *to_path,
                              uint32_t flags);

/* struct mount_attr of linux/mount.h behind its size. userns_fd counts only with MOUNT_ATTR_IDMAP. */
typedef struct {
    uint64_t size;
    uint64_t attr_set;
    uint64_t attr_clr;
    uint64_t propagation;
    uint64_t userns_fd;
} strato_sys_mount_attr;
size_t strato_sys_sizeof_mount_attr(void);

int32_t strato_sys_mount_setattr(int32_t dirfd, const char *path, uint32_t flags,
                                 const strato_sys_mount_attr *attr);
int32_t strato_sys_pivot_root(const char *new_root, const char *put_old);

/* ---- network ---- */

typedef struct {
    uint32_t size;
    int32_t netns_fd;  /* -1: the calling thread's namespace */
    const char *name;  /* 1 to 15 bytes; a %d is filled in by the kernel */
    uint32_t mtu;      /* 0: leave it */
    uint32_t up;       /* 1: bring it up */
} strato_sys_tap_config;
size_t strato_sys_sizeof_tap_config(void);

/* A non-persistent tap (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR); it is gone when its last descriptor is. */
int32_t strato_sys_open_tap(const strato_sys_tap_config *config, int32_t *ret);
/* A NETLINK_ROUTE socket that lives in the given namespace. */
int32_t strato_sys_netlink_socket(int32_t netns_fd, int32_t *ret);

/* ---- time stamp counter ---- */

enum {
    STRATO_SYS_TSC_BEST = 0,     /* the first of the others that works, in their order */
    STRATO_SYS_TSC_KVM = 1,      /* KVM_GET_TSC_KHZ: what the host kernel believes */
    STRATO_SYS_TSC_PERF = 2,     /* time_mult of a perf event page: what the host kernel uses */
    STRATO_SYS_TSC_MEASURED = 3  /* rdtsc against CLOCK_MONOTONIC_RAW over 25 ms */
};

typedef struct {
    uint32_t size;
    uint32_t method;
    uint64_t khz;
} strato_sys_tsc_reading;
size_t strato_sys_sizeof_tsc_reading(void);

int32_t strato_sys_tsc(uint32_t method, strato_sys_tsc_reading *ret);

/* ---- the byte pump: one thread that moves bytes between pairs of descriptors ---- */

/* Calls may come from any thread, but only from the process that created the pump: a forked child gets
 * -EOWNERDEAD, and destroying there frees nothing. */
typedef struct strato_sys_pump strato_sys_pump;

enum {
    STRATO_SYS_PUMP_KEEP_ON_DST_ERROR = 1,  /* after DST_ERROR read on, to nowhere, and count */
    STRATO_SYS_PUMP_CLOSE_DST = 2           /* close the pump's dst when the stream ends, not at remove */
};

typedef struct {
    uint32_t size;
    uint32_t flags;
    int32_t src_fd;
    int32_t dst_fd;
    uint64_t tag;    /* comes back in the events */
    uint64_t limit;  /* UINT64_MAX: none */
} strato_sys_pump_stream;
size_t strato_sys_sizeof_pump_stream(void);

enum {
    STRATO_SYS_PUMP_SRC_EOF = 1,    /* the source ended and everything read has been written */
    STRATO_SYS_PUMP_DONE = 2,       /* the limit has been reached */
    STRATO_SYS_PUMP_DST_ERROR = 3,
    STRATO_SYS_PUMP_SRC_ERROR = 4
};

typedef struct {
    uint64_t tag;
    uint64_t handle;
    uint64_t bytes;  /* moved so far */
    uint32_t kind;
    int32_t error;   /* positive errno of the two errors, otherwise 0 */
} strato_sys_pump_event;
size_t strato_sys_sizeof_pump_event(void);

enum {
    STRATO_SYS_PUMP_RUNNING = 0,
    STRATO_SYS_PUMP_DRAINING = 1,  /* after DST_ERROR, reading to nowhere */
    STRATO_SYS_PUMP_FINISHED = 2   /* nothing moves any more; remove it */
};

typedef struct {
    uint32_t size;
    uint32_t state;
    uint64_t bytes_moved;  /* written, or thrown away while draining */
    uint64_t bytes_read;
} strato_sys_pump_stats_result;
size_t strato_sys_sizeof_pump_stats_result(void);

int32_t strato_sys_pump_create(strato_sys_pump **ret);
/* Ends the thread and closes everything. The handle is invalid afterwards. Null is allowed. */
void strato_sys_pump_destroy(strato_sys_pump *pump);
/* The eventfd that is readable while events wait. It stays the pump's. */
int32_t strato_sys_pump_event_fd(strato_sys_pump *pump, int32_t *ret);
/* Both descriptors are duplicated. */
int32_t strato_sys_pump_add(strato_sys_pump *pump, const strato_sys_pump_stream *stream, uint64_t *ret);
int32_t strato_sys_pump_set_limit(strato_sys_pump *pump, uint64_t handle, uint64_t total);
int32_t strato_sys_pump_stats(strato_sys_pump *pump, uint64_t handle, strato_sys_pump_stats_result *ret);
/* No event of this handle is delivered afterwards. ENOENT: no such handle. */
int32_t strato_sys_pump_remove(strato_sys_pump *pump, uint64_t handle);
/* Takes up to capacity waiting events; ret is their number. */
int32_t strato_sys_pump_events(strato_sys_pump *pump, strato_sys_pump_event *buffer, size_t capacity, size_t *ret);
