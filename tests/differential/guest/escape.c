// SPDX-License-Identifier: Apache-2.0
//
// A hostile root user of a guest tries to reach what lies beside the share on the host.
//
//   escape tries DIR HOST       every single attempt; HOST is the path, on the host, of the folder with the marker
//   escape race DIR SECONDS     walks and writes below DIR/swap, while the host and a child of ours exchange
//                               that folder with a symbolic link that leads outside
//   escape exchange DIR SECONDS only the child's part
//
// DIR is the share. The host has put into it: inner/ (a folder with a file `marker` of its own), swap/ likewise,
// swap-link and out-* (symbolic links to the folder outside or to the marker in it), mounted/ (a mount).
// Prints the beginning of all that it could read; whether it holds the secret, and whether anything outside was
// touched, is for the host to say.

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_fchmodat2
#define SYS_fchmodat2 452 // Linux 6.6
#endif

enum { PATH = 4096, GUESSES = 3000, DEPTH = 12 };

static long reads, opened;

static void show(const char *what, int fd) {
  char text[65] = "";
  if (fd < 0) return;
  opened++;
  ssize_t count = read(fd, text, sizeof(text) - 1);
  if (count > 0) printf("%s: %.*s\n", what, (int)count, text), reads++;
  close(fd);
}

// Everything that one can do to a path by name.
static void use(int folder, const char *path) {
  struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
  char text[PATH];
  show(path, openat(folder, path, O_RDONLY | O_NONBLOCK));
  show(path, openat(folder, path, O_RDWR | O_APPEND | O_NONBLOCK));
  int fd = openat(folder, path, O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK, 0600);
  if (fd >= 0) {
    if (write(fd, "changed", 7) == 7) opened++;
    close(fd);
  }
  // Through a descriptor of the link itself.
  fd = openat(folder, path, O_PATH | O_NOFOLLOW);
  if (fd >= 0) {
    snprintf(text, sizeof(text), "/proc/self/fd/%d", fd);
    show(text, open(text, O_RDONLY | O_NONBLOCK));
    if (truncate(text, 0) < 0) errno = 0;
    if (syscall(SYS_fchmodat2, fd, "", 0777, AT_EMPTY_PATH) < 0) errno = 0;
    close(fd);
  }
  fchmodat(folder, path, 0777, 0);
  if (syscall(SYS_fchmodat2, folder, path, 0777, AT_SYMLINK_NOFOLLOW) < 0) errno = 0;
  if (fchownat(folder, path, 77, 77, 0) < 0 || fchownat(folder, path, 77, 77, AT_SYMLINK_NOFOLLOW) < 0) errno = 0;
  utimensat(folder, path, times, 0);
  utimensat(folder, path, times, AT_SYMLINK_NOFOLLOW);
  setxattr(path, "user.reached", "x", 1, 0);
  lsetxattr(path, "security.reached", "x", 1, 0);
  lsetxattr(path, "trusted.reached", "x", 1, 0);
  linkat(folder, path, AT_FDCWD, "linked", AT_SYMLINK_FOLLOW);
  linkat(folder, path, AT_FDCWD, "linked-itself", 0);
  show("linked", open("linked", O_RDWR | O_NONBLOCK));
  show("linked-itself", open("linked-itself", O_RDWR | O_NONBLOCK));
  unlink("linked"), unlink("linked-itself");
}

static void use_below(int folder, const char *path) {
  static const char *const names[] = {"marker", "../marker", "./marker", ".", "..", "../outside/marker"};
  char text[PATH];
  for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
    snprintf(text, sizeof(text), "%s/%s", path, names[i]);
    use(folder, text);
  }
  snprintf(text, sizeof(text), "%s/made", path);
  mkdirat(folder, text, 0755);
  symlinkat("x", folder, text);
  mknodat(folder, text, S_IFREG | 0600, 0);
  renameat(folder, path, folder, text);
}

static void links(const char *host) {
  static const char *const existing[] = {"out-absolute", "out-relative", "out-marker", "out-root"};
  char text[PATH + 64];
  for (size_t i = 0; i < sizeof(existing) / sizeof(*existing); i++) {
    use(AT_FDCWD, existing[i]);
    use_below(AT_FDCWD, existing[i]);
  }
  const char *targets[] = {host, "../outside", "inner/../../outside", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../outside"};
  for (size_t i = 0; i < sizeof(targets) / sizeof(*targets); i++) {
    unlink("mine");
    if (symlink(targets[i], "mine") < 0) perror("symlink");
    use(AT_FDCWD, "mine");
    use_below(AT_FDCWD, "mine");
    snprintf(text, sizeof(text), "mine%s/marker", host);
    use(AT_FDCWD, text);
  }
  unlink("mine");
}

static void dots(int root) {
  char text[PATH] = "";
  for (int i = 0; i < DEPTH; i++) {
    strcat(text, "../");
    size_t length = strlen(text);
    strcat(text, "outside/marker");
    use(root, text);
    text[length] = 0;
  }
  // A folder that moves up while somebody stands in it.
  mkdir("a", 0755), mkdir("a/b", 0755), mkdir("a/b/c", 0755), mkdir("a/b/c/d", 0755);
  int deep = open("a/b/c/d", O_RDONLY | O_DIRECTORY);
  rename("a/b/c/d", "d");
  use(deep, "../outside/marker");
  use(deep, "../../outside/marker");
  use(deep, "../../../../outside/marker");
  close(deep);
  int gone = open("d", O_RDONLY | O_DIRECTORY);
  rmdir("d");
  use(gone, "../outside/marker");
  use(gone, "..");
  close(gone);
}

static void devices(void) {
  static const int numbers[][2] = {{1, 1}, {1, 2}, {8, 0}, {254, 0}, {253, 0}, {259, 0}, {7, 0}, {10, 229}, {10, 200}};
  for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
    for (int kind = 0; kind < 2; kind++) {
      if (mknod("device", (kind ? S_IFBLK : S_IFCHR) | 0666, makedev(numbers[i][0], numbers[i][1])) < 0) continue;
      int fd = open("device", O_RDWR | O_NONBLOCK);
      struct stat status;
      // What opens is the guest's own device, if it has such a one.
      if (fd >= 0 && (fstat(fd, &status) < 0 || S_ISREG(status.st_mode))) printf("device opened as a file\n");
      if (fd >= 0) close(fd);
      unlink("device");
    }
}

static void handles(int root) {
  union {
    struct file_handle handle;
    char bytes[sizeof(struct file_handle) + MAX_HANDLE_SZ];
  } real, guess;
  int mount, count = 0;
  real.handle.handle_bytes = MAX_HANDLE_SZ;
  if (name_to_handle_at(root, "inner", &real.handle, &mount, 0) < 0) {
    printf("no handles: %s\n", strerrorname_np(errno));
    return;
  }
  for (uint32_t number = 0; number < GUESSES; number++)
    for (uint32_t generation = 0; generation < 3; generation++) {
      uint32_t words[] = {0, number, generation, 0, 1, generation};
      guess = real;
      memcpy(guess.handle.f_handle, words, guess.handle.handle_bytes < sizeof(words) ? guess.handle.handle_bytes : sizeof(words));
      int fd = open_by_handle_at(root, &guess.handle, O_RDONLY | O_NONBLOCK);
      if (fd < 0) continue;
      count++;
      use(fd, "marker");
      use(fd, "../outside/marker");
      use(fd, "../../outside/marker");
      show("handle", fd);
    }
  // One that is real, once the guest has forgotten how it is connected.
  int cache = open("/proc/sys/vm/drop_caches", O_WRONLY);
  if (cache >= 0 && write(cache, "3", 1) == 1) close(cache);
  int fd = open_by_handle_at(root, &real.handle, O_RDONLY | O_DIRECTORY);
  if (fd >= 0) {
    count++;
    use(fd, "../outside/marker");
    use(fd, "../../outside/marker");
    close(fd);
  }
  printf("handles opened: %s\n", count ? "some" : "none");
}

static void tries(const char *host) {
  int root = open(".", O_RDONLY | O_DIRECTORY);
  links(host);
  dots(root);
  use_below(root, "mounted");
  use(root, "mounted/../outside/marker");
  int mounted = open("mounted", O_RDONLY | O_DIRECTORY);
  if (mounted >= 0) {
    use(mounted, "../outside/marker");
    use(mounted, "../../outside/marker");
  }
  devices();
  handles(root);
  printf("tried everything: opened %s\n", opened ? "some" : "none");
}

static time_t end;

static void exchange(void) {
  while (time(NULL) < end)
    if (syscall(SYS_renameat2, AT_FDCWD, "swap", AT_FDCWD, "swap-link", RENAME_EXCHANGE) < 0 && errno != ENOENT) {
      perror("exchange");
      exit(1);
    }
}

static void race(void) {
  struct timespec times[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
  char name[64];
  pid_t child = fork();
  if (child == 0) {
    exchange();
    exit(0);
  }
  for (long round = 0; time(NULL) < end; round++) {
    int folder = open("swap", O_RDONLY | O_DIRECTORY);
    show("race", open("swap/marker", O_RDONLY | O_NONBLOCK));
    if (folder >= 0) {
      show("race", openat(folder, "marker", O_RDONLY | O_NONBLOCK));
      fchmodat(folder, "marker", 0600 + (round & 7), 0);
      utimensat(folder, "marker", times, 0);
      close(folder);
    }
    snprintf(name, sizeof(name), "swap/new-%ld", round % 50);
    int fd = open(name, O_WRONLY | O_CREAT | O_NOFOLLOW, 0600);
    if (fd >= 0) close(fd);
    chmod("swap/marker", 0640 + (round & 7));
    truncate("swap/marker", 20);
    setxattr("swap/marker", "user.raced", "x", 1, 0);
    unlink(name);
    mkdir("swap/folder", 0755), rmdir("swap/folder");
    link("swap/marker", "raced");
    show("raced", open("raced", O_RDONLY | O_NONBLOCK));
    unlink("raced");
    rename("swap/marker", "swap/away"), rename("swap/away", "swap/marker");
    DIR *list = opendir("swap");
    if (list) {
      while (readdir(list)) {}
      closedir(list);
    }
  }
  kill(child, 9);
  wait(NULL);
  printf("raced: read %s\n", reads ? "some" : "none");
}

int main(int count, char **words) {
  if (count != 4 || chdir(words[2]) < 0) return 2;
  setvbuf(stdout, NULL, _IOFBF, 1 << 16);
  end = time(NULL) + atoi(words[3]);
  if (!strcmp(words[1], "tries")) tries(words[3]);
  else if (!strcmp(words[1], "race")) race();
  else exchange();
  return 0;
}
