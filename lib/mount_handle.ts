/** What callers hold of a mounted file system. */
import {
  checkDetachOptions,
  type DetachOptions,
  type ResolvedDetachOptions,
} from "./detach.ts";

/** A mounted file system. What it needs is loaded with it: most programs mount nothing. */
export abstract class Mounted {
  /** Where its files are. */
  abstract readonly path: string;
  /** The device. */
  abstract readonly source: string;
  /** The type of the file system. */
  abstract readonly type: string;
  /** Whether nothing can be written. */
  abstract readonly readOnly: boolean;

  /** Has a device detached when it is unmounted. */
  abstract own(owned: Owned, timeout: number): void;

  /** Unmounts. */
  abstract unmount(waiting: ResolvedDetachOptions): Promise<void>;

  /** Unmounts at the end of a block. */
  abstract dispose(): Promise<void>;
}

/** What goes with a mount: the device that was attached for it. */
export interface Owned {
  detach(options: DetachOptions): Promise<void>;
}

/** What a caller's handle stands for. */
export let mountedIn: (mount: Mount) => Mounted;

/**
 * A file system that {@linkcode mount} has mounted, for as long as it is not disposed of.
 *
 * Private, without `target`, it lives as long as this process and the files that are open
 * in it. On a `target` it stays mounted until it is unmounted, here or by others.
 *
 * @example Unmounting by hand, with a limit
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
   * Made by {@linkcode mount}.
   *
   * @param mounted What was mounted.
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

  /** Where its files are: the target, or `/proc/PID/fd/N`, which leads this process, its children and root into it. Deno's own file calls want `--allow-all` for paths below `/proc`. */
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

  /** Whether nothing can be written. */
  get readOnly(): boolean {
    return this.#mounted.readOnly;
  }

  /**
   * Writes back, unmounts, and detaches the device when {@linkcode mount} attached it.
   *
   * A mount on a target that is in use stays mounted, unless `lazy`. A private one is
   * closed first, and waited for until nobody has files open in it; after
   * {@linkcode LoopBusyError}, an abort or `lazy` calling it again waits again. Unmounted
   * already, by others or by an earlier call, it resolves at once.
   *
   * @param options How long to wait for others.
   * @throws {LoopBusyError} `EBUSY` when others use it for too long: they are named
   * @throws {LoopError} `EIO`, `ENOSPC` when writing back failed, with it unmounted;
   * `EBUSY` when something else is mounted above it
   *
   * @example
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
   * The path of the mount, for use in texts and command lines.
   *
   * @returns The path.
   */
  toString(): string {
    return this.path;
  }

  /**
   * What is mounted where.
   *
   * @returns Plain data.
   */
  toJSON(): Pick<Mount, "path" | "source" | "type" | "readOnly"> {
    const { path, source, type, readOnly } = this;
    return { path, source, type, readOnly };
  }

  /** What `console.log` shows. */
  [Symbol.for("Deno.customInspect")](
    inspect: typeof Deno.inspect,
    options: Deno.InspectOptions,
  ): string {
    return `Mount ${inspect(this.toJSON(), options)}`;
  }

  /**
   * Unmounts as {@linkcode Mount.unmount} does, within 5 seconds or the `detachTimeout` of
   * `attach`; no second waiting after one that failed. What stays mounted on its target is
   * detached by whoever unmounts it.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#mounted.dispose();
  }
}
