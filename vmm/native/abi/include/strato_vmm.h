/*
 * libstrato_vmm.so: the device cores. Its threads alone touch guest memory.
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
 *   - Nothing calls back. The library's threads block all signals.
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
 * calls of its role. For ever; the calling thread gives up new privileges, too. */
int32_t strato_vmm_confine_threads(uint32_t forbidden);

/* ---- events: what devices have to say ---- */

typedef struct strato_vmm_events strato_vmm_events;

enum {
    STRATO_VMM_EVENT_NEEDS_RESET = 1,     /* the driver broke the protocol; the device waits for a reset */
    STRATO_VMM_EVENT_BACKEND_ERROR = 2,   /* the host's side failed; the guest has its answer */
    STRATO_VMM_EVENT_CONFIG_CHANGED = 3,
    STRATO_VMM_EVENT_REFUSED = 4,         /* a request of the front end */
    STRATO_VMM_EVENT_FRONT_END_GONE = 5,  /* another may be served */
    STRATO_VMM_EVENT_LOST = 6,            /* the device's thread could not go on */
    STRATO_VMM_EVENT_PANICKED = 7         /* a bug; the device is lost */
};

typedef struct {
    uint64_t tag;    /* of the device; UINT64_MAX: of the library (a panic of any of its threads) */
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

/* tag comes back in events; name is the thread's (15 bytes show). */
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

/* Serves the vhost-user front end at the other end of a connected stream socket, on threads of its own. Of a
 * socket that listens the first connection is served; QEMU's network front end takes no connected one.
 * EBUSY: one is being served. */
int32_t strato_vmm_device_serve(strato_vmm_device *device, int32_t socket_fd);

typedef struct {
    char name[32];
    uint64_t value;
} strato_vmm_metric;
size_t strato_vmm_sizeof_metric(void);

/* Writes up to capacity counters; ret is how many there are. */
int32_t strato_vmm_device_metrics(strato_vmm_device *device, strato_vmm_metric *buffer, size_t capacity,
                                  size_t *ret);
/* Ends the conversation with the front end, lets everything in flight come to rest, and joins the threads. Null
 * is allowed. */
void strato_vmm_device_destroy(strato_vmm_device *device);
