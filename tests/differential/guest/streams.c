// SPDX-License-Identifier: Apache-2.0
//
// One end of the stream comparison: `streams vsock:CID:PORT|unix:PATH SEED COUNT counted|all`.
//
// Opens COUNT streams and plays on each what the seed and the stream's number say; the other end, stream_host.py,
// draws the same. Both send a drawn number of bytes and read what comes. With "counted" both know how many those
// are, and some streams are broken off; with "all" some end by half-closes. Prints one line for each stream,
// in order: what arrived, by length and digest. Nothing printed depends on the order in which the streams run.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MAX_STREAMS = 1024, PIECE = 28 << 10, DEADLINE_S = 100 };
// How a stream ends, as in stream_host.py. COUNTED: the host closes it once it has our last byte, which we keep
// until we have all of the host's. BOTH_CLOSE: each side half-closes when it has sent all. GUEST_HALF, HOST_HALF:
// one side sends only after the other's half-close. The last two break it off in the middle.
enum { COUNTED, GUEST_BREAKS, HOST_BREAKS, COUNTED_ENDINGS, BOTH_CLOSE = COUNTED_ENDINGS, GUEST_HALF, HOST_HALF, ENDINGS };

struct stream {
  int fd, ending, open;
  uint64_t random, to_send, to_receive, sent, received, sum;
  int sent_all, seen_end;
  char line[96];
};

static struct stream streams[MAX_STREAMS];
static char data[PIECE];

static uint64_t draw(uint64_t *state) { // splitmix64, as in test_streams.py
  uint64_t value = *state += 0x9e3779b97f4a7c15;
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
  value = (value ^ value >> 27) * 0x94d049bb133111eb;
  return (value ^ value >> 31) >> 11;
}

// The byte at a place of the guest's data: cheap, and never the same for two streams.
static unsigned char content(uint64_t stream, uint64_t at) { return (at * 31 + (at >> 8) * 7 + stream * 131) & 0xff; }

static void start(int number, struct sockaddr *address, socklen_t size, uint64_t seed, int endings) {
  struct stream *stream = &streams[number];
  uint64_t state = seed * 1000003 + number;
  *stream = (struct stream){.ending = draw(&state) % endings, .sum = (uint64_t)0xcbf29ce4 << 32 | 0x84222325};
  stream->to_send = 2 + draw(&state) % (draw(&state) % 4 ? 20000 : 300000);
  stream->to_receive = 2 + draw(&state) % (draw(&state) % 4 ? 20000 : 300000);
  stream->random = state;
  stream->fd = socket(address->sa_family, SOCK_STREAM, 0);
  uint32_t name = number;
  if (stream->fd < 0 || connect(stream->fd, address, size) < 0 ||
      send(stream->fd, &name, sizeof(name), MSG_NOSIGNAL) != sizeof(name)) {
    snprintf(stream->line, sizeof(stream->line), "connect %s", strerrorname_np(errno));
    return;
  }
  fcntl(stream->fd, F_SETFL, O_NONBLOCK);
  stream->open = 1;
}

static void finish(struct stream *stream, const char *how) {
  // A stream that is broken off ends anywhere.
  if (stream->ending == GUEST_BREAKS || stream->ending == HOST_BREAKS) strcpy(stream->line, "broken");
  else
    snprintf(stream->line, sizeof(stream->line), "%d %s sent %llu received %llu %016llx", stream->ending, how,
             (unsigned long long)stream->sent, (unsigned long long)stream->received, (unsigned long long)stream->sum);
  close(stream->fd);
  stream->open = 0;
}

// Up to where this side may send now.
static uint64_t limit(struct stream *stream) {
  if (stream->ending == GUEST_BREAKS) return stream->to_send / 2;
  if (stream->ending == COUNTED && stream->received < stream->to_receive) return stream->to_send - 1;
  if (stream->ending == HOST_HALF && !stream->seen_end) return 0;
  return stream->to_send;
}

static void push(int number) {
  struct stream *stream = &streams[number];
  size_t size = 1 + draw(&stream->random) % PIECE;
  if (size > limit(stream) - stream->sent) size = limit(stream) - stream->sent;
  for (size_t i = 0; i < size; i++) data[i] = content(number, stream->sent + i);
  ssize_t count = size ? send(stream->fd, data, size, MSG_NOSIGNAL) : 0;
  if (count < 0 && errno != EAGAIN) return finish(stream, "send failed");
  if (count > 0) stream->sent += count;
  if (stream->ending == GUEST_BREAKS && stream->sent == limit(stream)) return finish(stream, "broken");
  if (stream->sent < stream->to_send) return;
  stream->sent_all = 1;
  if (stream->ending != COUNTED) shutdown(stream->fd, SHUT_WR);
}

static void pull(struct stream *stream) {
  ssize_t count = recv(stream->fd, data, sizeof(data), 0);
  if (count < 0 && errno == EAGAIN) return;
  // How a counted stream's end is told differs: the host closes it as a whole.
  if (count < 0 && stream->ending == COUNTED && stream->sent_all) count = 0;
  if (count < 0) return finish(stream, "receive failed");
  if (count == 0) stream->seen_end = 1;
  for (ssize_t i = 0; i < count; i++) stream->sum = (stream->sum ^ (unsigned char)data[i]) * 0x100000001b3;
  stream->received += count;
}

static int wants(struct stream *stream) {
  int out = !stream->sent_all && stream->sent < limit(stream);
  return (stream->seen_end ? 0 : POLLIN) | (out ? POLLOUT : 0);
}

int main(int count, char **words) {
  static struct pollfd polls[MAX_STREAMS];
  struct sockaddr_vm vsock = {.svm_family = AF_VSOCK};
  struct sockaddr_un local = {.sun_family = AF_UNIX};
  if (count != 5 || atoi(words[3]) > MAX_STREAMS) return 2;
  int is_vsock = sscanf(words[1], "vsock:%u:%u", &vsock.svm_cid, &vsock.svm_port) == 2;
  if (!is_vsock && sscanf(words[1], "unix:%107s", local.sun_path) != 1) return 2;
  int number = atoi(words[3]), endings = strcmp(words[4], "all") ? COUNTED_ENDINGS : ENDINGS;
  alarm(DEADLINE_S);
  for (int i = 0; i < number; i++)
    start(i, is_vsock ? (struct sockaddr *)&vsock : (struct sockaddr *)&local,
          is_vsock ? sizeof(vsock) : sizeof(local), strtoull(words[2], NULL, 0), endings);
  for (int open = number; open;) {
    open = 0;
    for (int i = 0; i < number; i++) {
      polls[i].events = wants(&streams[i]);
      polls[i].fd = streams[i].open && polls[i].events ? streams[i].fd : -1;
      open += streams[i].open;
    }
    if (open && poll(polls, number, -1) < 0) return 3;
    for (int i = 0; i < number; i++) {
      struct stream *stream = &streams[i];
      if (stream->open && polls[i].fd >= 0 && polls[i].revents & (POLLIN | POLLHUP | POLLERR)) pull(stream);
      if (stream->open && polls[i].fd >= 0 && polls[i].revents & (POLLOUT | POLLERR)) push(i);
      if (stream->open && stream->seen_end && !stream->sent_all && stream->ending != HOST_HALF &&
          stream->ending != BOTH_CLOSE)
        finish(stream, "ended too early");
      if (stream->open && stream->seen_end && stream->sent_all) finish(stream, "ended");
    }
  }
  for (int i = 0; i < number; i++) printf("%d %s\n", i, streams[i].line);
  return 0;
}
