// SPDX-License-Identifier: Apache-2.0
//
// The script's calls on names.

#define _GNU_SOURCE
#include "script.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ENTRIES = 4096, VALUE = 1 << 16, TICK_NS = 20000000 };

static const char *kind_name(mode_t mode) {
  switch (mode & S_IFMT) {
  case S_IFREG: return "file";
  case S_IFDIR: return "dir";
  case S_IFLNK: return "link";
  case S_IFIFO: return "fifo";
  case S_IFSOCK: return "sock";
  case S_IFCHR: return "char";
  case S_IFBLK: return "block";
  }
  return "?";
}

void say_status(const struct stat *status) {
  say("%s %04o", kind_name(status->st_mode), status->st_mode & 07777);
  // A folder's links and size are the affair of the file system below.
  if (!S_ISDIR(status->st_mode)) say(" links %ld size %lld", (long)status->st_nlink, (long long)status->st_size);
  say(" owner %d:%d", status->st_uid, status->st_gid);
  if (S_ISCHR(status->st_mode) || S_ISBLK(status->st_mode))
    say(" device %u,%u", major(status->st_rdev), minor(status->st_rdev));
}

static void do_stat(char **words) {
  struct stat status;
  if (stat(words[0], &status) < 0) return say_outcome(-1);
  say_status(&status);
}

static void do_lstat(char **words) {
  struct stat status;
  if (lstat(words[0], &status) < 0) return say_outcome(-1);
  say_status(&status);
}

static void do_blocks(char **words) {
  struct stat status;
  if (stat(words[0], &status) < 0) return say_outcome(-1);
  say("%lld", (long long)status.st_blocks);
}

static void do_same(char **words) {
  struct stat first, second;
  if (lstat(words[0], &first) < 0 || lstat(words[1], &second) < 0) return say_outcome(-1);
  say(first.st_ino == second.st_ino && first.st_dev == second.st_dev ? "same" : "different");
}

static void do_mkdir(char **words) { say_outcome(mkdir(words[0], number(words[1]))); }
static void do_rmdir(char **words) { say_outcome(rmdir(words[0])); }
static void do_unlink(char **words) { say_outcome(unlink(words[0])); }
static void do_link(char **words) { say_outcome(link(words[0], words[1])); }
static void do_symlink(char **words) { say_outcome(symlink(words[0], words[1])); }
static void do_chmod(char **words) { say_outcome(chmod(words[0], number(words[1]))); }
static void do_truncate(char **words) { say_outcome(truncate(words[0], number(words[1]))); }
static void do_mkfifo(char **words) { say_outcome(mkfifo(words[0], number(words[1]))); }
static void do_umask(char **words) { umask(number(words[0])); }

static void do_chown(char **words) { say_outcome(chown(words[0], number(words[1]), number(words[2]))); }
static void do_lchown(char **words) { say_outcome(lchown(words[0], number(words[1]), number(words[2]))); }

static void do_mknod(char **words) {
  static const struct name kinds[] = {{"file", S_IFREG}, {"fifo", S_IFIFO}, {"char", S_IFCHR},
                                      {"block", S_IFBLK}, {"sock", S_IFSOCK}, {0}};
  dev_t device = makedev(number(words[3]), number(words[4]));
  say_outcome(mknod(words[0], flags(kinds, words[1]) | number(words[2]), device));
}

static void do_create(char **words) {
  int fd = open(words[0], O_CREAT | O_EXCL | O_WRONLY, number(words[1]));
  say_outcome(fd < 0 ? -1 : 0);
  if (fd >= 0) close(fd);
}

static void do_rename(char **words) {
  static const struct name names[] = {
      {"exchange", RENAME_EXCHANGE}, {"noreplace", RENAME_NOREPLACE}, {"whiteout", RENAME_WHITEOUT}, {0}};
  if (!words[2]) return say_outcome(rename(words[0], words[1]));
  say_outcome(syscall(SYS_renameat2, AT_FDCWD, words[0], AT_FDCWD, words[1], flags(names, words[2])));
}

static void do_readlink(char **words) {
  char text[4096];
  ssize_t length = readlink(words[0], text, sizeof(text));
  if (length < 0) return say_outcome(-1);
  say("%.*s", (int)length, text);
}

static void do_access(char **words) {
  static const struct name names[] = {{"r", R_OK}, {"w", W_OK}, {"x", X_OK}, {"f", F_OK}, {0}};
  say_outcome(faccessat(AT_FDCWD, words[0], flags(names, words[1]), AT_EACCESS));
}

static int by_name(const void *first, const void *second) {
  return strcmp(*(char *const *)first, *(char *const *)second);
}

static void do_list(char **words) {
  static char *names[MAX_ENTRIES];
  int count = 0;
  DIR *folder = opendir(words[0]);
  if (!folder) return say_outcome(-1);
  for (struct dirent *entry; count < MAX_ENTRIES && (entry = readdir(folder));)
    if (asprintf(&names[count], "%s:%d", entry->d_name, entry->d_type) > 0) count++;
  closedir(folder);
  qsort(names, count, sizeof(*names), by_name);
  for (int i = 0; i < count; i++) {
    say("%s ", names[i]);
    free(names[i]);
  }
}

static int parse_time(const char *text, struct timespec *time) {
  *time = (struct timespec){0};
  if (!strcmp(text, "now")) time->tv_nsec = UTIME_NOW;
  else if (!strcmp(text, "omit")) time->tv_nsec = UTIME_OMIT;
  else return sscanf(text, "%ld.%ld", &time->tv_sec, &time->tv_nsec);
  return 1;
}

static void do_utimens(char **words) {
  struct timespec times[2];
  parse_time(words[1], &times[0]);
  parse_time(words[2], &times[1]);
  say_outcome(utimensat(AT_FDCWD, words[0], times, words[3] ? AT_SYMLINK_NOFOLLOW : 0));
}

static void say_time(struct timespec time) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  // What was set by the script is told; what was set by the clock differs between two runs.
  if (labs(now.tv_sec - time.tv_sec) < 3600) say("recent ");
  else say("%ld.%09ld ", time.tv_sec, time.tv_nsec);
}

static void do_times(char **words) {
  struct stat status;
  if (lstat(words[0], &status) < 0) return say_outcome(-1);
  say_time(status.st_atim);
  say_time(status.st_mtim);
}

// The time of access is not told here: reading from the guest's cache does not change it at once.
static void do_modified(char **words) {
  struct stat status;
  if (lstat(words[0], &status) < 0) return say_outcome(-1);
  say_time(status.st_mtim);
}

// "mark NAME" remembers the times of a name and lets the clock go on; "since NAME" says which have grown.
static struct stat marked;

static void do_mark(char **words) {
  struct timespec tick = {.tv_nsec = TICK_NS};
  if (lstat(words[0], &marked) < 0) return say_outcome(-1);
  nanosleep(&tick, NULL);
}

static int order(struct timespec first, struct timespec second) {
  if (first.tv_sec != second.tv_sec) return first.tv_sec < second.tv_sec ? -1 : 1;
  return first.tv_nsec < second.tv_nsec ? -1 : first.tv_nsec > second.tv_nsec;
}

static void do_since(char **words) {
  static const char *words_of[] = {"back", "same", "new"};
  struct stat status;
  if (lstat(words[0], &status) < 0) return say_outcome(-1);
  say("modified %s, changed %s", words_of[1 + order(status.st_mtim, marked.st_mtim)],
      words_of[1 + order(status.st_ctim, marked.st_ctim)]);
}

static void do_set_attribute(char **words) {
  static const struct name names[] = {{"create", XATTR_CREATE}, {"replace", XATTR_REPLACE}, {"0", 0}, {0}};
  long mode = words[3] ? flags(names, words[3]) : 0;
  say_outcome(lsetxattr(words[0], words[1], words[2] ? words[2] : "", words[2] ? strlen(words[2]) : 0, mode));
}

static void do_set_capability(char **words) {
  // struct vfs_cap_data, revision 2, effective: CAP_NET_RAW. <linux/capability.h>
  static const unsigned char value[20] = {1, 0, 0, 2, 0, 0x20};
  say_outcome(setxattr(words[0], "security.capability", value, sizeof(value), 0));
}

static void do_get_attribute(char **words) {
  static unsigned char value[VALUE];
  ssize_t length = lgetxattr(words[0], words[1], value, words[2] ? (size_t)number(words[2]) : sizeof(value));
  if (length < 0 || (words[2] && !number(words[2]))) return say_outcome(length);
  say("%zd ", length);
  for (ssize_t i = 0; i < length && i < 64; i++) say(value[i] > 32 && value[i] < 127 ? "%c" : "<%d>", value[i]);
}

static void do_remove_attribute(char **words) { say_outcome(lremovexattr(words[0], words[1])); }

static void do_list_attributes(char **words) {
  static char names[VALUE];
  char *sorted[256];
  int count = 0;
  ssize_t length = llistxattr(words[0], names, sizeof(names));
  if (length < 0) return say_outcome(-1);
  for (char *at = names; at < names + length && count < 256; at += strlen(at) + 1) sorted[count++] = at;
  qsort(sorted, count, sizeof(*sorted), by_name);
  for (int i = 0; i < count; i++) say("%s ", sorted[i]);
}

static void do_statx(char **words) {
  struct statx status;
  if (statx(AT_FDCWD, words[0], AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &status) < 0) return say_outcome(-1);
  say("basic %d mount root %d", (status.stx_mask & STATX_BASIC_STATS) == STATX_BASIC_STATS,
      !!(status.stx_attributes & STATX_ATTR_MOUNT_ROOT));
}

static void do_birth(char **words) {
  struct statx status;
  if (statx(AT_FDCWD, words[0], AT_SYMLINK_NOFOLLOW, STATX_BTIME, &status) < 0) return say_outcome(-1);
  say(status.stx_mask & STATX_BTIME ? "known" : "unknown");
}

static void do_statfs(char **words) {
  struct statfs status;
  if (statfs(words[0], &status) < 0) return say_outcome(-1);
  say("names of %ld, blocks of %ld", (long)status.f_namelen, (long)status.f_frsize);
}

const struct call calls[] = {
    {"stat", do_stat},
    {"lstat", do_lstat},
    {"blocks", do_blocks},
    {"same", do_same},
    {"mkdir", do_mkdir},
    {"rmdir", do_rmdir},
    {"unlink", do_unlink},
    {"link", do_link},
    {"symlink", do_symlink},
    {"chmod", do_chmod},
    {"chown", do_chown},
    {"lchown", do_lchown},
    {"truncate", do_truncate},
    {"mkfifo", do_mkfifo},
    {"mknod", do_mknod},
    {"umask", do_umask},
    {"create", do_create},
    {"rename", do_rename},
    {"readlink", do_readlink},
    {"access", do_access},
    {"list", do_list},
    {"utimens", do_utimens},
    {"times", do_times},
    {"modified", do_modified},
    {"mark", do_mark},
    {"since", do_since},
    {"set-attribute", do_set_attribute},
    {"set-capability", do_set_capability},
    {"get-attribute", do_get_attribute},
    {"remove-attribute", do_remove_attribute},
    {"list-attributes", do_list_attributes},
    {"statx", do_statx},
    {"birth", do_birth},
    {"statfs", do_statfs},
    {0},
};
