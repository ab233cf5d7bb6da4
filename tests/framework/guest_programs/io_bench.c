// SPDX-License-Identifier: Apache-2.0
//
// Timed input and output in the guest: files on a share, and disks. Prints "<nanoseconds> <operations>".
//
//   io_bench write FILE MIB          sequential, 1 MiB at a time, with one fsync in the end
//   io_bench read FILE               sequential, 1 MiB at a time
//   io_bench random FILE COUNT SEED  4 KiB each, every page at most once
//   io_bench create DIR COUNT        create, stat and unlink that many files
//   io_bench walk DIR                stat everything in a tree
//   io_bench disk DEVICE read|write random|sequential BLOCK DEPTH COUNT SEED
//                                    direct, DEPTH requests at a time
//   io_bench on CPU …                as above, on one processor
//   io_bench cat FILE                prints a file instead
//
// Nothing that is read is in the guest's cache: it is dropped before.

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20, PAGE = 4096, MAX_DEPTH = 128, NAME = 64 };

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static uint64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void drop_caches(void) {
  int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
  if (fd < 0 || write(fd, "3", 1) != 1) fail("drop_caches");
  close(fd);
}

static char *buffer(size_t size) {
  char *data = NULL;
  if (posix_memalign((void **)&data, PAGE, size)) fail("memory");
  memset(data, 0x5a, size);
  return data;
}

static uint64_t write_file(const char *path, int mib) {
  char *data = buffer(MIB);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0) fail(path);
  for (int i = 0; i < mib; i++)
    if (write(fd, data, MIB) != MIB) fail("write");
  if (fsync(fd) < 0) fail("fsync");
  close(fd);
  return mib;
}

static uint64_t read_file(const char *path) {
  char *data = buffer(MIB);
  int fd = open(path, O_RDONLY);
  uint64_t total = 0;
  if (fd < 0) fail(path);
  for (ssize_t count; (count = read(fd, data, MIB)) != 0; total += count)
    if (count < 0) fail("read");
  close(fd);
  return total / MIB;
}

static int print_file(const char *path) {
  char data[PAGE];
  int fd = open(path, O_RDONLY);
  if (fd < 0) fail(path);
  for (ssize_t count; (count = read(fd, data, sizeof(data))) > 0;)
    if (write(1, data, count) != count) fail("write");
  return 0;
}

static uint64_t random_file(const char *path, uint64_t count, uint64_t seed) {
  char *data = buffer(PAGE);
  struct stat status;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &status) < 0) fail(path);
  posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
  uint64_t pages = status.st_size / PAGE;
  // An odd factor permutes the pages of a file whose size is a power of two.
  for (uint64_t i = 0; i < count; i++)
    if (pread(fd, data, PAGE, ((i + seed) * 0x9e3779b1 % pages) * PAGE) != PAGE) fail("pread");
  close(fd);
  return count;
}

static uint64_t create_files(const char *path, int count) {
  char name[NAME];
  struct stat status;
  if (mkdir(path, 0755) < 0 || chdir(path) < 0) fail(path);
  for (int i = 0; i < count; i++) {
    snprintf(name, sizeof(name), "file-%d", i);
    int fd = open(name, O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd < 0) fail(name);
    close(fd);
  }
  for (int i = 0; i < count; i++) {
    snprintf(name, sizeof(name), "file-%d", i);
    if (stat(name, &status) < 0) fail(name);
  }
  for (int i = 0; i < count; i++) {
    snprintf(name, sizeof(name), "file-%d", i);
    if (unlink(name) < 0) fail(name);
  }
  if (chdir("/") < 0 || rmdir(path) < 0) fail(path);
  return count;
}

static uint64_t walk(int parent, const char *name) {
  uint64_t count = 0;
  int fd = openat(parent, name, O_RDONLY | O_DIRECTORY);
  DIR *folder = fd < 0 ? NULL : fdopendir(fd);
  if (!folder) fail(name);
  for (struct dirent *entry; (entry = readdir(folder));) {
    struct stat status;
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    if (fstatat(fd, entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0) fail(entry->d_name);
    count += 1 + (S_ISDIR(status.st_mode) ? walk(fd, entry->d_name) : 0);
  }
  closedir(folder);
  return count;
}

struct disk_job {
  int fd, writes, random;
  uint64_t block, depth, count, seed, blocks;
};

static struct disk_job open_disk(char **words) {
  struct disk_job job = {
      .writes = !strcmp(words[1], "write"),
      .random = !strcmp(words[2], "random"),
      .block = strtoull(words[3], NULL, 0),
      .depth = strtoull(words[4], NULL, 0),
      .count = strtoull(words[5], NULL, 0),
      .seed = strtoull(words[6], NULL, 0),
  };
  job.fd = open(words[0], (job.writes ? O_WRONLY : O_RDONLY) | O_DIRECT);
  off_t size = job.fd < 0 ? -1 : lseek(job.fd, 0, SEEK_END);
  if (size < 0) fail(words[0]);
  job.blocks = size / job.block;
  if (job.depth > MAX_DEPTH || job.depth > job.count || !job.blocks) fail("arguments");
  return job;
}

static void submit(aio_context_t context, struct disk_job *job, struct iocb *request, char *data, uint64_t number) {
  uint64_t place = job->random ? (number + job->seed) * 0x9e3779b1 % job->blocks : number % job->blocks;
  *request = (struct iocb){
      .aio_lio_opcode = job->writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD,
      .aio_fildes = job->fd,
      .aio_buf = (uint64_t)(uintptr_t)data,
      .aio_nbytes = job->block,
      .aio_offset = place * job->block,
      .aio_data = (uint64_t)(uintptr_t)data,
  };
  if (syscall(SYS_io_submit, context, 1L, &request) != 1) fail("io_submit");
}

static uint64_t use_disk(struct disk_job *job) {
  aio_context_t context = 0;
  struct iocb requests[MAX_DEPTH];
  struct io_event events[MAX_DEPTH];
  char *data = buffer(job->depth * job->block);
  uint64_t begun = 0, done = 0;
  if (syscall(SYS_io_setup, (long)MAX_DEPTH, &context) < 0) fail("io_setup");
  for (; begun < job->depth; begun++)
    submit(context, job, &requests[begun], data + begun * job->block, begun);
  while (done < job->count) {
    long count = syscall(SYS_io_getevents, context, 1L, (long)MAX_DEPTH, events, NULL);
    if (count < 1) fail("io_getevents");
    for (long i = 0; i < count; i++, done++) {
      if (events[i].res != (int64_t)job->block) fail("request");
      if (begun == job->count) continue;
      struct iocb *request = (struct iocb *)(uintptr_t)events[i].obj;
      submit(context, job, request, (char *)(uintptr_t)events[i].data, begun++);
    }
  }
  syscall(SYS_io_destroy, context);
  close(job->fd);
  return done;
}

int main(int count, char **words) {
  uint64_t operations = 0;
  if (count > 4 && !strcmp(words[1], "on")) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(atoi(words[2]), &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus) < 0) fail("sched_setaffinity");
    words += 2, count -= 2;
  }
  if (count < 3) return 2;
  if (!strcmp(words[1], "cat")) return print_file(words[2]);
  const char *verb = words[1], *path = words[2];
  drop_caches();
  if (!strcmp(verb, "disk") && count == 9) {
    struct disk_job job = open_disk(words + 2);
    uint64_t begin = now();
    operations = use_disk(&job);
    printf("%llu %llu\n", (unsigned long long)(now() - begin), (unsigned long long)operations);
    return 0;
  }
  uint64_t begin = now();
  if (!strcmp(verb, "write") && count == 4) operations = write_file(path, atoi(words[3]));
  else if (!strcmp(verb, "read")) operations = read_file(path);
  else if (!strcmp(verb, "random") && count == 5) operations = random_file(path, atoi(words[3]), atoi(words[4]));
  else if (!strcmp(verb, "create") && count == 4) operations = create_files(path, atoi(words[3]));
  else if (!strcmp(verb, "walk")) operations = walk(AT_FDCWD, path);
  else return 2;
  printf("%llu %llu\n", (unsigned long long)(now() - begin), (unsigned long long)operations);
  return 0;
}
