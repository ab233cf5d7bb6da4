// SPDX-License-Identifier: Apache-2.0
//
// Loads that check themselves and print a digest of what they saw; same seed, same digest.
//
//   stress random DIR SEED COUNT [direct] [kept-back]
//                                          calls on one file, compared with a model in memory
//   stress tree DIR SEED COUNT             what `git clone` does: objects renamed into place, a work tree, removal
//   stress churn DIR SEED COUNT            what `make -j4` does: several processes, one folder
//   stress folder DIR SEED COUNT           a large folder read while it changes; telldir and seekdir
//
// Exit status 1: the file system gave what it should not, and the last line says what.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LARGEST = 1 << 18, LONGEST = 1 << 16, PAGE = 4096, NAME = 96, WORKERS = 4 };

static uint64_t state;

static uint32_t draw(uint32_t limit) { // splitmix64
  uint64_t value = state += 0x9e3779b97f4a7c15;
  value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
  value = (value ^ value >> 27) * 0x94d049bb133111eb;
  return (uint32_t)((value ^ value >> 31) >> 16) % limit;
}

static void fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  printf(" (%s)\n", strerrorname_np(errno));
  exit(1);
}

static uint64_t digest(uint64_t sum, const void *data, size_t size) { // FNV-1a
  const unsigned char *bytes = data;
  if (!sum) sum = (uint64_t)0xcbf29ce4 << 32 | 0x84222325;
  for (size_t i = 0; i < size; i++) sum = (sum ^ bytes[i]) * 0x100000001b3;
  return sum;
}

static void fill(char *data, size_t size) {
  for (size_t i = 0; i < size; i++) data[i] = draw(256);
}

// The file and what it must hold.
static char *model, *scratch;
static off_t size;
static int file, direct, kept_back;

static void write_some(off_t at, size_t count) {
  fill(scratch, count);
  if (pwrite(file, scratch, count, at) != (ssize_t)count) fail("write of %zu at %lld", count, (long long)at);
  memcpy(model + at, scratch, count);
  if (at + (off_t)count > size) size = at + count;
}

static void compare(const char *what, off_t at, ssize_t got, ssize_t want) {
  if (got != want) fail("%s at %lld gave %zd of %zd", what, (long long)at, got, want);
  for (ssize_t i = 0; i < got; i++)
    if (scratch[i] != model[at + i]) fail("%s at %lld differs from byte %lld on", what, (long long)at, (long long)at + i);
}

static void read_some(off_t at, size_t count) {
  ssize_t want = at >= size ? 0 : (off_t)count < size - at ? (ssize_t)count : size - at;
  compare("read", at, pread(file, scratch, count, at), want);
}

static void resize(off_t to) {
  if (ftruncate(file, to) < 0) fail("truncate to %lld", (long long)to);
  if (to < size) memset(model + to, 0, size - to);
  size = to;
}

static void map_some(off_t at, size_t count, int writes) {
  if (at >= size) return;
  if ((off_t)count > size - at) count = size - at;
  off_t page = at & ~(off_t)(PAGE - 1);
  size_t length = at - page + count;
  char *map = mmap(NULL, length, PROT_READ | (writes ? PROT_WRITE : 0), MAP_SHARED, file, page);
  if (map == MAP_FAILED) fail("mmap");
  if (writes) {
    fill(scratch, count);
    memcpy(map + (at - page), scratch, count);
    memcpy(model + at, scratch, count);
    if (msync(map, length, MS_SYNC) < 0) fail("msync");
  } else {
    memcpy(scratch, map + (at - page), count);
    compare("mapped read", at, count, count);
  }
  munmap(map, length);
}

static void allocate(int mode, off_t at, size_t count) {
  if (fallocate(file, mode, at, count) < 0) {
    if (errno == EOPNOTSUPP) return;
    fail("fallocate %d of %zu at %lld", mode, count, (long long)at);
  }
  off_t end = at + count;
  if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE)) memset(model + at, 0, count);
  if (!(mode & FALLOC_FL_KEEP_SIZE) && end > size) size = end;
  // Beyond the end the model stays zero, as holes do.
  if (end > size && at < LARGEST) memset(model + (at > size ? at : size), 0, end - (at > size ? at : size));
}

static void copy_within(off_t from, off_t to, size_t count) {
  if (from >= size) return;
  if ((off_t)count > size - from) count = size - from;
  if (from < to + (off_t)count && to < from + (off_t)count) return; // overlap is an error
  for (size_t done = 0; done < count;) {
    loff_t source = from + done, target = to + done;
    ssize_t now = copy_file_range(file, &source, file, &target, count - done, 0);
    if (now <= 0) fail("copy_file_range of %zu from %lld to %lld", count, (long long)from, (long long)to);
    done += now;
  }
  memmove(model + to, model + from, count);
  if (to + (off_t)count > size) size = to + count;
}

static void seek_some(off_t at) {
  // Linux asks the server, which does not know what the guest keeps back.
  if (kept_back && fsync(file) < 0) fail("fsync");
  off_t data = lseek(file, at, SEEK_DATA);
  off_t end = data < 0 ? size : data;
  if (data < 0 && errno != ENXIO) fail("SEEK_DATA at %lld", (long long)at);
  for (off_t i = at; i < end; i++)
    if (model[i]) fail("SEEK_DATA at %lld skips data at %lld", (long long)at, (long long)i);
}

static void reopen(void) {
  if (file >= 0 && close(file) < 0) fail("close");
  file = open("data", O_RDWR | O_CREAT | (direct ? O_DIRECT : 0), 0644);
  if (file < 0) fail("open");
}

static void random_calls(int count) {
  struct stat status;
  uint32_t grain = direct ? PAGE : 1;
  uint64_t sum = 0;
  file = -1;
  reopen();
  for (int i = 0; i < count; i++) {
    off_t at = draw(LARGEST - LONGEST) / grain * grain, other = draw(LARGEST - LONGEST) / grain * grain;
    size_t length = (1 + draw(draw(4) ? 9000 : LONGEST)) / grain * grain;
    uint32_t which = draw(100);
    if (!length) continue;
    if (which < 25) write_some(at, length);
    else if (which < 50) read_some(at, length);
    else if (which < 58) resize(direct ? at : draw(LARGEST - LONGEST));
    else if (which < 66) map_some(at, length, 1);
    else if (which < 74) map_some(at, length, 0);
    else if (which < 79) allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length);
    else if (which < 83) allocate(FALLOC_FL_ZERO_RANGE, at, length);
    else if (which < 87) allocate(which & 1 ? FALLOC_FL_KEEP_SIZE : 0, at, length);
    else if (which < 92) copy_within(at, other, length);
    else if (which < 95) seek_some(at);
    else if (which < 97) fsync(file);
    else reopen();
    if (fstat(file, &status) < 0 || status.st_size != size)
      fail("size %lld instead of %lld after call %d, kind %u", (long long)status.st_size, (long long)size, i, which);
    sum = digest(sum, &status.st_size, sizeof(status.st_size));
  }
  reopen();
  memset(scratch, 0, LARGEST);
  compare("last read", 0, pread(file, scratch, LARGEST, 0), size);
  printf("random %d calls, size %lld, digest %016llx\n", count, (long long)size,
         (unsigned long long)digest(sum, model, size));
  close(file);
  unlink("data");
}

static void put(const char *name, const char *data, size_t length, int mode) {
  int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, mode);
  if (fd < 0 || write(fd, data, length) != (ssize_t)length || close(fd) < 0) fail("make %s", name);
}

static uint64_t take(uint64_t sum, const char *name) {
  int fd = open(name, O_RDONLY);
  if (fd < 0) fail("open %s", name);
  for (ssize_t count; (count = read(fd, scratch, LARGEST)) != 0;) {
    if (count < 0) fail("read %s", name);
    sum = digest(sum, scratch, count);
  }
  close(fd);
  return sum;
}

static int by_name(const void *first, const void *second) {
  return strcmp(*(char *const *)first, *(char *const *)second);
}

// Names of a folder in order, without the dotted ones.
static char **entries(const char *path, int *count) {
  char **names = NULL;
  DIR *folder = opendir(path);
  if (!folder) fail("opendir %s", path);
  *count = 0;
  for (struct dirent *entry; (entry = readdir(folder));) {
    if (entry->d_name[0] == '.') continue;
    if (!(*count & (*count + 1))) names = realloc(names, 2 * (*count + 1) * sizeof(*names));
    names[(*count)++] = strdup(entry->d_name);
  }
  closedir(folder);
  if (*count) qsort(names, *count, sizeof(*names), by_name);
  return names;
}

static uint64_t summarize(uint64_t sum, const char *path, int removes, long *total) {
  int count;
  char **names = entries(path, &count), name[4 * NAME];
  for (int i = 0; i < count; i++) {
    struct stat status;
    snprintf(name, sizeof(name), "%s/%s", path, names[i]);
    if (lstat(name, &status) < 0) fail("lstat %s", name);
    sum = digest(sum, names[i], strlen(names[i]));
    sum = digest(sum, &status.st_mode, sizeof(status.st_mode));
    ++*total;
    if (S_ISDIR(status.st_mode)) sum = summarize(sum, name, removes, total);
    else if (S_ISREG(status.st_mode)) sum = take(sum, name);
    if (removes && (S_ISDIR(status.st_mode) ? rmdir(name) : unlink(name)) < 0) fail("remove %s", name);
    free(names[i]);
  }
  free(names);
  return sum;
}

static void tree(int count) {
  char name[NAME], place[NAME];
  long total = 0;
  mkdir("objects", 0755), mkdir("work", 0755);
  for (int i = 0; i < count; i++) {
    size_t length = 1 + draw(draw(10) ? 2000 : 30000);
    fill(scratch, length);
    uint64_t sum = digest(0, scratch, length);
    snprintf(name, sizeof(name), "objects/tmp_%08x", draw(1u << 31));
    put(name, scratch, length, 0444);
    snprintf(place, sizeof(place), "objects/%02x", (unsigned)(sum & 0x3f));
    if (mkdir(place, 0755) < 0 && errno != EEXIST) fail("mkdir %s", place);
    snprintf(place, sizeof(place), "objects/%02x/%016llx", (unsigned)(sum & 0x3f), (unsigned long long)sum);
    if (rename(name, place) < 0) fail("rename %s to %s", name, place);
    snprintf(name, sizeof(name), "work/%d", i % 37);
    mkdir(name, 0755);
    snprintf(name, sizeof(name), "work/%d/file-%d", i % 37, i);
    if (i % 17 == 0) {
      if (symlink(place, name) < 0) fail("symlink %s", name);
    } else {
      put(name, scratch, length, i % 5 ? 0644 : 0755);
    }
    if (i % 64 == 0) {
      put("index.lock", scratch, length, 0644);
      if (rename("index.lock", "index") < 0) fail("rename index.lock");
    }
  }
  uint64_t seen = summarize(0, ".", 0, &total);
  printf("tree %ld entries, digest %016llx\n", total, (unsigned long long)seen);
  total = 0;
  uint64_t again = summarize(0, ".", 1, &total);
  if (again != seen) fail("tree changed: %016llx", (unsigned long long)again);
  summarize(0, ".", 0, &total);
  printf("tree %ld entries after removal\n", total);
}

static void compile(int worker, int count, uint64_t seed) {
  char name[NAME], place[NAME], line[NAME];
  int log = open("log", O_WRONLY | O_APPEND);
  if (log < 0) fail("open log");
  for (int i = worker; i < count; i += WORKERS) {
    state = seed ^ ((uint64_t)i << 20);
    uint64_t sum = 0;
    for (int header = 0; header < 5; header++) {
      snprintf(name, sizeof(name), "include/%u.h", draw(20));
      sum = take(sum, name);
    }
    size_t length = 1 + draw(LONGEST);
    fill(scratch, length);
    snprintf(name, sizeof(name), "out/%d.o.tmp", i);
    snprintf(place, sizeof(place), "out/%d.o", i);
    put(name, scratch, length, 0644);
    if (rename(name, place) < 0) fail("rename %s", name);
    // Everybody wants the same lock: exactly one at a time holds it.
    int fd;
    while ((fd = open("lock", O_CREAT | O_EXCL | O_WRONLY, 0600)) < 0)
      if (errno != EEXIST) fail("lock");
    close(fd);
    if (unlink("lock") < 0) fail("unlock");
    int end = snprintf(line, sizeof(line), "%d %016llx\n", i, (unsigned long long)digest(sum, scratch, length));
    if (write(log, line, end) != end) fail("write log");
  }
  close(log);
}

static void churn(int count) {
  char name[NAME];
  uint64_t seed = state;
  long total = 0;
  mkdir("include", 0755), mkdir("out", 0755);
  for (int i = 0; i < 20; i++) {
    fill(scratch, 3000);
    snprintf(name, sizeof(name), "include/%d.h", i);
    put(name, scratch, 3000, 0644);
  }
  put("log", "", 0, 0644);
  for (int worker = 0; worker < WORKERS; worker++)
    if (fork() == 0) {
      compile(worker, count, seed);
      exit(0);
    }
  for (int worker = 0, status; worker < WORKERS; worker++)
    if (wait(&status) < 0 || status) fail("worker ended with %d", status);
  // The lines came in any order, but each came whole and once.
  char **lines = calloc(count, sizeof(*lines));
  FILE *log = fopen("log", "r");
  for (int i = 0; i < count; i++) {
    lines[i] = malloc(NAME);
    if (!log || !fgets(lines[i], NAME, log)) fail("log has %d lines", i);
  }
  if (fgets(name, sizeof(name), log)) fail("log has too many lines");
  fclose(log);
  qsort(lines, count, sizeof(*lines), by_name);
  uint64_t sum = 0;
  for (int i = 0; i < count; i++) sum = digest(sum, lines[i], strlen(lines[i]));
  if (unlink("log") < 0) fail("unlink log");
  sum = summarize(sum, ".", 1, &total);
  printf("churn %d files, %ld entries, digest %016llx\n", count, total, (unsigned long long)sum);
}

static void check_seen(const unsigned char *seen, int count) {
  long odd = 0;
  for (int i = 0; i < count; i++) {
    if (seen[i] > 1) fail("entry %d was seen %d times", i, seen[i]);
    // What was there all the time has numbers that do not end in 7 (removed in the middle).
    if (i % 10 != 7 && !seen[i]) fail("entry %d was not seen", i);
    odd += i % 10 == 7 && seen[i];
  }
  if (odd > count / 10) fail("too many");
  printf("folder of %d: what stayed was seen once\n", count);
}

static void folder(int count) {
  char name[NAME];
  unsigned char *seen = calloc(count, 1);
  for (int i = 0; i < count; i++) {
    snprintf(name, sizeof(name), "entry-%d", i);
    put(name, "", 0, 0644);
  }
  DIR *folder = opendir(".");
  if (!folder) fail("opendir");
  int read = 0;
  for (struct dirent *entry; (entry = readdir(folder)); read++) {
    if (entry->d_name[0] == 'e') seen[atoi(entry->d_name + 6)]++;
    if (read != count / 2) continue;
    for (int i = 7; i < count; i += 10) {
      snprintf(name, sizeof(name), "entry-%d", i);
      if (unlink(name) < 0) fail("unlink %s", name);
      snprintf(name, sizeof(name), "new-%d", i);
      put(name, "", 0, 0644);
    }
  }
  check_seen(seen, count);
  // Every place leads back to the name that was read there.
  enum { PLACES = 100 };
  long places[PLACES];
  char *names[PLACES];
  rewinddir(folder);
  for (int i = 0, at = 0; i < PLACES; at++) {
    long place = telldir(folder);
    struct dirent *entry = readdir(folder);
    if (!entry) fail("end after %d", at);
    if (at % 25 == 0) places[i] = place, names[i++] = strdup(entry->d_name);
    if (count < 25 * PLACES && at > count / 2) fail("folder is too small");
  }
  for (int i = PLACES - 1; i >= 0; i--) {
    seekdir(folder, places[i]);
    struct dirent *entry = readdir(folder);
    if (!entry || strcmp(entry->d_name, names[i])) fail("place %d leads to %s", i, entry ? entry->d_name : "the end");
  }
  closedir(folder);
  printf("folder: %d places lead back\n", PLACES);
  long total = 0;
  uint64_t sum = summarize(0, ".", 1, &total);
  printf("folder: %ld entries, digest %016llx\n", total, (unsigned long long)sum);
}

int main(int count, char **words) {
  if (count < 5 || chdir(words[2]) < 0) fail("arguments");
  const char *verb = words[1];
  int calls = atoi(words[4]);
  state = strtoull(words[3], NULL, 0);
  for (int i = 5; i < count; i++) {
    direct |= !strcmp(words[i], "direct");
    kept_back |= !strcmp(words[i], "kept-back");
  }
  model = calloc(1, LARGEST);
  if (!model || posix_memalign((void **)&scratch, PAGE, LARGEST)) fail("memory");
  umask(022);
  if (!strcmp(verb, "random")) random_calls(calls);
  else if (!strcmp(verb, "tree")) tree(calls);
  else if (!strcmp(verb, "churn")) churn(calls);
  else if (!strcmp(verb, "folder")) folder(calls);
  else fail("no such load");
  return 0;
}
