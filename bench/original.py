"""The calls of the original: set_fd, set_status, clear_fd, with fcntl.ioctl.

    original.py FILE            attach and detach, over and over
    original.py FILE --status   attach once, and read the status over and over
"""

import errno
import fcntl
import os
import struct
import sys
import time

LOOP_SET_FD = 0x4C00
LOOP_CLR_FD = 0x4C01
LOOP_SET_STATUS64 = 0x4C04
LOOP_GET_STATUS64 = 0x4C05
LOOP_CTL_GET_FREE = 0x4C82
# struct loop_info64
INFO = struct.Struct("=5Q4I64s64s32s2Q")


def get_status(loop):
    return INFO.unpack(fcntl.ioctl(loop, LOOP_GET_STATUS64, bytes(INFO.size)))


def set_status(loop, name):
    status = list(get_status(loop))
    status[9] = name
    fcntl.ioctl(loop, LOOP_SET_STATUS64, INFO.pack(*status))


def attach(path):
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        minor = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        loop = os.open(f"/dev/loop{minor}", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(loop, LOOP_SET_FD, backing)
        except OSError:
            os.close(loop)
            raise
    finally:
        os.close(backing)
    try:
        set_status(loop, os.fsencode(path)[:63])
    except OSError:
        detach(loop)
        raise
    return loop


def detach(loop):
    try:
        fcntl.ioctl(loop, LOOP_CLR_FD)
    finally:
        os.close(loop)


def cycle(path):
    start = time.perf_counter_ns()
    try:
        detach(attach(path))
    except OSError as error:
        return -(error.errno or errno.EIO)
    return time.perf_counter_ns() - start


STATUS_CALLS = 100


def status(loop):
    start = time.perf_counter_ns()
    for _ in range(STATUS_CALLS):
        get_status(loop)
    return (time.perf_counter_ns() - start) // STATUS_CALLS


def main():
    path = sys.argv[1]
    loop = attach(path) if "--status" in sys.argv else None
    for line in sys.stdin:
        answers = [
            cycle(path) if loop is None else status(loop) for _ in range(int(line))
        ]
        print(*answers, flush=True)
    if loop is not None:
        detach(loop)


main()
