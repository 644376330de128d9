/** Attaches several files, all or none. */
import { checkMinor, checkOptions } from "./arguments.ts";
import { attach, ATTACH_OPTIONS, type AttachOptions } from "./attach.ts";
import type { Attachment } from "./attachment.ts";

/** Files attached by {@linkcode attachAll}. Disposal detaches them in reverse order. */
export interface AttachmentGroup extends AsyncDisposable {
  /** The attached devices, in the order of the files. */
  readonly devices: Attachment[];
}

/**
 * Attaches several files, all or none.
 *
 * If one file cannot be attached, the devices before it are detached again. Disposal of
 * the group detaches all devices in reverse order, even if detaching one of them fails,
 * and throws the first error.
 *
 * @param files The files, or open descriptors of them.
 * @param options Options for each file, as for {@linkcode attach}.
 * @returns The devices, in the order of the files.
 * @throws {TypeError} If `minor` is given with several files.
 * @throws {LoopError} If a file cannot be attached, as for {@linkcode attach}.
 *
 * @example Attach the members of a mirror
 * ```ts
 * import { attachAll, openMemory } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * using first = openMemory(1 << 20);
 * using second = openMemory(1 << 20);
 * await using group = await attachAll([first, second]);
 * assertEquals(group.devices.length, 2);
 * ```
 */
export async function attachAll(
  files: Iterable<string | URL | { readonly fd: number }>,
  options: AttachOptions = {},
): Promise<AttachmentGroup> {
  const all = [...files];
  checkOptions(options, ATTACH_OPTIONS);
  if (options.minor !== undefined && all.length > 1) {
    throw new TypeError(
      `Cannot attach ${all.length} files to loop${
        checkMinor(options.minor)
      }: minor takes one file`,
    );
  }
  const devices: Attachment[] = [];
  const detachAll = async () => {
    const failures: unknown[] = [];
    for (const device of devices.toReversed()) {
      await device[Symbol.asyncDispose]().catch((error) =>
        failures.push(error)
      );
    }
    if (failures.length > 0) throw failures[0];
  };
  try {
    for (const file of all) devices.push(await attach(file, options));
  } catch (error) {
    await detachAll().catch(() => {}); // report the error of attaching, not of the cleanup
    throw error;
  }
  return { devices, [Symbol.asyncDispose]: detachAll };
}
