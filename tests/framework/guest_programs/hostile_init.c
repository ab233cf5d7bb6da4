/*
 * PID 1 of a guest that means harm: says hello to nobody, opens vsock connections to every port a host could
 * listen on and listens on the agent's ports, and sends garbage on all of them until it is killed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

enum { HOST_PORTS = 1200, GUEST_PORTS = 1200, FDS = 900 };

static uint64_t state = 88172645463325252ull;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void fill(unsigned char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        bytes[i] = (unsigned char)next_random();
    if (size >= 10 && next_random() % 2) {
        /* Often a plausible ttrpc header (length, stream id, type, flags), so that decoders get further. */
        bytes[0] = 0, bytes[1] = (unsigned char)(next_random() % 3);
        bytes[4] = bytes[5] = bytes[6] = 0, bytes[7] = 1;
        bytes[8] = (unsigned char)(1 + next_random() % 3);
    }
}

static int open_to_host(unsigned port)
{
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = port };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) == 0) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        return fd;
    }
    if (fd >= 0)
        close(fd);
    return -1;
}

static int listen_on(unsigned port)
{
    struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 16) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

int main(void)
{
    static struct pollfd fds[FDS];
    unsigned char bytes[8192], sink[8192];
    nfds_t count = 0, listeners;

    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/hvc0", O_WRONLY | O_CLOEXEC);
    if (console >= 0)
        dprintf(console, "hostile init is here\n");
    for (unsigned port = 1; port <= GUEST_PORTS && count < FDS / 2; port++) {
        int fd = listen_on(port);
        if (fd >= 0)
            fds[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
    }
    listeners = count;
    for (;;) {
        for (unsigned port = 1; port <= HOST_PORTS && count < FDS; port++) {
            int fd = open_to_host(port == 1 ? 1024 : port);
            if (fd >= 0)
                fds[count++] = (struct pollfd){ .fd = fd, .events = POLLIN | POLLOUT };
        }
        for (int round = 0; round < 200; round++) {
            poll(fds, count, 10);
            for (nfds_t i = 0; i < count; i++) {
                if (i < listeners) {
                    int fd = accept4(fds[i].fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                    if (fd >= 0 && count < FDS)
                        fds[count++] = (struct pollfd){ .fd = fd, .events = POLLIN | POLLOUT };
                    else if (fd >= 0)
                        close(fd);
                    continue;
                }
                size_t size = 1 + next_random() % sizeof bytes;
                fill(bytes, size);
                if (write(fds[i].fd, bytes, size) < 0 && errno != EAGAIN && errno != EINTR) {
                    close(fds[i].fd);
                    fds[i] = fds[--count];
                    i--;
                    continue;
                }
                while (read(fds[i].fd, sink, sizeof sink) > 0)
                    ;
            }
        }
    }
}
