/* Answers every line of input with a running number and the wall clock: the guest's side of the clock test. */
#include <stdio.h>
#include <time.h>

int main(void)
{
    char line[64];
    for (int number = 1; fgets(line, sizeof line, stdin); number++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        printf("%d %lld.%09ld done-%d\n", number, (long long)now.tv_sec, now.tv_nsec, number);
        fflush(stdout);
    }
    return 0;
}
