// SPDX-License-Identifier: Apache-2.0
//
// Obeys a script of file-system calls and prints what each gave: `script FILE FOLDER`.
//
// A line is one call; the output has one line for each: its number in the script and the result, an errno by
// name if it failed. "## name" begins a case, which gets an empty folder of its own. A call may be preceded by
// "as UID:GID[:GROUP,…]" (made with those identities) and by "child" (made in a process of its own).
// The word "<empty>" stands for no text. Nothing printed depends on the time or on the file system's numbers, so two runs can be compared word by word.

#define _GNU_SOURCE
#include "script.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_LINE = 1 << 15, MAX_GROUPS = 32 };

static char result[MAX_LINE];

void say(const char *format, ...) {
  va_list arguments;
  size_t used = strlen(result);
  va_start(arguments, format);
  vsnprintf(result + used, sizeof(result) - used, format, arguments);
  va_end(arguments);
}

void say_outcome(long value) {
  if (value < 0) say("%s", strerrorname_np(errno));
  else say("%ld", value);
}

long number(const char *text) { return text ? strtol(text, NULL, 0) : 0; }

// Becomes somebody else for the calls to come; saved identity 0 leads back. Raw calls: only this thread.
static int become(char *text) {
  gid_t groups[MAX_GROUPS];
  int count = 0;
  char *uid = strtok_r(text, ":", &text), *gid = strtok_r(NULL, ":", &text), *more = strtok_r(NULL, ":", &text);
  for (char *group = more ? strtok_r(more, ",", &more) : NULL; group && count < MAX_GROUPS;
       group = strtok_r(NULL, ",", &more))
    groups[count++] = number(group);
  if (syscall(SYS_setgroups, count, groups) < 0) return -1;
  if (syscall(SYS_setresgid, number(gid), number(gid), 0) < 0) return -1;
  return syscall(SYS_setresuid, number(uid), number(uid), 0);
}

static void become_root(void) {
  syscall(SYS_setresuid, 0, 0, 0);
  syscall(SYS_setresgid, 0, 0, 0);
  syscall(SYS_setgroups, 0, NULL);
}

static void obey(char **words);

static void obey_in_child(char **words) {
  int channel[2];
  if (pipe(channel) < 0) return say_outcome(-1);
  pid_t child = fork();
  if (child == 0) {
    obey(words);
    if (write(channel[1], result, strlen(result)) < 0) _exit(1);
    _exit(0);
  }
  close(channel[1]);
  size_t used = 0;
  for (ssize_t count; (count = read(channel[0], result + used, sizeof(result) - 1 - used)) > 0;) used += count;
  result[used] = 0;
  close(channel[0]);
  waitpid(child, NULL, 0);
}

static void obey(char **words) {
  if (!strcmp(words[0], "as")) {
    if (become(words[1]) < 0) say("cannot become %s: %s", words[1], strerrorname_np(errno));
    else obey(words + 2);
    return become_root();
  }
  if (!strcmp(words[0], "child")) return obey_in_child(words + 1);
  for (const struct call *table = calls; table->name; table++)
    if (!strcmp(table->name, words[0])) return table->make(words + 1);
  for (const struct call *table = data_calls; table->name; table++)
    if (!strcmp(table->name, words[0])) return table->make(words + 1);
  say("no such call");
}

static int remove_entry(const char *path, const struct stat *status, int kind, struct FTW *place) {
  (void)status, (void)kind, (void)place;
  return remove(path);
}

static int split(char *line, char **words) {
  int count = 0;
  for (char *word = strtok(line, " "); word && count < MAX_WORDS; word = strtok(NULL, " ")) words[count++] = word;
  for (int i = 0; i < count; i++)
    if (!strcmp(words[i], "<empty>")) words[i] = "";
  for (int i = count; i < MAX_WORDS + 4; i++) words[i] = NULL;
  return count;
}

int main(int count, char **arguments) {
  static char line[MAX_LINE];
  char folder[64] = "";
  FILE *script = count == 3 ? fopen(arguments[1], "r") : NULL;
  if (!script || chdir(arguments[2]) < 0) {
    perror("script");
    return 2;
  }
  setvbuf(stdout, NULL, _IOFBF, 1 << 16);
  umask(022);
  for (int at = 1, cases = 0; fgets(line, sizeof(line), script); at++) {
    char *words[MAX_WORDS + 4];
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "## ", 3)) {
      close_all();
      umask(022);
      if (*folder && (chdir("..") < 0 || nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS) < 0)) {
        printf("%d cannot remove %s: %s\n", at, folder, strerrorname_np(errno));
        return 1;
      }
      snprintf(folder, sizeof(folder), "case-%d", ++cases);
      if (mkdir(folder, 0755) < 0 || chdir(folder) < 0) {
        printf("%d cannot make %s: %s\n", at, folder, strerrorname_np(errno));
        return 1;
      }
    } else if (split(line, words)) {
      *result = 0;
      obey(words);
      printf("%d %s\n", at, result);
    }
  }
  close_all();
  if (*folder && (chdir("..") < 0 || nftw(folder, remove_entry, 16, FTW_DEPTH | FTW_PHYS) < 0)) return 1;
  return 0;
}
