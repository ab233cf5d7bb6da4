/* PID 1 of a guest that says one line on the console and then nothing to anybody. */
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

int main(void)
{
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/hvc0", O_WRONLY | O_CLOEXEC);
    if (console >= 0)
        dprintf(console, "idle init is here\n");
    for (;;)
        pause();
}
