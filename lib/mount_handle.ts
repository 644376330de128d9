/** The handle of a mounted file system. */
import {
  checkDetachOptions,
  type DetachOptions,
  type ResolvedDetachOptions,
} from "./detach.ts";

/** A mounted file system. The first mount loads the implementation, because most programs mount nothing. */
export abstract class Mounted {
  /** Path of its root directory. */
  abstract readonly path: string;
  /** The device. */
  abstract readonly source: string;
  /** The type of the file system. */
  abstract readonly type: string;
  /** `true` if the mount is read-only. */
  abstract readonly readOnly: boolean;

  /** Takes over a device, to be detached after unmounting. */
  abstract own(owned: Owned, timeout: number): void;

  /** Unmounts. */
  abstract unmount(waiting: ResolvedDetachOptions): Promise<void>;

  /** Unmounts at the end of a block. */
  abstract dispose(): Promise<void>;
}

/** The device that was attached for a mount. */
export interface Owned {
  detach(options: DetachOptions): Promise<void>;
}

/** Returns the implementation of a handle. */
export let mountedIn: (mount: Mount) => Mounted;

/**
 * A file system mounted by {@linkcode mount}, unmounted on disposal.
 *
 * A private mount, without `target`, lives as long as this process and the files that are
 * open in the mount. A mount on a `target` stays until this process or another unmounts it.
 *
 * @example Unmount explicitly, with a time limit
 * ```ts
 * import { mount } from "@loopdev/loopdev";
 *
 * const path = await Deno.makeTempFile();
 * await Deno.truncate(path, 16 << 20);
 * await new Deno.Command("mkfs.ext4", { args: ["-q", path] }).output();
 * const mounted = await mount(path);
 * await Deno.writeTextFile(`${mounted.path}/hello`, "hello");
 * await mounted.unmount({ timeout: 1000 });
 * await Deno.remove(path);
 * ```
 */
export class Mount implements AsyncDisposable {
  readonly #mounted: Mounted;

  /**
   * Constructed by {@linkcode mount} only.
   *
   * @param mounted The mounted file system.
   */
  constructor(mounted: Mounted) {
    if (!(mounted instanceof Mounted)) {
      throw new TypeError("Cannot make a Mount: mount() makes them");
    }
    this.#mounted = mounted;
  }

  static {
    mountedIn = (mount) => mount.#mounted;
  }

  /**
   * Path of the root directory: the target or, for a private mount, `/proc/PID/fd/N`, which
   * this process, its children and root can use. Deno's own file calls require
   * `--allow-all` for paths below `/proc`.
   */
  get path(): string {
    return this.#mounted.path;
  }

  /** The device that is mounted: `/dev/loop3p2`. */
  get source(): string {
    return this.#mounted.source;
  }

  /** The type of the file system, as the kernel names it. */
  get type(): string {
    return this.#mounted.type;
  }

  /** `true` if the mount is read-only. */
  get readOnly(): boolean {
    return this.#mounted.readOnly;
  }

  /**
   * Writes back, unmounts, and detaches the device if {@linkcode mount} attached it.
   *
   * A target that is in use stays mounted, unless `lazy` is set. A private mount is closed
   * first; the call then waits until no file in the mount is open. After
   * {@linkcode LoopBusyError}, an abort or `lazy`, another call waits again. If the file
   * system is already unmounted, by an earlier call or by another process, the call
   * resolves at once.
   *
   * @param options Limits for waiting for other processes.
   * @throws {LoopBusyError} If other processes still use the file system after `timeout`
   * (`EBUSY`).
   * @throws {LoopError} If another file system is mounted over it (`EBUSY`), or if writing
   * back failed (`EIO`, `ENOSPC`). The file system is unmounted in the latter case.
   *
   * @example Unmount before the end of a block
   * ```ts
   * import { mount } from "@loopdev/loopdev";
   *
   * const path = await Deno.makeTempFile();
   * await Deno.truncate(path, 16 << 20);
   * await new Deno.Command("mkfs.ext4", { args: ["-q", path] }).output();
   * const mounted = await mount(path, { readOnly: true });
   * await mounted.unmount();
   * await Deno.remove(path);
   * ```
   */
  async unmount(options: DetachOptions = {}): Promise<void> {
    await this.#mounted.unmount(checkDetachOptions(options));
  }

  /**
   * Returns the path of the mount, for use in texts and command lines.
   *
   * @returns The path.
   */
  toString(): string {
    return this.path;
  }

  /**
   * Returns the properties as plain data.
   *
   * @returns Plain data.
   */
  toJSON(): Pick<Mount, "path" | "source" | "type" | "readOnly"> {
    const { path, source, type, readOnly } = this;
    return { path, source, type, readOnly };
  }

  /** Formats the mount for `console.log`. */
  [Symbol.for("Deno.customInspect")](
    inspect: typeof Deno.inspect,
    options: Deno.InspectOptions,
  ): string {
    return `Mount ${inspect(this.toJSON(), options)}`;
  }

  /**
   * Unmounts like {@linkcode Mount.unmount}, within 5 seconds or the `detachTimeout` of
   * `attach`. Does not wait again after a failure. If the target stays mounted, the process
   * that unmounts it also releases the device.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#mounted.dispose();
  }
}
