/** Unmounts without losing data, and waits until the device is free. */
import type { ResolvedDetachOptions } from "./detach.ts";
import { describeHolder, describeHolders } from "./describe_holder.ts";
import { LoopBusyError, LoopError, printable, quote } from "./errors.ts";
import type { Holder, Holders } from "./holder.ts";
import { Mounted, type Owned } from "./mount_handle.ts";
import { PrivateMount } from "./mounting/private_mount.ts";
import {
  numbersOf,
  PublicMount,
  type Target,
} from "./mounting/public_mount.ts";
import { isSourceReleased, type Source } from "./mounting/source.ts";
import { EBUSY } from "./sys/errno.ts";
import {
  abortable,
  DEFAULT_TIMEOUT,
  pollUntil,
  type WaitOptions,
  within,
} from "./waiting.ts";
import { list } from "./devices.ts";
import { readLink } from "./sys/sysfs.ts";

/** Properties of a mounted file system. */
export interface Details {
  readonly source: Source;
  readonly type: string;
  readonly readOnly: boolean;
  /** The target as the caller named it, if that differs from its canonical path. */
  readonly path?: string;
}

/** A mounted file system. */
export class MountedFileSystem extends Mounted {
  readonly type: string;
  readonly readOnly: boolean;
  readonly #source: Source;
  #place: PrivateMount | PublicMount;
  #path: string;
  #owned: Owned | undefined;
  #timeout = DEFAULT_TIMEOUT;
  #state: "mounted" | "pending" | "unmounted" = "mounted";
  /** A write-back error that has not been thrown yet. */
  #failure: LoopError | undefined;
  /** The previous call. Calls run one after the other. */
  #last: Promise<void> = Promise.resolve();

  constructor(place: PrivateMount | PublicMount, details: Details) {
    super();
    this.#place = place;
    this.#source = details.source;
    this.#path = details.path ?? place.path;
    this.type = details.type;
    this.readOnly = details.readOnly;
  }

  get path(): string {
    return this.#path;
  }

  get source(): string {
    return this.#source.path;
  }

  own(owned: Owned, timeout: number): void {
    this.#owned = owned;
    this.#timeout = timeout;
  }

  /** Moves a private mount to a directory in the mount namespace of this thread, which other threads do not see. */
  moveInNamespace(target: Target): void {
    const place = this.#place;
    if (!(place instanceof PrivateMount)) return;
    const numbers = numbersOf(place.fd, this.source, this.type);
    target.attach(place.fd, this.source);
    place.letGo();
    this.#path = target.path.text;
    this.#place = new PublicMount(target.path, numbers, true);
  }

  async unmount(waiting: ResolvedDetachOptions): Promise<void> {
    const previous = this.#last;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#last = previous.then(() => promise);
    const start = performance.now();
    try {
      // Lazy unmounting must not wait for an unmount that waits for others.
      if (!waiting.lazy) await this.#waitFor(previous, waiting);
      const waited = performance.now() - start;
      const timeout = Math.max(0, waiting.timeout - waited);
      await this.#unmount({ ...waiting, timeout });
    } finally {
      resolve();
    }
  }

  /** Waits for an earlier unmount within the limits of this one. */
  async #waitFor(
    previous: Promise<void>,
    { timeout, signal }: WaitOptions,
  ): Promise<void> {
    const ended = abortable(previous.then(() => true), signal);
    const isOver = await within(ended, Math.min(timeout, MAX_TIMER));
    if (!isOver) {
      throw await this.#busy("an earlier unmount still waits", signal);
    }
  }

  async #unmount(waiting: ResolvedDetachOptions): Promise<void> {
    if (this.#state === "unmounted") return;
    if (this.#state === "mounted" && waiting.ifUnused) {
      await this.#refuseUsed(waiting.signal);
    }
    const start = performance.now();
    const left = (): WaitOptions => ({
      timeout: Math.max(0, waiting.timeout - (performance.now() - start)),
      signal: waiting.signal,
    });
    if (this.#state === "mounted") {
      const failure = await this.#place.writeBack();
      this.#failure ??= failure;
      await this.#leave(waiting.lazy, left());
      this.#state = "pending";
    }
    if (await this.#isFreeWithin(waiting.lazy, left())) {
      this.#state = "unmounted";
    }
    this.#tellFailure();
  }

  /** Unmounts. A private mount is only closed, and stays alive while files in it are open. */
  async #leave(isLazy: boolean, waiting: WaitOptions): Promise<void> {
    const place = this.#place;
    if (place instanceof PrivateMount) return await place.close();
    const looks = await pollUntil(() => place.unmount(isLazy), waiting);
    if (looks === undefined) {
      throw await this.#busy("it stays mounted", waiting.signal);
    }
  }

  /** Waits until the file system is released, and until the device is free if it was attached for the mount. */
  async #isFreeWithin(isLazy: boolean, waiting: WaitOptions): Promise<boolean> {
    if (this.#owned !== undefined) return await this.#detach(isLazy, waiting);
    if (this.#place instanceof PublicMount) return true;
    const isReleased = () => isSourceReleased(this.#source);
    if (isLazy) return isReleased();
    if (await pollUntil(isReleased, waiting) !== undefined) return true;
    const { signal } = waiting;
    throw await this.#busy("the kernel unmounts it when they let go", signal);
  }

  async #detach(isLazy: boolean, waiting: WaitOptions): Promise<boolean> {
    try {
      await this.#owned!.detach({ ...waiting, lazy: isLazy });
      return !isLazy;
    } catch (error) {
      if (!(error instanceof LoopError)) throw error;
      if (!(error instanceof LoopBusyError)) {
        this.#tellFailure(); // the first error is the one to report
        throw error;
      }
      if (error.cause instanceof LoopError) this.#failure ??= error.cause;
      const { signal } = waiting;
      throw await this.#busy("the kernel detaches it when they let go", signal);
    }
  }

  async #refuseUsed(signal: AbortSignal | undefined): Promise<void> {
    const { holders, complete } = await this.#usersOf("mounted", signal);
    const isUsedHere = this.#place instanceof PrivateMount &&
      await this.#place.isUsedHere();
    signal?.throwIfAborted();
    if (holders.length === 0 && complete && !isUsedHere) return;
    const words = describeUsers(holders, complete);
    if (isUsedHere) {
      words.push("this process has files open in it, or its working directory");
    }
    throw this.#busyError(holders, [...words, "nothing was changed"]);
  }

  /** Describes the users of the file system for a message. */
  async whoUses(): Promise<string[]> {
    return (await this.#users()).words;
  }

  async #users(
    signal?: AbortSignal,
  ): Promise<{ holders: Holder[]; words: string[] }> {
    const isMounted = this.#state === "mounted";
    const { holders, complete, within } = await this.#usersOf(
      isMounted ? "mounted" : "unmounted",
      signal,
    );
    const words = isMounted
      ? describeUsers(holders, complete)
      : describeHolders({ holders, complete });
    words.push(...within.map((path) => `${quote(path)} is mounted in it`));
    if (holders.length + within.length === 0) {
      words.unshift("another process uses it");
    }
    return { holders, words };
  }

  /** Finds the users, as far as the signal leaves time for it. */
  async #usersOf(
    state: "mounted" | "unmounted",
    signal: AbortSignal | undefined,
  ): Promise<Users> {
    const { minor } = this.#source;
    return await usersOf(minor, this.source, this.#place, { state, signal });
  }

  /** Makes the error for a file system in use. Rejects when the signal is aborted. */
  async #busy(
    consequence: string,
    signal: AbortSignal | undefined,
  ): Promise<LoopBusyError> {
    const { holders, words } = await this.#users(signal);
    signal?.throwIfAborted();
    return this.#busyError(holders, [...words, consequence]);
  }

  #busyError(holders: Holder[], words: string[]): LoopBusyError {
    const cause = this.#failure;
    this.#failure = undefined;
    if (cause !== undefined) words.push(cause.message);
    const { path, source } = this;
    return new LoopBusyError(
      `Cannot unmount ${quote(path)} (${printable(source)})`,
      {
        errno: EBUSY,
        operation: "umount2",
        path,
        hint: words.join("; "),
        holders,
        cause,
      },
    );
  }

  #tellFailure(): void {
    const failure = this.#failure;
    this.#failure = undefined;
    if (failure !== undefined) throw failure;
  }

  async dispose(): Promise<void> {
    await this.#last;
    if (!this.#isMounted) return this.#tellFailure();
    try {
      await this.unmount({
        timeout: this.#timeout,
        lazy: false,
        ifUnused: false,
        signal: undefined,
      });
    } catch (error) {
      // The mount keeps its device attached until another process unmounts it.
      if (this.#isMounted) await this.#letGo();
      throw error;
    }
  }

  get #isMounted(): boolean {
    return this.#state === "mounted";
  }

  /** Closes the device, which its mount keeps attached. */
  async #letGo(): Promise<void> {
    try {
      await this.#owned?.detach({ lazy: true });
    } catch (error) {
      if (!(error instanceof LoopError)) throw error; // must not hide the first error
    }
  }
}

/** The longest delay of a timer, in milliseconds. */
const MAX_TIMER = 2 ** 31 - 1;

/** Describes the users of a mounted file system. */
function describeUsers(
  holders: readonly Holder[],
  complete: boolean,
): string[] {
  const isFile = (holder: Holder) => holder.kind === "file";
  const files = holders.filter(isFile).slice(0, MAX_NAMED);
  const rest = holders.filter(isFile).length - files.length;
  return [
    ...files.map(describeUser),
    ...rest > 0 ? [`and ${rest} more`] : [],
    ...describeHolders({
      holders: holders.filter((holder) => !isFile(holder)),
      complete,
    }),
  ];
}

/** Limit of processes named in a message. */
const MAX_NAMED = 10;

function describeUser(holder: Holder): string {
  if (holder.kind !== "file") return describeHolder(holder);
  const { pid, command, path } = holder;
  const who = pid === Deno.pid
    ? "this process"
    : `process ${pid} (${printable(command)})`;
  return `in use by ${who}: ${printable(path)}`;
}

/** {@linkcode Holders}, and mount points in the file system. */
interface Users extends Holders {
  readonly within: string[];
}

/**
 * Finds the users of a mounted file system, or the holders of its device after unmounting.
 */
async function usersOf(
  minor: number,
  source: string,
  place: PrivateMount | PublicMount,
  { state, signal }: {
    readonly state: "mounted" | "unmounted";
    readonly signal: AbortSignal | undefined;
  },
): Promise<Users> {
  try {
    const { findHolders } = await import("./kernel/holder_search.ts");
    if (state === "unmounted") {
      return { ...await findHolders(minor, { signal }), within: [] };
    }
    const { holders, complete } = await findHolders(minor, {
      withUsers: true,
      signal,
    });
    const users = holders.filter((holder) =>
      nameOf(holder.device) === nameOf(source) && isUser(holder, place)
    );
    if (!(place instanceof PublicMount)) {
      return { holders: users, complete, within: [] };
    }
    return {
      holders: [...users, ...devicesIn(place.path, source)],
      complete,
      within: await place.mountsWithin(),
    };
  } catch (error) {
    // A failed search must not hide that the file system is busy.
    if (!(error instanceof LoopError)) throw error;
    return { holders: [], complete: false, within: [] };
  }
}

/** Returns the name of a node, which may be in another directory than `/dev`. */
function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/**
 * Returns `true` for a user of the file system, and `false` for a holder of the node or a
 * copy of the mount in another namespace.
 */
function isUser(
  holder: Holder,
  place: PrivateMount | PublicMount,
): boolean {
  switch (holder.kind) {
    case "mount":
      return holder.target !== place.path;
    case "file":
      // The search always finds this process's own descriptor of a private mount.
      return place instanceof PublicMount ||
        holder.pid !== Number(readLink("/proc/self"));
    default:
      return false;
  }
}

/** Finds loop devices whose backing file is in the file system. */
function devicesIn(path: string, device: string): Holder[] {
  return list({ under: path })
    .map(({ name }) => ({ kind: "block", device, name }));
}
