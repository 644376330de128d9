/*
 * Makes only the system calls that the rules of loopdev require to attach and detach a
 * file, so that the remaining difference is the cost of JavaScript. Comments name the
 * rule that requires each call. bench/calls.ts compares the two under strace.
 *
 *     attach FILE lock|allow [OFFSET SIZELIMIT BLOCKSIZE FLAGS REFERENCE]
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/major.h>
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
#define MAX_MINORS 4096

static const char *path;
static bool locks;
static struct loop_config wanted;

/* Identity of a vacant device: the inode of its directory in sysfs, and its link count. */
static struct { uint64_t inode; uint32_t links; } vacant[MAX_MINORS];

static int statx_of(int fd, const char *name, int flags, struct statx *stat) {
  return statx(fd, name, flags, STATX_BASIC_STATS, stat);
}

static bool is_file(const struct statx *stat) {
  return S_ISREG(stat->stx_mode) || S_ISBLK(stat->stx_mode);
}

static bool is_read_only(void) { return (wanted.info.lo_flags & LO_FLAGS_READ_ONLY) != 0; }

/*
 * Opens the file of a name after examining it. A FIFO would hang, a tape would be wound,
 * and the name may lead elsewhere a moment later (constructor of Loop, openFile).
 */
static int open_examined(const char *name, bool (*is_wanted)(const struct statx *), int flags) {
  struct statx stat;
  char found[32];
  int fd = -1, held = open(name, O_PATH | O_CLOEXEC);
  if (held < 0) return -1;
  if (statx_of(held, "", AT_EMPTY_PATH, &stat) == 0 && is_wanted(&stat)) {
    snprintf(found, sizeof found, "/proc/self/fd/%d", held);
    fd = open(found, (is_read_only() ? O_RDONLY : O_RDWR) | flags | O_CLOEXEC);
  }
  close(held);
  return fd;
}

/* Opens, examines and locks the file. */
static int open_backing(struct statx *stat) {
  int fd = open_examined(path, is_file, O_NOCTTY | O_NONBLOCK);
  if (fd < 0) return -1;
  /* Rule 3: opening for writing on an overlayfs replaces the file by a copy. */
  if (statx_of(fd, "", AT_EMPTY_PATH, stat) < 0) return -1;
  /* Overlap: locks the file description that will be bound. */
  struct flock lock = {.l_type = is_read_only() ? F_RDLCK : F_WRLCK,
                       .l_start = wanted.info.lo_offset,
                       .l_len = wanted.info.lo_sizelimit};
  for (int tries = 1; locks && fcntl(fd, F_OFD_SETLK, &lock) < 0; tries++) {
    if (errno != EAGAIN || tries >= 100) return -1;
    usleep(5000); /* the device of the last cycle is still being freed */
  }
  return fd;
}

/* Opens loop-control and verifies it: another driver would interpret the ioctl differently. */
static int open_control(void) {
  struct statx stat;
  int fd = open("/dev/loop-control", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 || statx_of(fd, "", AT_EMPTY_PATH, &stat) < 0 || !S_ISCHR(stat.stx_mode) ||
      stat.stx_rdev_major != 10 || stat.stx_rdev_minor != 237) {
    return -1;
  }
  return fd;
}

static int wanted_minor;
static bool is_device(const struct statx *stat) {
  return S_ISBLK(stat->stx_mode) && stat->stx_rdev_major == LOOP_MAJOR &&
         stat->stx_rdev_minor == (unsigned)wanted_minor;
}

static int open_device(int minor) {
  char node[32];
  wanted_minor = minor;
  snprintf(node, sizeof node, "/dev/loop%d", minor);
  return open_examined(node, is_device, 0);
}

/* Checks that the device has no file and no leftover partitions (rule 3), or is free (rule 5). */
static bool is_vacant(int minor) {
  struct statx stat;
  char directory[64];
  snprintf(directory, sizeof directory, "/sys/devices/virtual/block/loop%d", minor);
  if (statx_of(AT_FDCWD, directory, 0, &stat) < 0) return false;
  if (vacant[minor].inode != stat.stx_ino) { /* the first check, before any cycle */
    vacant[minor].inode = stat.stx_ino;
    vacant[minor].links = stat.stx_nlink;
  }
  return vacant[minor].links == stat.stx_nlink;
}

/* Verifies that the device is as requested (rule 3). */
static bool verify(int fd, const struct statx *backing, uint64_t *sequence) {
  struct loop_info64 info;
  int read_only, block_size, cache_block_size = SECTOR;
  uint64_t size;
  if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0 || ioctl(fd, BLKROGET, &read_only) < 0 ||
      ioctl(fd, BLKSSZGET, &block_size) < 0 || ioctl(fd, BLKGETSIZE64, &size) < 0) {
    return false;
  }
  /* The page cache may use smaller blocks. */
  if (block_size > SECTOR && ioctl(fd, BLKBSZGET, &cache_block_size) < 0) return false;
  /* Rule 2: identifies the binding once the descriptor is closed. */
  if (ioctl(fd, BLKGETDISKSEQ, sequence) < 0) return false;
  uint64_t room = backing->stx_size - wanted.info.lo_offset;
  if (wanted.info.lo_sizelimit != 0 && wanted.info.lo_sizelimit < room) {
    room = wanted.info.lo_sizelimit;
  }
  return info.lo_device == makedev(backing->stx_dev_major, backing->stx_dev_minor) &&
         info.lo_inode == backing->stx_ino && info.lo_offset == wanted.info.lo_offset &&
         info.lo_sizelimit == wanted.info.lo_sizelimit &&
         info.lo_flags == wanted.info.lo_flags &&
         memcmp(info.lo_file_name, wanted.info.lo_file_name, LO_NAME_SIZE) == 0 &&
         read_only == is_read_only() && cache_block_size >= block_size &&
         (wanted.block_size == 0 || (int)wanted.block_size == block_size) &&
         size == (room & ~(uint64_t)(SECTOR - 1));
}

struct device {
  int fd, backing, minor;
};

/* Returns the device or a negative error number. */
static int attach(struct device *device) {
  struct statx stat;
  uint64_t sequence;
  int backing = open_backing(&stat);
  if (backing < 0) return -errno;
  int control = open_control();
  if (control < 0) return -errno;
  int fd = -1;
  for (int tries = 0; fd < 0 && tries < 64; tries++) {
    device->minor = ioctl(control, LOOP_CTL_GET_FREE);
    if (device->minor < 0) break;
    fd = open_device(device->minor);
    if (fd < 0) continue;
    struct loop_config config = wanted;
    config.fd = backing;
    if (!is_vacant(device->minor) || ioctl(fd, LOOP_CONFIGURE, &config) < 0) {
      close(fd);
      fd = -1;
      if (tries >= 3) usleep(1000 + random() % 4000); /* rule 6 */
    }
  }
  int error = errno;
  close(control);
  if (fd >= 0 && !verify(fd, &stat, &sequence)) {
    close(fd);
    fd = -1;
    error = EIO;
  }
  /* The lock lasts as long as the binding; its descriptor can move it. */
  device->backing = locks ? backing : -1;
  if (!locks || fd < 0) close(backing);
  device->fd = fd;
  return fd < 0 ? -error : 0;
}

static int detach(const struct device *device) {
  uint64_t range[2] = {0}, pages[5], sequence;
  struct loop_info64 info;
  struct statx stat;
  char name[64];
  int fd = device->fd;
  /* Rule 4: large amounts are written back on another thread. */
  if (syscall(CACHESTAT, fd, range, pages, 0) < 0) return -errno;
  /* Rule 1: reports errors. */
  if (sync_file_range(fd, 0, 0, 7) < 0) return -errno;
  /* Rule 1: another process may have turned autoclear off. */
  if (ioctl(fd, LOOP_GET_STATUS64, &info) < 0) return -errno;
  if (is_read_only()) {
    /* Rule 5: another process may have exchanged the file; the directory identifies the binding. */
    snprintf(name, sizeof name, "/sys/devices/virtual/block/loop%d/loop", device->minor);
    if (ioctl(fd, BLKGETDISKSEQ, &sequence) < 0) return -errno;
    if (statx_of(AT_FDCWD, name, 0, &stat) < 0) return -errno;
  }
  close(fd);
  if (device->backing >= 0) close(device->backing);
  is_vacant(device->minor); /* if not, another process already has it */
  return 0;
}

static int64_t cycle(void) {
  int64_t start = now();
  struct device device;
  int result = attach(&device);
  if (result < 0) return result;
  result = detach(&device);
  return result < 0 ? result : now() - start;
}

int main(int count, char **arguments) {
  path = arguments[1];
  locks = strcmp(arguments[2], "lock") == 0;
  wanted.info.lo_flags = LO_FLAGS_AUTOCLEAR;
  if (count == 8) {
    wanted.info.lo_offset = strtoull(arguments[3], NULL, 10);
    wanted.info.lo_sizelimit = strtoull(arguments[4], NULL, 10);
    wanted.block_size = strtoul(arguments[5], NULL, 10);
    wanted.info.lo_flags |= strtoul(arguments[6], NULL, 10);
    memccpy(wanted.info.lo_file_name, arguments[7], 0, LO_NAME_SIZE);
  }
  serve(cycle);
}
