/*
 * The system calls of attach() and detach(), in their order, the checks included: what
 * remains between this and the library is the price of JavaScript. bench/calls.ts
 * compares the two under strace.
 *
 *     attach FILE [OFFSET SIZELIMIT BLOCKSIZE FLAGS REFERENCE]
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "protocol.h"

#ifndef BLKGETDISKSEQ
#define BLKGETDISKSEQ _IOR(0x12, 128, __u64)
#endif
#define CACHESTAT 451
#define SECTOR 512

static const char *path;
static struct loop_config wanted;

static int statx_of(int fd, const char *name, int flags, struct statx *stat) {
  return statx(fd, name, flags, STATX_BASIC_STATS, stat);
}

static bool is_file(const struct statx *stat) {
  return S_ISREG(stat->stx_mode) || S_ISBLK(stat->stx_mode);
}

/* The file, opened and examined. */
static int open_backing(bool read_only, struct statx *stat) {
  if (statx_of(AT_FDCWD, path, 0, stat) < 0 || !is_file(stat)) return -1;
  int fd = open(path, (read_only ? O_RDONLY : O_RDWR) | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return -1;
  if (statx_of(fd, "", AT_EMPTY_PATH, stat) < 0 || !is_file(stat)) return -1;
  if (statx_of(fd, "", AT_EMPTY_PATH, stat) < 0 || !is_file(stat)) return -1;
  if (!read_only) {
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals > 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0) return -1;
  }
  return fd;
}

static int open_control(void) {
  struct statx stat;
  if (statx_of(AT_FDCWD, "/dev/loop-control", 0, &stat) < 0 || !S_ISCHR(stat.stx_mode) ||
      stat.stx_rdev_major != 10 || stat.stx_rdev_minor != 237) {
    return -1;
  }
  return open("/dev/loop-control", O_RDWR | O_CLOEXEC);
}

/* The device number that sysfs tells. */
static bool device_number(int minor, unsigned *major_number, unsigned *minor_number) {
  char name[64], text[64];
  snprintf(name, sizeof name, "/sys/devices/virtual/block/loop%d/dev", minor);
  int fd = open(name, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t size = pread(fd, text, sizeof text - 1, 0);
  close(fd);
  if (size <= 0) return false;
  text[size] = 0;
  return sscanf(text, "%u:%u", major_number, minor_number) == 2;
}

static bool is_device(const struct statx *stat, unsigned major_number, unsigned minor_number) {
  return S_ISBLK(stat->stx_mode) && stat->stx_rdev_major == major_number &&
         stat->stx_rdev_minor == minor_number;
}

/* The device, examined before and after it is opened. */
static int open_device(int minor, bool read_only) {
  char node[32];
  struct statx stat;
  unsigned major_number, minor_number;
  snprintf(node, sizeof node, "/dev/loop%d", minor);
  if (statx_of(AT_FDCWD, node, 0, &stat) < 0) return -1;
  if (!device_number(minor, &major_number, &minor_number) ||
      !is_device(&stat, major_number, minor_number)) {
    return -1;
  }
  int fd = open(node, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
  if (fd < 0) return -1;
  if (statx_of(fd, "", AT_EMPTY_PATH, &stat) < 0 ||
      !is_device(&stat, major_number, minor_number)) {
    close(fd);
    return -1;
  }
  return fd;
}

/* Whether the last owner left partitions behind. */
static bool has_partitions(int minor) {
  static char entries[65536];
  char directory[64], prefix[32];
  bool found = false;
  snprintf(directory, sizeof directory, "/sys/devices/virtual/block/loop%d", minor);
  int length = snprintf(prefix, sizeof prefix, "loop%dp", minor);
  int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t size;
  while ((size = getdents64(fd, entries, sizeof entries)) > 0) {
    for (ssize_t at = 0; at < size; at += ((struct dirent64 *)(entries + at))->d_reclen) {
      found |= strncmp(((struct dirent64 *)(entries + at))->d_name, prefix, length) == 0;
    }
  }
  close(fd);
  return found;
}

/* Whether the device is what was wanted. */
static bool verify(int fd, const struct statx *backing) {
  struct loop_info64 info;
  int read_only, block_size;
  uint64_t size, sequence;
  if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0 || ioctl(fd, BLKROGET, &read_only) < 0 ||
      ioctl(fd, BLKSSZGET, &block_size) < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0 ||
      ioctl(fd, BLKGETDISKSEQ, &sequence) < 0) {
    return false;
  }
  uint64_t room = backing->stx_size - wanted.info.lo_offset;
  if (wanted.info.lo_sizelimit != 0 && wanted.info.lo_sizelimit < room) {
    room = wanted.info.lo_sizelimit;
  }
  return info.lo_device == makedev(backing->stx_dev_major, backing->stx_dev_minor) &&
         info.lo_inode == backing->stx_ino && info.lo_offset == wanted.info.lo_offset &&
         info.lo_sizelimit == wanted.info.lo_sizelimit &&
         info.lo_flags == wanted.info.lo_flags &&
         memcmp(info.lo_file_name, wanted.info.lo_file_name, LO_NAME_SIZE) == 0 &&
         read_only == ((wanted.info.lo_flags & LO_FLAGS_READ_ONLY) != 0) &&
         (wanted.block_size == 0 || (int)wanted.block_size == block_size) &&
         size == (room & ~(uint64_t)(SECTOR - 1));
}

/* The device and its number, or a negative error number. */
static int attach(int *minor) {
  bool read_only = (wanted.info.lo_flags & LO_FLAGS_READ_ONLY) != 0;
  struct statx stat;
  int backing = open_backing(read_only, &stat);
  if (backing < 0) return -errno;
  int control = open_control();
  if (control < 0) return -errno;
  int fd = -1;
  for (int tries = 0; fd < 0 && tries < 64; tries++) {
    *minor = ioctl(control, LOOP_CTL_GET_FREE);
    if (*minor < 0) break;
    fd = open_device(*minor, read_only);
    if (fd < 0) continue;
    struct loop_config config = wanted;
    config.fd = backing;
    if (has_partitions(*minor) || ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
      close(fd);
      fd = -1;
    }
  }
  int error = errno;
  close(control);
  if (fd >= 0 && !verify(fd, &stat)) {
    close(fd);
    fd = -1;
    error = EIO;
  }
  close(backing);
  return fd < 0 ? -error : fd;
}

static int detach(int fd, int minor) {
  uint64_t range[2] = {0}, pages[5], sequence;
  struct loop_info64 info;
  struct statx stat;
  char name[64];
  if (syscall(CACHESTAT, fd, range, pages, 0) < 0) return -errno;
  if (ioctl(fd, BLKGETDISKSEQ, &sequence) < 0) return -errno;
  if (sync_file_range(fd, 0, 0, 7) < 0) return -errno;
  if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0) return -errno;
  close(fd);
  snprintf(name, sizeof name, "/sys/devices/virtual/block/loop%d/loop", minor);
  /* Somebody else may have been given the device already: then it was free. */
  if (statx_of(AT_FDCWD, name, 0, &stat) < 0) statx_of(AT_FDCWD, "/sys/dev/block", 0, &stat);
  return 0;
}

static int64_t cycle(void) {
  int64_t start = now();
  int minor;
  int fd = attach(&minor);
  if (fd < 0) return fd;
  int result = detach(fd, minor);
  return result < 0 ? result : now() - start;
}

int main(int count, char **arguments) {
  path = arguments[1];
  wanted.info.lo_flags = LO_FLAGS_AUTOCLEAR;
  if (count == 7) {
    wanted.info.lo_offset = strtoull(arguments[2], NULL, 10);
    wanted.info.lo_sizelimit = strtoull(arguments[3], NULL, 10);
    wanted.block_size = strtoul(arguments[4], NULL, 10);
    wanted.info.lo_flags |= strtoul(arguments[5], NULL, 10);
    memccpy(wanted.info.lo_file_name, arguments[6], 0, LO_NAME_SIZE);
  }
  serve(cycle);
}
