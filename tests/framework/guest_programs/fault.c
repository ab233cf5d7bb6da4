/* Dies of a fault of its own, which kills even the init of a pid namespace: the first argument says which. */
#include <string.h>

int main(int argc, char **argv) {
  const char *fault = argc > 1 ? argv[1] : "";
  if (strcmp(fault, "memory") == 0) *(volatile int *)0 = 1;
  if (strcmp(fault, "instruction") == 0) __builtin_trap();
  if (strcmp(fault, "arithmetic") == 0) __asm__ volatile("xor %%ecx, %%ecx; div %%ecx" ::: "eax", "ecx", "edx");
  return 1;
}
