// SPDX-License-Identifier: Apache-2.0
//
// PID 1 of a measured boot: says that user space was reached, shows the kernel's log when its first argument
// is "log", and restarts the machine. Statically linked, no other file in its image.

#include <string.h>
#include <sys/klog.h>
#include <sys/reboot.h>
#include <unistd.h>

#define READ_ALL 3  // SYSLOG_ACTION_READ_ALL, include/linux/syslog.h of the kernel

static char buffer[4 << 20];

static void show(const char *text, size_t size) {
  while (size > 0) {
    ssize_t written = write(STDOUT_FILENO, text, size);
    if (written <= 0) break;
    text += written;
    size -= (size_t)written;
  }
}

int main(int count, char **arguments) {
  if (count > 1 && strcmp(arguments[1], "log") == 0) {
    int size = klogctl(READ_ALL, buffer, sizeof(buffer));
    if (size > 0) show(buffer, (size_t)size);
  }
  show("user space reached\n", 19);
  reboot(RB_AUTOBOOT);
  return 1;
}
