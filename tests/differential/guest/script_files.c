// SPDX-License-Identifier: Apache-2.0
//
// The script's calls on open files, which are named by slots f0 to f15.

#define _GNU_SOURCE
#include "script.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, BUFFER = 1 << 20 };

static int files[MAX_SLOTS];
static int used[MAX_SLOTS];

int slot(const char *word) {
  int index = word && word[0] == 'f' ? atoi(word + 1) : -1;
  return index >= 0 && index < MAX_SLOTS && used[index] ? files[index] : -1;
}

static void put(const char *word, int fd) {
  int index = atoi(word + 1) % MAX_SLOTS;
  say_outcome(fd < 0 ? -1 : 0);
  if (fd < 0) return;
  if (used[index]) close(files[index]);
  files[index] = fd;
  used[index] = 1;
}

void close_all(void) {
  for (int i = 0; i < MAX_SLOTS; i++)
    if (used[i]) close(files[i]), used[i] = 0;
}

long flags(const struct name *table, char *text) {
  long value = 0;
  char *place = NULL;
  for (char *word = strtok_r(text, "|", &place); word; word = strtok_r(NULL, "|", &place)) {
    const struct name *at = table;
    while (at->text && strcmp(at->text, word)) at++;
    value |= at->text ? at->value : number(word);
  }
  return value;
}

static const struct name open_flags[] = {
    {"O_RDONLY", O_RDONLY}, {"O_WRONLY", O_WRONLY}, {"O_RDWR", O_RDWR}, {"O_CREAT", O_CREAT},
    {"O_EXCL", O_EXCL}, {"O_TRUNC", O_TRUNC}, {"O_APPEND", O_APPEND}, {"O_NONBLOCK", O_NONBLOCK},
    {"O_DIRECTORY", O_DIRECTORY}, {"O_NOFOLLOW", O_NOFOLLOW}, {"O_PATH", O_PATH}, {"O_DIRECT", O_DIRECT},
    {"O_SYNC", O_SYNC}, {"O_TMPFILE", O_TMPFILE}, {"O_NOATIME", O_NOATIME}, {0}};

static char *buffer(void) {
  static char *data;
  if (!data && posix_memalign((void **)&data, PAGE, BUFFER)) abort();
  return data;
}

static char *pattern(size_t size, long seed) {
  char *data = buffer();
  uint32_t state = seed * 2654435761u + 1;
  for (size_t i = 0; i < size; i++) data[i] = (state = state * 1664525 + 1013904223) >> 24;
  return data;
}

static const uint64_t empty_sum = (uint64_t)0xcbf29ce4 << 32 | 0x84222325;

static uint64_t checksum(uint64_t sum, const char *data, size_t size) { // FNV-1a
  for (size_t i = 0; i < size; i++) sum = (sum ^ (unsigned char)data[i]) * 0x100000001b3;
  return sum;
}

static size_t bounded(const char *word) {
  long size = number(word);
  return size < 0 || size > BUFFER ? BUFFER : size;
}

static void say_data(long count) {
  say_outcome(count);
  if (count > 0) say(" %016llx", (unsigned long long)checksum(empty_sum, buffer(), count));
}

static void do_open(char **words) { put(words[0], open(words[1], flags(open_flags, words[2]), number(words[3]))); }

static void do_close(char **words) {
  int index = atoi(words[0] + 1) % MAX_SLOTS;
  say_outcome(close(slot(words[0])));
  used[index] = 0;
}

static void do_fstat(char **words) {
  struct stat status;
  if (fstat(slot(words[0]), &status) < 0) return say_outcome(-1);
  say_status(&status);
}

static void do_write(char **words) {
  size_t size = bounded(words[1]);
  say_outcome(write(slot(words[0]), pattern(size, number(words[2])), size));
}

static void do_pwrite(char **words) {
  size_t size = bounded(words[2]);
  say_outcome(pwrite(slot(words[0]), pattern(size, number(words[3])), size, number(words[1])));
}

static void do_read(char **words) { say_data(read(slot(words[0]), buffer(), bounded(words[1]))); }
static void do_pread(char **words) {
  say_data(pread(slot(words[0]), buffer(), bounded(words[2]), number(words[1])));
}

static void do_sum(char **words) {
  uint64_t sum = empty_sum, total = 0;
  int fd = open(words[0], O_RDONLY);
  if (fd < 0) return say_outcome(-1);
  for (ssize_t count; (count = read(fd, buffer(), BUFFER)) != 0; total += count) {
    if (count < 0) {
      say_outcome(-1);
      break;
    }
    sum = checksum(sum, buffer(), count);
  }
  say("%llu %016llx", (unsigned long long)total, (unsigned long long)sum);
  close(fd);
}

static void do_seek(char **words) {
  static const struct name names[] = {
      {"set", SEEK_SET}, {"current", SEEK_CUR}, {"end", SEEK_END}, {"data", SEEK_DATA}, {"hole", SEEK_HOLE}, {0}};
  say_outcome(lseek(slot(words[0]), number(words[1]), flags(names, words[2])));
}

static void do_ftruncate(char **words) { say_outcome(ftruncate(slot(words[0]), number(words[1]))); }
static void do_fchmod(char **words) { say_outcome(fchmod(slot(words[0]), number(words[1]))); }
static void do_fsync(char **words) { say_outcome(fsync(slot(words[0]))); }
static void do_fdatasync(char **words) { say_outcome(fdatasync(slot(words[0]))); }
static void do_fchown(char **words) {
  say_outcome(fchown(slot(words[0]), number(words[1]), number(words[2])));
}

static void do_fallocate(char **words) {
  static const struct name names[] = {{"keep", FALLOC_FL_KEEP_SIZE}, {"punch", FALLOC_FL_PUNCH_HOLE},
                                      {"zero", FALLOC_FL_ZERO_RANGE}, {"collapse", FALLOC_FL_COLLAPSE_RANGE},
                                      {"insert", FALLOC_FL_INSERT_RANGE}, {"plain", 0}, {0}};
  long mode = flags(names, words[1]);
  say_outcome(fallocate(slot(words[0]), mode, number(words[2]), number(words[3])));
}

static void do_discard(char **words) {
  uint64_t range[2] = {number(words[1]), number(words[2])};
  say_outcome(ioctl(slot(words[0]), BLKDISCARD, range));
}

static void do_copy(char **words) {
  loff_t from = number(words[1]), to = number(words[3]);
  say_outcome(copy_file_range(slot(words[0]), &from, slot(words[2]), &to, number(words[4]), 0));
}

static void do_link_file(char **words) {
  char path[64];
  snprintf(path, sizeof(path), "/proc/self/fd/%d", slot(words[0]));
  say_outcome(linkat(AT_FDCWD, path, AT_FDCWD, words[1], AT_SYMLINK_FOLLOW));
}

static void do_map_write(char **words) {
  size_t size = bounded(words[2]);
  char *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, slot(words[0]), number(words[1]));
  if (map == MAP_FAILED) return say_outcome(-1);
  memcpy(map, pattern(size, number(words[3])), size);
  say_outcome(msync(map, size, MS_SYNC));
  munmap(map, size);
}

static void do_map_read(char **words) {
  size_t size = bounded(words[2]);
  char *map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, slot(words[0]), number(words[1]));
  if (map == MAP_FAILED) return say_outcome(-1);
  memcpy(buffer(), map, size);
  munmap(map, size);
  say_data(size);
}

static void do_flock(char **words) {
  static const struct name names[] = {{"shared", LOCK_SH}, {"exclusive", LOCK_EX}, {"unlock", LOCK_UN}, {0}};
  say_outcome(flock(slot(words[0]), flags(names, words[1]) | LOCK_NB));
}

static void posix_lock(char **words, int verb) {
  static const struct name names[] = {{"read", F_RDLCK}, {"write", F_WRLCK}, {"unlock", F_UNLCK}, {0}};
  struct flock lock = {.l_type = flags(names, words[1]), .l_whence = SEEK_SET};
  lock.l_start = number(words[2]), lock.l_len = number(words[3]);
  int outcome = fcntl(slot(words[0]), verb, &lock);
  if (outcome == 0 && verb == F_GETLK)
    say("type %d from %lld for %lld", lock.l_type, (long long)lock.l_start, (long long)lock.l_len);
  else say_outcome(outcome);
}

static void do_lock(char **words) { posix_lock(words, F_SETLK); }
static void do_wait_lock(char **words) { posix_lock(words, F_SETLKW); }
static void do_open_lock(char **words) { posix_lock(words, F_OFD_SETLK); }
static void do_test_lock(char **words) { posix_lock(words, F_GETLK); }

static void do_dup(char **words) { put(words[1], dup(slot(words[0]))); }

// All stretches of data in a file.
static void do_map(char **words) {
  int fd = slot(words[0]);
  off_t end = lseek(fd, 0, SEEK_END);
  for (off_t at = 0; at < end;) {
    off_t data = lseek(fd, at, SEEK_DATA);
    if (data < 0) return say(errno == ENXIO ? "end" : "%s", strerrorname_np(errno));
    off_t hole = lseek(fd, data, SEEK_HOLE);
    say("%lld-%lld ", (long long)data, (long long)hole);
    if (hole <= data) return;
    at = hole;
  }
  say("end");
}

const struct call data_calls[] = {
    {"open", do_open},
    {"close", do_close},
    {"fstat", do_fstat},
    {"write", do_write},
    {"pwrite", do_pwrite},
    {"read", do_read},
    {"pread", do_pread},
    {"sum", do_sum},
    {"seek", do_seek},
    {"ftruncate", do_ftruncate},
    {"fchmod", do_fchmod},
    {"fchown", do_fchown},
    {"fsync", do_fsync},
    {"fdatasync", do_fdatasync},
    {"fallocate", do_fallocate},
    {"discard", do_discard},
    {"copy", do_copy},
    {"link-file", do_link_file},
    {"map-write", do_map_write},
    {"map-read", do_map_read},
    {"map", do_map},
    {"flock", do_flock},
    {"lock", do_lock},
    {"wait-lock", do_wait_lock},
    {"open-lock", do_open_lock},
    {"test-lock", do_test_lock},
    {"dup", do_dup},
    {0},
};
