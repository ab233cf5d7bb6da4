// SPDX-License-Identifier: Apache-2.0
//
// What script.c and its tables of calls share.

#ifndef STRATO_SCRIPT_H
#define STRATO_SCRIPT_H

#include <stddef.h>

enum { MAX_WORDS = 24, MAX_SLOTS = 16 };

struct call {
  const char *name;
  void (*make)(char **words); // words end with NULL, several of them
};

extern const struct call calls[];      // on names: script_names.c
extern const struct call data_calls[]; // on open files: script_files.c

// Adds to the result of the present line.
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
// Adds a call's value, or the errno of a failed one.
void say_outcome(long value);
long number(const char *text);
// The value of "A|B|0100" by a table of names that ends with NULL.
struct name {
  const char *text;
  long value;
};
long flags(const struct name *table, char *text);
int slot(const char *word);
void close_all(void);
struct stat;
void say_status(const struct stat *status);

#endif
