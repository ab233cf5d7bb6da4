/*
 * libstrato_vmm.so: the device cores and the virtual machine on KVM. Its threads alone touch guest memory.
 *
 * Written by hand, in the subset of C that cffi parses unaided: no preprocessor lines.
 *
 * Conventions
 *   - Functions returning int32_t return 0, or a negative errno; the text of the calling thread's last failure
 *     is then in strato_vmm_last_error(). -ENOTRECOVERABLE means a bug in the library (a caught panic).
 *   - The out-parameter is last and called ret. It is written on success only.
 *   - A struct that goes in begins with its size in bytes, set by the caller; a size that the library does not
 *     know is EINVAL. strato_vmm_sizeof_*() tells the library's own.
 *   - Strings are NUL-terminated bytes and are not kept. Pointers must be valid, or null where that is said.
 *   - Descriptors that go in stay the caller's: the library duplicates what it keeps.
 *   - Handles may be used from any thread, but not after their destruction.
 *   - Nothing calls back. The library's threads block all signals, but vCPUs the one that stops them: the first
 *     real-time signal (SIGRTMIN). Whoever adds vCPUs has it blocked from then on.
 */

/* ---- the library itself ---- */

/* The number of this interface; changes with every incompatible change. */
uint32_t strato_vmm_abi_version(void);
/* The version of the distribution that the library was built from. Static storage. */
const char *strato_vmm_version(void);
/* Copies the text of the calling thread's last failure (cut to capacity - 1 bytes, NUL-terminated) and returns
 * its full length. */
size_t strato_vmm_last_error(char *buffer, size_t capacity);

/* ---- confinement ---- */

enum {
    STRATO_VMM_FORBIDDEN_KILL = 0,  /* a system call beyond a thread's filter ends the process by SIGSYS */
    STRATO_VMM_FORBIDDEN_LOG = 1    /* the kernel logs it and lets it through */
};

/* Every thread that the library starts from here on confines itself, first thing, to the capabilities and system
 * calls of its role. For ever; the calling thread gives up new privileges, too. A thread of its own, the keeper,
 * starts them. */
int32_t strato_vmm_confine_threads(uint32_t forbidden);
/* Confines the keeper, too: to what all roles need together. After that a thread still starts, with two filters. */
int32_t strato_vmm_seal_threads(void);

/* ---- events: what devices have to say ---- */

typedef struct strato_vmm_events strato_vmm_events;

enum {
    STRATO_VMM_EVENT_NEEDS_RESET = 1,     /* the driver broke the protocol; the device waits for a reset */
    STRATO_VMM_EVENT_BACKEND_ERROR = 2,   /* the host's side failed; the guest has its answer */
    STRATO_VMM_EVENT_CONFIG_CHANGED = 3,
    STRATO_VMM_EVENT_REFUSED = 4,         /* a request of the front end */
    STRATO_VMM_EVENT_FRONT_END_GONE = 5,  /* another may be served */
    STRATO_VMM_EVENT_LOST = 6,            /* the device's thread could not go on */
    STRATO_VMM_EVENT_PANICKED = 7,        /* a bug; the device, or the machine, is lost */
    STRATO_VMM_EVENT_BALLOON_CHANGED = 8, /* the guest has given up another amount of memory */
    /* Of machines. After the ends (reset, shutdown, triple fault, failed vCPU) all vCPUs park by themselves; of
     * them there is one until the machine is reset. */
    STRATO_VMM_EVENT_GUEST_RESET = 16,
    STRATO_VMM_EVENT_GUEST_SHUTDOWN = 17,
    STRATO_VMM_EVENT_GUEST_PANICKED = 18, /* no end: the guest decides what it does then */
    STRATO_VMM_EVENT_TRIPLE_FAULT = 19,   /* how x86 kernels without firmware reset, and how they die */
    STRATO_VMM_EVENT_VCPU_FAILED = 20,    /* text: KVM's numbers */
    STRATO_VMM_EVENT_CRASH_LOADED = 21    /* a panic of a guest whose crash kernel takes over */
};

typedef struct {
    uint64_t tag;    /* of the device or machine; UINT64_MAX: of the library (a panic of any of its threads) */
    uint64_t count;  /* how often, until it was taken */
    uint32_t kind;
    char text[200];  /* of the first of them */
} strato_vmm_event;
size_t strato_vmm_sizeof_event(void);

int32_t strato_vmm_events_create(strato_vmm_events **ret);
/* Devices may outlive it. Null is allowed. */
void strato_vmm_events_destroy(strato_vmm_events *events);
/* The eventfd that is readable while events wait. It stays the ring's. */
int32_t strato_vmm_events_fd(strato_vmm_events *events, int32_t *ret);
/* Takes up to capacity waiting events, oldest first; ret is their number. An event that waits counts later ones
 * of the same device and kind, so that none is ever without a place. */
int32_t strato_vmm_events_next(strato_vmm_events *events, strato_vmm_event *buffer, size_t capacity,
                               size_t *ret);

/* ---- devices ---- */

/* tag comes back in events; name is the thread's (15 bytes show). The thread starts when the device is served for
 * the first time or plugged into a machine: it is one or the other, for good. */
typedef struct strato_vmm_device strato_vmm_device;

typedef struct {
    uint64_t size;
    uint64_t rate;   /* bytes per second */
    uint64_t burst;  /* bytes */
} strato_vmm_rng_config;
size_t strato_vmm_sizeof_rng_config(void);

int32_t strato_vmm_rng_create(strato_vmm_events *events, uint64_t tag, const char *name,
                              const strato_vmm_rng_config *config, strato_vmm_device **ret);

typedef struct {
    uint32_t size;
    uint32_t max_connections;
    uint64_t guest_cid;
    const char *path;  /* where host programs connect; <path>_<port> is where the guest does */
} strato_vmm_vsock_config;
size_t strato_vmm_sizeof_vsock_config(void);

/* Listens at once. */
int32_t strato_vmm_vsock_create(strato_vmm_events *events, uint64_t tag, const char *name,
                                const strato_vmm_vsock_config *config, strato_vmm_device **ret);

/* Zero: no limit; a burst of zero: as much as a second gives. */
typedef struct {
    uint64_t bandwidth;        /* bytes per second */
    uint64_t bandwidth_burst;  /* bytes */
    uint64_t operations;       /* per second */
    uint64_t operations_burst;
} strato_vmm_limits;
size_t strato_vmm_sizeof_limits(void);

enum {
    STRATO_VMM_BLOCK_WRITEBACK = 0,  /* host page cache, flushes honoured */
    STRATO_VMM_BLOCK_NONE = 1,       /* host page cache, flushes ignored */
    STRATO_VMM_BLOCK_DIRECT = 2      /* O_DIRECT, flushes honoured */
};

enum {
    STRATO_VMM_BLOCK_ENGINE_AUTO = 0,
    STRATO_VMM_BLOCK_ENGINE_URING = 1,
    STRATO_VMM_BLOCK_ENGINE_POOL = 2
};

typedef struct {
    uint32_t size;
    int32_t fd;  /* a regular file or block device; its O_DIRECT flag is set as cache says */
    uint32_t cache;
    uint32_t readonly;
    uint32_t engine;
    uint32_t num_queues;
    const char *serial;  /* at most 20 bytes; null: none */
    strato_vmm_limits limits;
} strato_vmm_block_config;
size_t strato_vmm_sizeof_block_config(void);

int32_t strato_vmm_block_create(strato_vmm_events *events, uint64_t tag, const char *name,
                                const strato_vmm_block_config *config, strato_vmm_device **ret);
/* Takes the file's size anew, tells the driver, and returns the bytes that it sees. */
int32_t strato_vmm_block_resize(strato_vmm_device *device, uint64_t *ret);
int32_t strato_vmm_block_set_limits(strato_vmm_device *device, const strato_vmm_limits *limits);

enum {
    STRATO_VMM_FS_CACHE_AUTO = 0,
    STRATO_VMM_FS_CACHE_ALWAYS = 1,
    STRATO_VMM_FS_CACHE_NONE = 2
};

typedef struct {
    uint32_t size;
    int32_t directory_fd;  /* negative: a root of its own, below which shares are added */
    uint32_t cache;
    uint32_t readonly;
    uint32_t writeback;
    uint32_t shares;  /* how many fs devices share the process's descriptors */
    const char *tag;  /* at most 36 bytes */
} strato_vmm_fs_config;
size_t strato_vmm_sizeof_fs_config(void);

int32_t strato_vmm_fs_create(strato_vmm_events *events, uint64_t tag, const char *name,
                             const strato_vmm_fs_config *config, strato_vmm_device **ret);

typedef struct {
    uint32_t size;
    int32_t directory_fd;
    uint32_t readonly;
    uint32_t reserved;  /* 0 */
    const char *name;   /* of the directory in the guest */
} strato_vmm_fs_share;
size_t strato_vmm_sizeof_fs_share(void);

/* Shows a folder below the root of a device without one of its own. EEXIST: the name is taken. */
int32_t strato_vmm_fs_add_share(strato_vmm_device *device, const strato_vmm_fs_share *share);
/* Takes it away: files below it are ESTALE to the guest, and no descriptor below it is left. Waits for requests
 * in flight; ETIMEDOUT: it is gone for the guest, but one is still under way. */
int32_t strato_vmm_fs_remove_share(strato_vmm_device *device, const char *name, uint32_t timeout_ms);

typedef struct {
    uint32_t size;
    uint32_t num_taps;         /* queue pairs, 1 to 256 */
    const int32_t *tap_fds;    /* so many descriptors: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR */
    const char *tap_name;      /* or the name of a tap in this network namespace; null: the descriptors */
    uint8_t mac[6];
    uint16_t mtu;              /* 0: not told to the guest */
    uint32_t link_up;
    strato_vmm_limits receive_limits;   /* what the guest receives */
    strato_vmm_limits transmit_limits;  /* what it sends */
} strato_vmm_net_config;
size_t strato_vmm_sizeof_net_config(void);

int32_t strato_vmm_net_create(strato_vmm_events *events, uint64_t tag, const char *name,
                              const strato_vmm_net_config *config, strato_vmm_device **ret);
/* The following are carried out by the device's own thread, soon and in order. */
int32_t strato_vmm_net_set_link(strato_vmm_device *device, uint32_t up);
/* Null: the limits of that direction stay. */
int32_t strato_vmm_net_set_limits(strato_vmm_device *device, const strato_vmm_limits *receive,
                                  const strato_vmm_limits *transmit);
/* As many as there are queue pairs; another number changes nothing. */
int32_t strato_vmm_net_set_taps(strato_vmm_device *device, const int32_t *tap_fds, uint32_t num_taps);

typedef struct {
    const char *name;    /* that programs of the guest find the port by, at most 64 bytes; null: none */
    int32_t input_fd;    /* where the host's bytes come from: pipe, socket, terminal; negative: none */
    int32_t output_fd;   /* where the guest's go; negative: they are dropped. Both become non-blocking */
    uint32_t console;    /* the guest may use it as a terminal; the first port always is one */
    uint32_t reserved;   /* 0 */
} strato_vmm_console_port;
size_t strato_vmm_sizeof_console_port(void);

typedef struct {
    uint32_t size;
    uint32_t num_ports;  /* 1 to 31 */
    const strato_vmm_console_port *ports;
    uint16_t columns;    /* of the terminal behind the first port */
    uint16_t rows;
    uint32_t reserved;   /* 0 */
} strato_vmm_console_config;
size_t strato_vmm_sizeof_console_config(void);

int32_t strato_vmm_console_create(strato_vmm_events *events, uint64_t tag, const char *name,
                                  const strato_vmm_console_config *config, strato_vmm_device **ret);
/* Tells the guest the size of the terminal behind the first port. */
int32_t strato_vmm_console_resize(strato_vmm_device *device, uint16_t columns, uint16_t rows);

typedef struct {
    uint32_t size;
    uint32_t deflate_on_oom;    /* the guest may take pages back rather than kill a program */
    uint32_t reporting;         /* the guest tells of pages that are free anyway */
    uint32_t stats_interval_s;  /* how often the guest is asked for statistics; 0: it tells them once */
} strato_vmm_balloon_config;
size_t strato_vmm_sizeof_balloon_config(void);

/* What the guest says is not to be relied on. */
typedef struct {
    uint64_t target_bytes;     /* what the guest is asked to give up */
    uint64_t actual_bytes;     /* what it says it has given up */
    uint64_t reported_bytes;   /* what it has reported as free so far, each time anew */
    uint64_t discarded_bytes;  /* what went back to the host so far */
    uint64_t updated_s;        /* when statistics came last, in seconds since the epoch; 0: never */
    uint64_t stats[16];        /* by tag (virtio 1.2, 5.5.6.4; Linux: VIRTIO_BALLOON_S_*); UINT64_MAX: not told */
} strato_vmm_balloon_info;
size_t strato_vmm_sizeof_balloon_info(void);

int32_t strato_vmm_balloon_create(strato_vmm_events *events, uint64_t tag, const char *name,
                                  const strato_vmm_balloon_config *config, strato_vmm_device **ret);
/* Asks the guest to give up so many bytes of its memory in all (pages of 4 KiB); it does so as far as it can. */
int32_t strato_vmm_balloon_set_target(strato_vmm_device *device, uint64_t bytes);
int32_t strato_vmm_balloon_get_info(strato_vmm_device *device, strato_vmm_balloon_info *ret);

/* Serves the vhost-user front end at the other end of a connected stream socket, on threads of its own. Of a
 * socket that listens the first connection is served; QEMU's network front end takes no connected one.
 * EBUSY: one is being served, or the device belongs to a machine. */
int32_t strato_vmm_device_serve(strato_vmm_device *device, int32_t socket_fd);

typedef struct {
    char name[32];
    uint64_t value;
} strato_vmm_metric;
size_t strato_vmm_sizeof_metric(void);

/* Writes up to capacity counters; ret is how many there are. */
int32_t strato_vmm_device_metrics(strato_vmm_device *device, strato_vmm_metric *buffer, size_t capacity,
                                  size_t *ret);
/* Ends the conversation with the front end, lets everything in flight come to rest, and joins the threads. A device
 * that is plugged into a machine stays there until it is unplugged or the machine ends. Null is allowed. */
void strato_vmm_device_destroy(strato_vmm_device *device);

/* ---- the virtual machine on KVM ---- */

/* Whether this host's KVM runs an unmodified kernel: a few instructions of kernel mode in a throw-away VM. ret is 1
 * if so; text says why, or why not (cut to capacity - 1 bytes, NUL-terminated). Fails only for wrong arguments. */
int32_t strato_vmm_probe(int32_t kvm_fd, char *text, size_t capacity, uint32_t *ret);

/* The steps of a boot, in this order: create, add_memory, add_platform, add_slot (each), plug (any), add_cpus,
 * load, resume. Every step but plug is done once; a step out of order is EINVAL. Calls on one machine are carried
 * out one after the other. */
typedef struct strato_vmm_machine strato_vmm_machine;

typedef struct {
    uint32_t size;
    int32_t kvm_fd;  /* of /dev/kvm */
    uint32_t num_cpus;
    uint32_t threads_per_core;  /* as the guest sees them: 1 or 2 */
} strato_vmm_machine_config;
size_t strato_vmm_sizeof_machine_config(void);

/* The VM and its interrupt controllers; no RAM, no vCPU yet. ENOTSUP: KVM lacks something, named in the text. */
int32_t strato_vmm_machine_create(strato_vmm_events *events, uint64_t tag, const char *name,
                                  const strato_vmm_machine_config *config, strato_vmm_machine **ret);

typedef struct {
    uint64_t guest_addr;
    uint64_t bytes;
} strato_vmm_memory_region;
size_t strato_vmm_sizeof_memory_region(void);

enum {
    STRATO_VMM_MEMORY_ANONYMOUS = 0,  /* private; what is discarded goes back to the host */
    STRATO_VMM_MEMORY_MEMFD = 1,      /* shared: other processes may be given it */
    STRATO_VMM_MEMORY_FILE = 2        /* a private mapping of a file, which nobody may change while the machine lives */
};

enum {
    STRATO_VMM_HUGE_PAGES_ADVISED = 0,  /* transparent ones, where the host gives them */
    STRATO_VMM_HUGE_PAGES_2M = 1        /* of hugetlbfs, reserved at once; ENOMEM: there are not enough */
};

typedef struct {
    uint32_t size;
    uint32_t backend;
    int32_t fd;  /* of the file, which holds the regions one after the other; otherwise -1 */
    uint32_t num_regions;
    const strato_vmm_memory_region *regions;  /* ascending, whole pages */
    uint32_t huge_pages;
    uint32_t prealloc;  /* 1: no page is missing afterwards */
} strato_vmm_memory_config;
size_t strato_vmm_sizeof_memory_config(void);

int32_t strato_vmm_machine_add_memory(strato_vmm_machine *machine, const strato_vmm_memory_config *config);

typedef struct {
    uint32_t size;
    uint32_t ged_gsi;           /* of power button and generation changes */
    uint16_t pvpanic_port;
    uint16_t power_port;        /* the first of four: events, sleep control, sleep status, reset */
    uint16_t serial_port;       /* 0: none */
    uint16_t serial_gsi;
    int32_t serial_fd;          /* where its bytes go; -1: nowhere */
    uint32_t reserved;          /* 0 */
    uint64_t tables_addr;       /* ACPI, the RSDP first */
    uint64_t generation_addr;   /* of the 16 bytes that VMGenID names */
} strato_vmm_platform_config;
size_t strato_vmm_sizeof_platform_config(void);

int32_t strato_vmm_machine_add_platform(strato_vmm_machine *machine, const strato_vmm_platform_config *config);

typedef struct {
    uint32_t size;
    uint32_t index;
    uint64_t guest_addr;  /* of its 4096 bytes of registers */
    uint32_t gsi;         /* may be shared */
    uint32_t reserved;    /* 0 */
} strato_vmm_slot_config;
size_t strato_vmm_sizeof_slot_config(void);

/* An empty one: the guest sees DeviceID 0. */
int32_t strato_vmm_machine_add_slot(strato_vmm_machine *machine, const strato_vmm_slot_config *config);
/* Before the boot or while the guest runs, which learns of it by other ways. The device must not be served.
 * EBUSY: one is in the slot, or the device is in use. ENOENT: no such slot. */
int32_t strato_vmm_machine_plug(strato_vmm_machine *machine, uint32_t slot, strato_vmm_device *device);
/* Resets the device and takes it away; it may be plugged again. ENOENT: the slot is empty. EBUSY: the guest's driver
 * has it, and must be unbound there first. */
int32_t strato_vmm_machine_unplug(strato_vmm_machine *machine, uint32_t slot);

/* The vCPUs and their threads, parked. From here on there is no further slot. */
int32_t strato_vmm_machine_add_cpus(strato_vmm_machine *machine);

enum {
    STRATO_VMM_ENTRY_AUTO = 0,
    STRATO_VMM_ENTRY_LINUX64 = 1,
    STRATO_VMM_ENTRY_PVH = 2
};

typedef struct {
    uint32_t size;
    int32_t kernel_fd;
    int32_t initrd_fd;  /* -1: none */
    uint32_t entry;
    const char *cmdline;
} strato_vmm_boot_config;
size_t strato_vmm_sizeof_boot_config(void);

/* Kernel, initrd, command line and ACPI tables into RAM, and the first vCPU to the kernel's entry. To be done again
 * after every reset. */
int32_t strato_vmm_machine_load(strato_vmm_machine *machine, const strato_vmm_boot_config *config);

/* Lets the devices and then the vCPUs go on. EINVAL: nothing is loaded, or the guest has come to an end and the
 * machine was not reset. */
int32_t strato_vmm_machine_resume(strato_vmm_machine *machine);
/* Returns when no vCPU is in the guest and no device touches guest memory. ETIMEDOUT: a vCPU or a device did not come
 * to rest in time; the machine goes on. */
int32_t strato_vmm_machine_pause(strato_vmm_machine *machine, uint32_t timeout_ms);
/* Everything to power-on, RAM to zeros. Load and resume follow. EBUSY: the machine runs; pause it first (after an end
 * this is not needed). */
int32_t strato_vmm_machine_reset(strato_vmm_machine *machine);

int32_t strato_vmm_machine_power_button(strato_vmm_machine *machine);
/* A new generation (VMGenID): 16 bytes; the guest's kernel is told. */
int32_t strato_vmm_machine_set_generation(strato_vmm_machine *machine, const uint8_t *guid);

/* The thread of each vCPU, by index; up to capacity are written, ret is how many there are. */
int32_t strato_vmm_machine_cpus(strato_vmm_machine *machine, int32_t *thread_ids, size_t capacity, size_t *ret);
/* As strato_vmm_device_metrics: exits by kind, of all vCPUs together. */
int32_t strato_vmm_machine_metrics(strato_vmm_machine *machine, strato_vmm_metric *buffer, size_t capacity,
                                   size_t *ret);
/* Ends the vCPUs, takes the devices out of their slots, and gives everything back. Null is allowed. */
void strato_vmm_machine_destroy(strato_vmm_machine *machine);
