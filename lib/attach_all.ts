/** Several files, all attached or none. */
import { checkMinor, checkOptions } from "./arguments.ts";
import { attach, ATTACH_OPTIONS, type AttachOptions } from "./attach.ts";
import type { Attachment } from "./attachment.ts";

/** Files that {@linkcode attachAll} attached. Disposal detaches them in the reverse order. */
export interface AttachmentGroup extends AsyncDisposable {
  /** In the order of the files. */
  readonly devices: Attachment[];
}

/**
 * Attaches several files, all or none.
 *
 * When one cannot be attached, those before it are detached again. Disposal of the group
 * detaches all of them in the reverse order, also when one of them fails; the first error
 * is thrown.
 *
 * @param files The files, or open descriptors of them.
 * @param options As for {@linkcode attach}, for each of them.
 * @returns The devices, in the order of the files.
 * @throws {TypeError} for `minor` with several files
 * @throws {LoopError} as {@linkcode attach}
 *
 * @example The members of a mirror
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
    await detachAll().catch(() => {}); // what kept the file from being attached is the news
    throw error;
  }
  return { devices, [Symbol.asyncDispose]: detachAll };
}
