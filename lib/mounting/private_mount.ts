/** A mount that is attached to no directory, and lives as long as its descriptor. */
import type { LoopError } from "../errors.ts";
import { FileDescriptor } from "../kernel/file_descriptor.ts";
import { closeAsync, duplicate } from "../sys/libc.ts";
import { statOf } from "../sys/stat.ts";
import { namesIn, openDirectoryAt, readLink } from "../sys/sysfs.ts";
import { openRoot, writeBackFileSystem } from "./write_back.ts";

/** A private mount. */
export class PrivateMount {
  /** By which this process, its children and root reach it. */
  readonly path: string;
  readonly #descriptor: FileDescriptor;

  /** Takes over the descriptor. */
  constructor(descriptor: FileDescriptor) {
    this.#descriptor = descriptor;
    // In a process namespace of its own /proc may be that of another one.
    const self = readLink("/proc/self");
    const pid = typeof self === "string" ? self : `${Deno.pid}`;
    this.path = `/proc/${pid}/fd/${descriptor.fd}`;
  }

  /** The descriptor of the mount. */
  get fd(): number {
    return this.#descriptor.fd;
  }

  /** Writes back; gives the error. */
  async writeBack(): Promise<LoopError | undefined> {
    return await writeBackFileSystem(openRoot(this.fd), this.path);
  }

  /** Closes it on another thread, which unmounts unless files are open in it. */
  async close(): Promise<void> {
    const last = duplicate(this.fd);
    this.#descriptor.close();
    if (last >= 0) await closeAsync(last);
  }

  /** Closes the descriptor of what is attached to a directory by now. */
  letGo(): void {
    this.#descriptor.close();
  }

  /** Whether this process has a file of it open, beside the mount. */
  isUsedHere(): boolean {
    const device = deviceOf(this.fd);
    const fd = openDirectoryAt("/proc/self/fd");
    if (fd < 0) return true; // it cannot be seen
    using directory = new FileDescriptor(fd);
    for (const names of namesIn(directory.fd)) {
      if (typeof names === "number") return true;
      const isUsed = names.map(Number)
        .some((fd) => fd !== this.fd && deviceOf(fd) === device);
      if (isUsed) return true;
    }
    return false;
  }
}

function deviceOf(fd: number): number | undefined {
  const stat = statOf(fd);
  return typeof stat === "number" ? undefined : stat.device;
}
