// SPDX-License-Identifier: Apache-2.0
//
// PID 1 of the VM tests: obeys one-line commands from the console and answers each with one line that
// begins with "=> ". Knows just what the tests need; a guest of Strato's own runs strato-agent instead.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { SYSLOG_ACTION_READ_ALL = 3 };  // include/linux/syslog.h of the kernel

static void answer(const char *text) { printf("=> %s\n", text); }

static void outcome(int result) { answer(result < 0 ? strerror(errno) : "ok"); }

static void cat(const char *path) {
  char data[4096];
  int fd = open(path, O_RDONLY);
  ssize_t count = fd < 0 ? -1 : read(fd, data, sizeof(data) - 1);
  if (count < 0) {
    outcome(-1);
  } else {
    data[count] = 0;
    for (char *at = data; *at; at++)
      if (*at == '\n') *at = ' ';
    answer(data);
  }
  if (fd >= 0) close(fd);
}

// Waits for up to ten seconds until a file begins with a text.
static void wait_until(const char *path, const char *text) {
  for (int i = 0; i < 1000; i++) {
    char data[64] = "";
    int fd = open(path, O_RDONLY);
    if (fd >= 0) {
      if (read(fd, data, sizeof(data) - 1) < 0) data[0] = 0;
      close(fd);
    }
    if (!strncmp(data, text, strlen(text))) return answer("ok");
    usleep(10000);
  }
  answer("did not come");
}

static void interface_up(const char *name) {
  struct ifreq request = {.ifr_flags = IFF_UP};
  int control = socket(AF_INET, SOCK_DGRAM, 0);
  strncpy(request.ifr_name, name, sizeof(request.ifr_name) - 1);
  outcome(ioctl(control, SIOCSIFFLAGS, &request));
  close(control);
}

static void store(const char *path, const char *text) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  outcome(fd < 0 ? -1 : (int)write(fd, text, strlen(text)));
  if (fd >= 0) close(fd);
}

static void list(const char *path) {
  char names[4096] = "";
  DIR *folder = opendir(path);
  if (!folder) return outcome(-1);
  for (struct dirent *entry; (entry = readdir(folder));)
    if (entry->d_name[0] != '.' && strlen(names) + strlen(entry->d_name) + 2 < sizeof(names)) {
      strcat(names, entry->d_name);
      strcat(names, " ");
    }
  closedir(folder);
  answer(names);
}

// A port for what programs print, if there is one: a console drops what its reader is too slow for.
static FILE *output_port(void) {
  char path[320], name[32] = "";
  DIR *ports = opendir("/sys/class/virtio-ports");
  if (!ports) return NULL;
  for (struct dirent *port; (port = readdir(ports)) && strcmp(name, "output\n");) {
    snprintf(path, sizeof(path), "/sys/class/virtio-ports/%s/name", port->d_name);
    FILE *file = fopen(path, "r");
    if (file && !fgets(name, sizeof(name), file)) *name = 0;
    if (file) fclose(file);
    snprintf(path, sizeof(path), "/dev/%s", port->d_name);
  }
  closedir(ports);
  return strcmp(name, "output\n") ? NULL : fopen(path, "w");
}

// Runs a program with its words separated by blanks. What it prints comes before the answer.
static void run(char *program, char *rest) {
  enum { MAX_WORDS = 32 };
  char *words[MAX_WORDS] = {program};
  int status;
  static FILE *output;
  if (!output && !(output = output_port())) output = stdout;
  for (int count = 1; count < MAX_WORDS - 1 && (words[count] = strtok(count > 1 ? NULL : rest, " ")); count++) {}
  pid_t child = fork();
  if (child == 0) {
    dup2(fileno(output), 1);
    dup2(fileno(output), 2);
    execv(program, words);
    perror(program);
    _exit(127);
  }
  while (waitpid(child, &status, 0) != child) {}
  // A program that was killed in the middle of a line must not hide the answer.
  fprintf(output, "%s=> exit %d\n", WIFSIGNALED(status) ? "\n" : "", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
  fflush(output);
}

static void load(const char *path) {
  int fd = open(path, O_RDONLY);
  outcome(fd < 0 ? -1 : (int)syscall(SYS_finit_module, fd, "", 0));
  if (fd >= 0) close(fd);
}

static struct sockaddr_vm vsock_address(unsigned cid, unsigned port) {
  struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
  return address;
}

// Sends back what comes; with messages, each read and each write is one.
static void echo(int peer) {
  char data[65536];
  for (ssize_t count; (count = read(peer, data, sizeof(data))) > 0;)
    for (ssize_t done = 0, now; done < count; done += now)
      if ((now = write(peer, data + done, count - done)) < 0) break;
  close(peer);
}

static void vsock_echo(unsigned port, int type) {
  struct sockaddr_vm address = vsock_address(VMADDR_CID_ANY, port);
  int listener = socket(AF_VSOCK, type, 0);
  if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 4) < 0)
    return outcome(-1);
  if (fork() == 0)
    for (;;) echo(accept(listener, NULL, NULL));
  close(listener);
  answer("ok");
}

// Connects to the host with messages, sends one, and then echoes.
static void vsock_message(unsigned port, size_t size) {
  struct sockaddr_vm address = vsock_address(VMADDR_CID_HOST, port);
  int peer = socket(AF_VSOCK, SOCK_SEQPACKET, 0);
  char *data = malloc(size);
  memset(data, 'm', size);
  int result = connect(peer, (struct sockaddr *)&address, sizeof(address));
  if (result == 0) result = (int)send(peer, data, size, MSG_NOSIGNAL);
  outcome(result);
  free(data);
  if (result >= 0 && fork() == 0) {
    echo(peer);
    _exit(0);
  }
  close(peer);
}

static void vsock_say(unsigned port, const char *text) {
  struct sockaddr_vm address = vsock_address(VMADDR_CID_HOST, port);
  int peer = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (connect(peer, (struct sockaddr *)&address, sizeof(address)) < 0) return outcome(-1);
  outcome((int)write(peer, text, strlen(text)));
  close(peer);
}

// The kernel's tiny power button sends this signal to PID 1 (CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL).
enum { POWER_BUTTON_SIGNAL = 38 };

static void power_button(int number) {
  (void)number;
  reboot(RB_POWER_OFF);
}

static void now(void) {
  struct timespec time;
  char text[64];
  clock_gettime(CLOCK_REALTIME, &time);
  snprintf(text, sizeof(text), "%lld.%09ld", (long long)time.tv_sec, time.tv_nsec);
  answer(text);
}

static int held_file = -1;

static void hold(const char *path) { outcome(held_file = open(path, O_RDONLY)); }

static void held(void) {
  char byte;
  outcome((int)pread(held_file, &byte, 1, 0));
}

// Answers with the first line of the kernel's log that holds the text.
static void logged(const char *text) {
  static char log[1 << 20];
  int size = klogctl(SYSLOG_ACTION_READ_ALL, log, sizeof(log) - 1);
  log[size > 0 ? size : 0] = 0;
  char *line = strtok(log, "\n");
  while (line && !strstr(line, text)) line = strtok(NULL, "\n");
  answer(line ? line : "not logged");
}

static void obey(char *line) {
  char *verb = strtok(line, " "), *first = strtok(NULL, " "), *rest = strtok(NULL, "");
  if (!verb) return;
  if (!first) first = "";
  if (!rest) rest = "";
  if (!strcmp(verb, "poweroff")) reboot(RB_POWER_OFF);
  else if (!strcmp(verb, "reset")) reboot(RB_AUTOBOOT);
  else if (!strcmp(verb, "panic")) exit(1);
  else if (!strcmp(verb, "echo")) answer(first);
  else if (!strcmp(verb, "cat")) cat(first);
  else if (!strcmp(verb, "store")) store(first, rest);
  else if (!strcmp(verb, "list")) list(first);
  else if (!strcmp(verb, "hold")) hold(first);
  else if (!strcmp(verb, "held")) held();
  else if (!strcmp(verb, "wait")) wait_until(first, rest);
  else if (!strcmp(verb, "up")) interface_up(first);
  else if (!strcmp(verb, "now")) now();
  else if (!strcmp(verb, "logged")) logged(first);
  else if (!strcmp(verb, "run")) run(first, rest);
  else if (!strcmp(verb, "load")) load(first);
  else if (!strcmp(verb, "mount")) outcome((mkdir(rest, 0755), mount(first, rest, "virtiofs", 0, NULL)));
  else if (!strcmp(verb, "unmount")) outcome(umount(first));
  else if (!strcmp(verb, "flood")) { for (int i = atoi(first); i > 0; i--) printf("flood %d\n", i); answer("ok"); }
  else if (!strcmp(verb, "vsock-echo")) vsock_echo(atoi(first), strcmp(rest, "messages") ? SOCK_STREAM : SOCK_SEQPACKET);
  else if (!strcmp(verb, "vsock-message")) vsock_message(atoi(first), strtoul(rest, NULL, 0));
  else if (!strcmp(verb, "vsock-say")) vsock_say(atoi(first), rest);
  else answer("unknown command");
}

int main(int count, char **arguments) {
  char line[4096];
  struct termios terminal;
  mkdir("/proc", 0755);
  mkdir("/sys", 0755);
  mkdir("/dev", 0755);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("sysfs", "/sys", "sysfs", 0, NULL);
  mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
  if (tcgetattr(0, &terminal) == 0) {
    terminal.c_lflag &= ~(tcflag_t)ECHO;
    tcsetattr(0, TCSANOW, &terminal);
  }
  signal(POWER_BUTTON_SIGNAL, power_button);
  setvbuf(stdout, NULL, _IOLBF, 0);
  answer("ready");
  // What follows " -- " on the kernel's command line is obeyed at once, a word being a command.
  for (int i = 1; i < count; i++) obey(arguments[i]);
  while (fgets(line, sizeof(line), stdin)) {
    line[strcspn(line, "\n")] = 0;
    obey(line);
  }
  for (;;) pause();
}
