/*
 * Reads the same files as list(), in the same order: eleven files of sysfs for each
 * attached device, all of one binding (rule 2: detaching a row must not detach another).
 *
 *     list
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "protocol.h"

#define BLOCK "/sys/devices/virtual/block"
#define MAX_MINORS 4096

static const char *const names[] = {"offset", "sizelimit", "autoclear", "partscan", "dio",
                                    "../size", "../ro", "../queue/logical_block_size",
                                    "backing_file"};
static char text[65536];

static ssize_t read_attribute(int directory, const char *name) {
  int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t size = pread(fd, text, sizeof text, 0);
  close(fd);
  return size;
}

/* Returns whether a file is attached and everything could be read. */
static int read_device(int minor) {
  char path[64], before[32], after[32];
  snprintf(path, sizeof path, BLOCK "/loop%d/loop", minor);
  int directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (directory < 0) return 0;
  int sequence = openat(directory, "../diskseq", O_RDONLY | O_CLOEXEC);
  ssize_t size = pread(sequence, before, sizeof before, 0);
  int found = size > 0;
  for (size_t at = 0; at < sizeof names / sizeof *names; at++) {
    found &= read_attribute(directory, names[at]) > 0;
  }
  found &= pread(sequence, after, sizeof after, 0) == size && memcmp(before, after, size) == 0;
  close(sequence);
  close(directory);
  return found;
}

static int64_t cycle(void) {
  int64_t start = now();
  int minors[MAX_MINORS], count = 0, minor;
  DIR *block = opendir(BLOCK);
  if (block == NULL) return -1;
  for (struct dirent *entry; (entry = readdir(block)) != NULL && count < MAX_MINORS;) {
    if (sscanf(entry->d_name, "loop%d", &minor) == 1) minors[count++] = minor;
  }
  closedir(block);
  int found = 0;
  while (count > 0) found += read_device(minors[--count]);
  return found < 0 ? -1 : now() - start;
}

int main(void) { serve(cycle); }
