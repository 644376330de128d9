/*
 * Attaches and detaches with losetup, in one process each, like a script, but without
 * the cost of a shell.
 *
 *     losetup FILE [OPTION...]             the first free device
 *     losetup FILE --devices DEVICE...     all of these, then detaches them
 */
#define _GNU_SOURCE
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "protocol.h"

extern char **environ;

static char *attach[32] = {"losetup", "--find", "--show"};
static char **devices;
static char *file;

/* Runs a program and stores its output in `output`. */
static int run(char **arguments, char *output, size_t room) {
  int ends[2];
  pid_t child;
  int status;
  if (pipe(ends) < 0) return -1;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_addclose(&actions, ends[0]);
  posix_spawn_file_actions_addclose(&actions, ends[1]);
  posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
  int failed = posix_spawnp(&child, arguments[0], &actions, NULL, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(ends[1]);
  size_t used = 0;
  ssize_t size;
  while (used + 1 < room && (size = read(ends[0], output + used, room - 1 - used)) > 0) used += size;
  output[used] = 0;
  close(ends[0]);
  if (failed || waitpid(child, &status, 0) < 0) return -1;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static int64_t detach(char *device) {
  char output[256];
  char *arguments[] = {"losetup", "--detach", device, NULL};
  return run(arguments, output, sizeof output);
}

static int64_t one(void) {
  char device[256];
  int64_t start = now();
  if (run(attach, device, sizeof device) < 0) return -1;
  device[strcspn(device, "\n")] = 0;
  if (detach(device) < 0) return -1;
  return now() - start;
}

static int64_t all(void) {
  char output[256];
  int64_t start = now();
  long count = 0;
  for (char **device = devices; *device != NULL; device++, count++) {
    char *arguments[] = {"losetup", *device, file, NULL};
    if (run(arguments, output, sizeof output) < 0) return -1;
  }
  for (char **device = devices; *device != NULL; device++) {
    if (detach(*device) < 0) return -1;
  }
  return (now() - start) / count;
}

int main(int count, char **arguments) {
  file = arguments[1];
  if (count > 2 && strcmp(arguments[2], "--devices") == 0) {
    devices = arguments + 3;
    serve(all);
    return 0;
  }
  int at = 3;
  for (int i = 2; i < count && at < 30; i++) attach[at++] = arguments[i];
  attach[at] = file;
  serve(one);
}
