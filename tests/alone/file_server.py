"""A file server (FUSE) with one file, "disk.img", mounted on argv[1].

The file has 1 MiB of zeros. With argv[2] it has the content of that file, and each read
takes a while, and then waits for SIGCONT: it fails if none arrives, or if the text
"<bad sector>" is in the bytes. After SIGUSR1 the
server answers nothing any more; after SIGUSR2 every request times out. With argv[3],
not reading but closing takes a while; if it fails, reading fails from then on. With the
user ID in OWNER, only that user may use the files.
"""

import ctypes
import errno
import os
import signal
import struct
import sys
import time

LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE, FSYNC, FLUSH = (
    1, 2, 3, 14, 15, 17, 18, 20, 25)
INIT, OPENDIR, READDIR, RELEASEDIR, UNLINK, BATCH_FORGET = 26, 27, 28, 29, 10, 42
ROOT, FILE = 1, 2
DIRECT_IO = 1  # the kernel caches nothing that was read
NO_FLUSH = 1 << 5  # the kernel does not wait for an answer on closing
FLAGS = DIRECT_IO | NO_FLUSH
IS_SLOW = len(sys.argv) == 3
IS_SLOW_TO_CLOSE = len(sys.argv) > 3
CONTENT = open(sys.argv[2], "rb").read() if len(sys.argv) > 2 else bytes(1 << 20)
SIZE = len(CONTENT)

mode = "answer"
beats = 0
has_failed = False


def become(name):
    def handler(*_):
        global mode
        mode = name
    return handler


def beat(*_):
    global beats
    beats += 1


def has_beaten():
    """Takes a while. True if the reader's event loop runs beside the read, as SIGCONT tells."""
    time.sleep(0.03)
    before = beats
    end = time.monotonic() + 3
    while beats < before + 2 and time.monotonic() < end:
        time.sleep(0.001)
    return beats >= before + 2


def attributes(node):
    is_file = node == FILE
    return struct.pack(
        "<6Q10I", node, SIZE if is_file else 0, SIZE // 512, 0, 0, 0, 0, 0, 0,
        0o100666 if is_file else 0o40755, 1, 0, 0, 0, 4096, 0)


def answer(operation, node, body):
    """The body of the answer, or an error number."""
    global has_failed
    if operation == INIT:
        return struct.pack("<4I2H2I2HI", 7, 31, 65536, 0, 16, 12, 65536, 1, 0, 0, 0) + bytes(24)
    if mode == "time out":
        return errno.ETIMEDOUT
    if operation == LOOKUP:
        # Nothing may be cached: each look asks again.
        if body.split(b"\0")[0] in (b"disk.img", b"disk.img (deleted)"):
            return struct.pack("<4Q2I", FILE, 0, 0, 0, 0, 0) + attributes(FILE)
        return errno.ENOENT
    if operation == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
    if operation in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 0, FLAGS if IS_SLOW and operation == OPEN else 0, 0)
    if operation == FLUSH and IS_SLOW_TO_CLOSE and not has_beaten():
        has_failed = True
    if operation == READ:
        if has_failed or (IS_SLOW and not has_beaten()):
            return errno.EIO
        _, offset, length = struct.unpack_from("<2QI", body)
        content = CONTENT[offset:offset + length]
        return errno.EIO if IS_SLOW and b"<bad sector>" in content else content
    if operation in (RELEASE, RELEASEDIR, FLUSH, FSYNC, UNLINK):
        return b""
    return errno.ENOSYS


def main():
    signal.signal(signal.SIGUSR1, become("be silent"))
    signal.signal(signal.SIGUSR2, become("time out"))
    signal.signal(signal.SIGCONT, beat)
    device = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    owner = int(os.environ.get("OWNER", 0))
    options = b"fd=%d,rootmode=40000,user_id=%d,group_id=0" % (device, owner)
    if owner == 0:
        options += b",allow_other"
    if libc.mount(b"loopdev-test", sys.argv[1].encode(), b"fuse", 0, options):
        sys.exit("cannot mount: " + os.strerror(ctypes.get_errno()))
    os.write(1, b"ready\n")  # at once: the reader goes away
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError:
            return  # unmounted
        _, operation, unique, node = struct.unpack_from("<2I2Q", request)
        if operation in (FORGET, BATCH_FORGET) or mode == "be silent":
            continue
        result = answer(operation, node, request[40:])
        error, out = (result, b"") if isinstance(result, int) else (0, result)
        try:
            os.write(device, struct.pack("<IiQ", 16 + len(out), -error, unique) + out)
        except OSError:
            pass  # who asked was interrupted


main()
