// SPDX-License-Identifier: Apache-2.0
//
// Keeps a disk busy and remembers what must be on it. Prints "<writes> <reads>" when all of it was right.
//
//   disk_check DEVICE BLOCKS ROUNDS SEED
//
// Each round writes or reads one run of 1 to 16 blocks of 4 KiB at a place of its own choosing, past the guest's
// cache. What a block must hold is known from its number and how often it was written. In the end every block is
// read once more, after a flush.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 4096, MAX_BLOCKS = 65536, MAX_RUN = 16 };

static uint32_t written[MAX_BLOCKS];
static uint64_t state;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint32_t choose(uint32_t below) {
  // xorshift64 (Marsaglia 2003)
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (uint32_t)(state >> 32) % below;
}

static void fill(uint64_t *data, uint32_t block) {
  uint64_t value = ((uint64_t)block << 32 | written[block]) + 1;
  for (unsigned i = 0; i < BLOCK / sizeof(*data); i++) data[i] = value * (2 * i + 1);
}

static void compare(const uint64_t *data, uint32_t block) {
  uint64_t expected[BLOCK / sizeof(uint64_t)] = {0};
  if (written[block]) fill(expected, block);
  if (!memcmp(data, expected, BLOCK)) return;
  printf("block %u, written %u times, holds something else\n", block, written[block]);
  exit(2);
}

int main(int count, char **words) {
  if (count != 5) return 3;
  uint32_t blocks = atoi(words[2]), rounds = atoi(words[3]), writes = 0, reads = 0;
  char *data = NULL;
  int disk = open(words[1], O_RDWR | O_DIRECT);
  if (disk < 0) fail(words[1]);
  if (blocks > MAX_BLOCKS || posix_memalign((void **)&data, BLOCK, MAX_RUN * BLOCK)) fail("memory");
  state = strtoull(words[4], NULL, 0) | 1;
  for (uint32_t round = 0; round < rounds; round++) {
    uint32_t length = 1 + choose(MAX_RUN), first = choose(blocks - length + 1);
    off_t offset = (off_t)first * BLOCK;
    ssize_t size = (ssize_t)length * BLOCK;
    if (choose(2)) {
      for (uint32_t i = 0; i < length; i++) {
        written[first + i]++;
        fill((uint64_t *)(data + i * BLOCK), first + i);
      }
      if (pwrite(disk, data, size, offset) != size) fail("write");
      writes++;
    } else {
      if (pread(disk, data, size, offset) != size) fail("read");
      for (uint32_t i = 0; i < length; i++) compare((uint64_t *)(data + i * BLOCK), first + i);
      reads++;
    }
  }
  if (fsync(disk)) fail("flush");
  for (uint32_t block = 0; block < blocks; block++) {
    if (pread(disk, data, BLOCK, (off_t)block * BLOCK) != BLOCK) fail("read");
    compare((uint64_t *)data, block);
  }
  printf("%u %u\n", writes, reads);
  return 0;
}
