// SPDX-License-Identifier: Apache-2.0
//
// The guest's end of the vsock comparison: `streams PORT SEED COUNT`.
//
// Opens COUNT streams to the host's PORT and plays on each what the seed and the stream's number say (the host's
// end, test_streams.py, knows it too): both sides send a drawn number of bytes in drawn pieces and read what comes;
// then the stream ends in one of the ways below. Prints one line for each stream: what arrived, by length and
// digest, and how it ended. Nothing printed depends on the order in which the streams run.

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
#include <unistd.h>

enum { MAX_STREAMS = 1024, PIECE = 28 << 10, SEEDS = 6, DEADLINE_S = 100 };
// How a stream ends. The host draws the same.
enum { BOTH_CLOSE, GUEST_HALF, HOST_HALF, GUEST_BREAKS, HOST_BREAKS, ENDINGS };

struct stream {
  int fd, ending, open;
  uint64_t random, to_send, sent, received, sum;
  int sent_all, seen_end;
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

static void start(int number, struct sockaddr_vm *address, uint64_t seed) {
  struct stream *stream = &streams[number];
  uint64_t state = seed * 1000003 + number;
  *stream = (struct stream){.ending = draw(&state) % ENDINGS, .sum = (uint64_t)0xcbf29ce4 << 32 | 0x84222325};
  stream->to_send = draw(&state) % (draw(&state) % 4 ? 20000 : 400000);
  stream->random = state;
  stream->fd = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (stream->fd < 0 || connect(stream->fd, (struct sockaddr *)address, sizeof(*address)) < 0) {
    printf("%d connect %s\n", number, strerrorname_np(errno));
    return;
  }
  uint32_t name = number;
  if (send(stream->fd, &name, sizeof(name), MSG_NOSIGNAL) != sizeof(name)) printf("%d name\n", number);
  fcntl(stream->fd, F_SETFL, O_NONBLOCK);
  stream->open = 1;
}

static void finish(int number, const char *how) {
  struct stream *stream = &streams[number];
  // A stream that one side breaks off ends anywhere: only what is certain is printed.
  if (stream->ending == GUEST_BREAKS || stream->ending == HOST_BREAKS) printf("%d broken\n", number);
  else
    printf("%d %s sent %llu received %llu %016llx\n", number, how, (unsigned long long)stream->sent,
           (unsigned long long)stream->received, (unsigned long long)stream->sum);
  close(stream->fd);
  stream->open = 0;
}

static void push(int number) {
  struct stream *stream = &streams[number];
  uint64_t limit = stream->ending == GUEST_BREAKS ? stream->to_send / 2 : stream->to_send;
  if (stream->sent < limit) {
    size_t size = 1 + draw(&stream->random) % PIECE;
    if (size > limit - stream->sent) size = limit - stream->sent;
    for (size_t i = 0; i < size; i++) data[i] = content(number, stream->sent + i);
    ssize_t count = send(stream->fd, data, size, MSG_NOSIGNAL);
    if (count > 0) stream->sent += count;
    else if (errno != EAGAIN) return finish(number, "send failed");
  }
  if (stream->sent < limit) return;
  if (stream->ending == GUEST_BREAKS) return finish(number, "broke");
  stream->sent_all = 1;
  // In the other endings the guest's end of data is a half-close, or its close after the host's.
  if (stream->ending == GUEST_HALF || stream->ending == BOTH_CLOSE) shutdown(stream->fd, SHUT_WR);
}

static void pull(int number) {
  struct stream *stream = &streams[number];
  ssize_t count = recv(stream->fd, data, sizeof(data), 0);
  if (count < 0 && errno == EAGAIN) return;
  if (count < 0) return finish(number, "receive failed");
  if (count == 0) stream->seen_end = 1;
  for (ssize_t i = 0; i < count; i++) stream->sum = (stream->sum ^ (unsigned char)data[i]) * 0x100000001b3;
  stream->received += count;
}

int main(int count, char **words) {
  static struct pollfd polls[MAX_STREAMS];
  if (count != 4 || atoi(words[3]) > MAX_STREAMS) return 2;
  struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = atoi(words[1])};
  int number = atoi(words[3]);
  alarm(DEADLINE_S);
  for (int i = 0; i < number; i++) start(i, &address, strtoull(words[2], NULL, 0));
  for (int open = number; open;) {
    open = 0;
    for (int i = 0; i < number; i++) {
      polls[i].fd = streams[i].open ? streams[i].fd : -1;
      polls[i].events = (streams[i].seen_end ? 0 : POLLIN) | (streams[i].sent_all ? 0 : POLLOUT);
      open += streams[i].open;
    }
    if (open && poll(polls, number, -1) < 0) return 3;
    for (int i = 0; i < number; i++) {
      if (streams[i].open && polls[i].revents & (POLLIN | POLLHUP | POLLERR)) pull(i);
      if (streams[i].open && !streams[i].sent_all && polls[i].revents & (POLLOUT | POLLERR)) push(i);
      if (streams[i].open && streams[i].seen_end && streams[i].sent_all) finish(i, "ended");
    }
  }
  puts("all ended");
  return 0;
}
