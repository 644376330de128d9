/** Mounts that are not on any directory and live as long as their descriptors. */
import type { LoopError } from "../errors.ts";
import { FileDescriptor, takeDescriptor } from "../kernel/file_descriptor.ts";
import { AT_FDCWD, closeAsync, cString } from "../sys/libc.ts";
import { AT_STATX_DONT_SYNC, statAt, statOf } from "../sys/stat.ts";
import { namesIn, openDirectoryAt, readLink } from "../sys/sysfs.ts";
import { Slices } from "../waiting.ts";
import { openRoot, writeBackFileSystem } from "./syncfs.ts";

/** A private mount. */
export class PrivateMount {
  /** Path by which this process, its children and root reach the mount. */
  readonly path: string;
  readonly #descriptor: FileDescriptor;

  /** Takes over the descriptor. */
  constructor(descriptor: FileDescriptor) {
    this.#descriptor = descriptor;
    // In a PID namespace, /proc may belong to another one.
    const self = readLink("/proc/self");
    const pid = typeof self === "string" ? self : `${Deno.pid}`;
    this.path = `/proc/${pid}/fd/${descriptor.fd}`;
  }

  /** The descriptor of the mount. */
  get fd(): number {
    return this.#descriptor.fd;
  }

  /** Writes back the file system. Returns the error if that fails. */
  async writeBack(): Promise<LoopError | undefined> {
    if (this.fd < 0) return undefined; // another call is closing it
    return await writeBackFileSystem(openRoot(this.fd), this.path);
  }

  /** Closes the mount on another thread. The kernel unmounts it unless files in it are open. */
  async close(): Promise<void> {
    const fd = takeDescriptor(this.#descriptor);
    if (fd >= 0) await closeAsync(fd);
  }

  /** Closes the descriptor after the mount was moved to a directory. */
  letGo(): void {
    this.#descriptor.close();
  }

  /** Checks for other descriptors, and directories, of this process in the file system. */
  async isUsedHere(): Promise<boolean> {
    const own = this.fd;
    const device = deviceOf(own);
    const isInside = ["cwd", "root"]
      .some((name) => deviceAt(`/proc/self/${name}`) === device);
    if (isInside) return true;
    const fd = openDirectoryAt("/proc/self/fd");
    if (fd < 0) return true; // cannot be checked
    using directory = new FileDescriptor(fd);
    const slices = new Slices();
    for (const names of namesIn(directory.fd)) {
      if (typeof names === "number") return true;
      const isUsed = names.map(Number)
        .some((fd) => fd !== own && deviceOf(fd) === device);
      if (isUsed) return true;
      if (slices.isTired) await slices.breathe();
    }
    return false;
  }
}

function deviceOf(fd: number): number | undefined {
  const stat = statOf(fd, AT_STATX_DONT_SYNC);
  return typeof stat === "number" ? undefined : stat.device;
}

function deviceAt(path: string): number | undefined {
  const stat = statAt(AT_FDCWD, cString(path), AT_STATX_DONT_SYNC);
  return typeof stat === "number" ? undefined : stat.device;
}
