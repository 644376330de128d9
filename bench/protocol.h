/*
 * The protocol of every measured program in C. It reads numbers of cycles from standard
 * input, one per line, runs that many cycles, and prints one line: the nanoseconds of
 * each cycle, or the negative error number of a failed one.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void serve(int64_t (*cycle)(void)) {
  long count;
  while (scanf("%ld", &count) == 1) {
    int64_t *answers = malloc(count * sizeof *answers);
    for (long i = 0; i < count; i++) answers[i] = cycle();
    /* Printed at the end, because a write would disturb the next cycle. */
    for (long i = 0; i < count; i++) printf("%s%lld", i == 0 ? "" : " ", (long long)answers[i]);
    puts("");
    fflush(stdout);
    free(answers);
  }
}
