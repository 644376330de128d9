/*
 * Measures the time of programs run one after the other, from the start of the first to
 * the end of the last, without the cost of a shell:
 *
 *     run PROGRAM [ARGUMENT...] [--then PROGRAM [ARGUMENT...]]...
 */
#define _GNU_SOURCE
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "protocol.h"

extern char **environ;

#define MAX_PROGRAMS 8

static char **programs[MAX_PROGRAMS];
static int program_count;

static int run(char **program) {
  pid_t child;
  int status;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", 0, 0);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", 1, 0);
  int failed = posix_spawnp(&child, program[0], &actions, NULL, program, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed || waitpid(child, &status, 0) < 0) return -1;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -1;
}

static int64_t cycle(void) {
  int64_t start = now();
  for (int index = 0; index < program_count; index++) {
    if (run(programs[index]) < 0) return -1;
  }
  return now() - start;
}

int main(int count, char **arguments) {
  programs[program_count++] = arguments + 1;
  for (int index = 1; index < count; index++) {
    if (strcmp(arguments[index], "--then") != 0) continue;
    arguments[index] = NULL;
    if (program_count < MAX_PROGRAMS) programs[program_count++] = arguments + index + 1;
  }
  serve(cycle);
}
