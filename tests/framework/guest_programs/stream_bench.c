// SPDX-License-Identifier: Apache-2.0
//
// Moves bytes over streams between guest and host, and times it. The same program is both ends.
//
//   stream_bench serve ADDRESS STREAMS BYTES           accepts that many streams and does what each asks for
//   stream_bench send|receive ADDRESS STREAMS BYTES [CHUNK]
//                                                      connects, moves BYTES on each stream, sends CHUNK at a
//                                                      time, prints "<nanoseconds> <bytes>"
//   stream_bench address INTERFACE ADDRESS             brings an interface up with a /24 address
//
// ADDRESS is vsock:CID:PORT, unix:PATH or tcp:ADDRESS:PORT. The time runs from the moment when all streams are
// connected until the last byte has arrived, which the receiver of a stream confirms with one byte.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 1 << 18, MAX_STREAMS = 1024, DEADLINE_S = 120 };

struct address {
  union {
    struct sockaddr any;
    struct sockaddr_vm vsock;
    struct sockaddr_un local;
    struct sockaddr_in tcp;
  };
  socklen_t size;
};

struct stream {
  int fd;
  char sends, asked, confirmed; // "asked": its first byte, which says who sends, has gone
  uint64_t left;
};

static struct stream streams[MAX_STREAMS];
static char data[CHUNK];
static size_t chunk = CHUNK;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static struct address parse(char *text) {
  struct address address = {.size = 0};
  char *kind = strtok(text, ":"), *place = strtok(NULL, ":"), *port = strtok(NULL, ":");
  if (!strcmp(kind, "vsock")) {
    address.vsock = (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = atoi(place), .svm_port = atoi(port)};
    address.size = sizeof(address.vsock);
  } else if (!strcmp(kind, "unix")) {
    address.local.sun_family = AF_UNIX;
    strncpy(address.local.sun_path, place, sizeof(address.local.sun_path) - 1);
    address.size = sizeof(address.local);
  } else {
    address.tcp = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    inet_pton(AF_INET, place, &address.tcp.sin_addr);
    address.size = sizeof(address.tcp);
  }
  return address;
}

static void prepare(struct stream *stream, int fd) {
  int one = 1;
  stream->fd = fd;
  if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) fail("fcntl");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)); // other families refuse it, and need it not
}

static void step(struct stream *stream) {
  if (!stream->asked) return;
  if (stream->left && stream->sends) {
    ssize_t count = send(stream->fd, data, stream->left < chunk ? stream->left : chunk, MSG_NOSIGNAL);
    if (count > 0) stream->left -= count;
    else if (errno != EAGAIN) fail("send");
  } else if (stream->left) {
    ssize_t count = recv(stream->fd, data, stream->left < CHUNK ? stream->left : CHUNK, 0);
    if (count > 0) stream->left -= count;
    else if (count == 0 || errno != EAGAIN) fail("recv");
    if (!stream->left) {
      if (send(stream->fd, "k", 1, MSG_NOSIGNAL) != 1) fail("confirm");
      stream->confirmed = 1;
    }
  } else if (!stream->confirmed) {
    ssize_t count = recv(stream->fd, data, 1, 0);
    if (count == 1) stream->confirmed = 1;
    else if (count == 0 || errno != EAGAIN) fail("confirmation");
  }
}

static void move(int count) {
  struct pollfd polls[MAX_STREAMS];
  for (int open = count; open;) {
    open = 0;
    for (int i = 0; i < count; i++) {
      int wants = streams[i].left && streams[i].sends ? POLLOUT : POLLIN;
      polls[i] = (struct pollfd){.fd = streams[i].confirmed ? -1 : streams[i].fd, .events = wants};
      open += !streams[i].confirmed;
    }
    if (open && poll(polls, count, -1) < 0) fail("poll");
    for (int i = 0; i < count; i++) {
      if (polls[i].fd < 0 || !polls[i].revents) continue;
      if (!streams[i].asked) {
        char verb;
        if (recv(streams[i].fd, &verb, 1, 0) != 1) fail("verb");
        streams[i].asked = 1;
        streams[i].sends = verb == 'r';
      } else {
        step(&streams[i]);
      }
    }
  }
}

static void serve(struct address *address, int count, uint64_t bytes) {
  int listener = socket(address->any.sa_family, SOCK_STREAM, 0), one = 1;
  if (address->any.sa_family == AF_UNIX) unlink(address->local.sun_path);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(listener, &address->any, address->size) < 0 || listen(listener, MAX_STREAMS) < 0) fail("listen");
  puts("listening");
  fflush(stdout);
  for (int i = 0; i < count; i++) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) fail("accept");
    streams[i].left = bytes;
    prepare(&streams[i], fd);
  }
  move(count);
}

static void use(struct address *address, int count, uint64_t bytes, int sends) {
  for (int i = 0; i < count; i++) {
    int fd = socket(address->any.sa_family, SOCK_STREAM, 0);
    if (connect(fd, &address->any, address->size) < 0) fail("connect");
    prepare(&streams[i], fd);
    streams[i].left = bytes;
    streams[i].sends = sends;
    streams[i].asked = 1;
  }
  uint64_t begin = now();
  for (int i = 0; i < count; i++)
    if (send(streams[i].fd, sends ? "s" : "r", 1, MSG_NOSIGNAL) != 1) fail("ask");
  move(count);
  printf("%llu %llu\n", (unsigned long long)(now() - begin), (unsigned long long)(count * bytes));
}

static void give_address(const char *name, const char *text) {
  struct ifreq request = {.ifr_flags = IFF_UP};
  struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
  int control = socket(AF_INET, SOCK_DGRAM, 0);
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(control, SIOCSIFFLAGS, &request) < 0) fail("up");
  address->sin_family = AF_INET;
  inet_pton(AF_INET, text, &address->sin_addr);
  if (ioctl(control, SIOCSIFADDR, &request) < 0) fail("address");
  inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
  if (ioctl(control, SIOCSIFNETMASK, &request) < 0) fail("mask");
}

int main(int count, char **words) {
  alarm(DEADLINE_S);
  if (count == 4 && !strcmp(words[1], "address")) {
    give_address(words[2], words[3]);
    return 0;
  }
  if (count < 5 || atoi(words[3]) > MAX_STREAMS) return 2;
  if (count > 5 && strtoull(words[5], NULL, 0) < CHUNK) chunk = strtoull(words[5], NULL, 0);
  struct address address = parse(words[2]);
  int number = atoi(words[3]);
  uint64_t bytes = strtoull(words[4], NULL, 0);
  if (!strcmp(words[1], "serve")) serve(&address, number, bytes);
  else use(&address, number, bytes, !strcmp(words[1], "send"));
  // The confirmation of the last stream must arrive before the streams close.
  for (int i = 0; i < number; i++) {
    shutdown(streams[i].fd, SHUT_WR);
    struct pollfd end = {.fd = streams[i].fd, .events = POLLIN};
    poll(&end, 1, 1000);
  }
  return 0;
}
