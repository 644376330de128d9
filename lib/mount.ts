/** Mounts file systems of images and devices. */
import { attach, type AttachOptions, checkAttachOptions } from "./attach.ts";
import { Attachment } from "./attachment.ts";
import { LoopError } from "./errors.ts";
import { Mount, type Mounted, mountedIn } from "./mount_handle.ts";
import type { MountOptions, MountRequest } from "./mounting/options.ts";
import { DEFAULT_TIMEOUT } from "./waiting.ts";

export { Mount };
export type { MountOptions };

/**
 * Mounts the file system of an image, of an attached device or of a partition.
 *
 * A file is attached first, with the sector size of its GPT, and detached with the
 * {@linkcode Mount}. The path of a loop device or of one of its partitions is mounted as
 * it is. The type comes from the superblock. No program is run.
 *
 * Without `target`, the mount is private: this process, its children and root reach it by
 * {@linkcode Mount.path}, and it cannot leak. The mount and the device are released when
 * the process ends, however it ends, and all children with files open in the mount have
 * ended. With `target`, every process sees the mount and it outlives this process, as with
 * mount(8). The process that unmounts it also releases the device.
 *
 * Requires Linux 5.10 or later, `--allow-ffi`, and `CAP_SYS_ADMIN`. Deno's own file calls
 * require `--allow-all` for the path of a private mount, since it is below `/proc`.
 *
 * @param source The image, the device or partition, an {@linkcode Attachment}, or an open
 * descriptor of an image. A path is relative to the working directory.
 * @param options Options for mounting, and for attaching a file.
 * @returns The mounted file system, which is unmounted when it is disposed of.
 * @throws {LoopError} If no file system is recognized, the content is not a file system
 * (LUKS, LVM, RAID, swap), or there are several file systems and no `partition` is given
 * (`EINVAL`), if the partition or the target does not exist (`ENOENT`), if the target is
 * not a directory (`ENOTDIR`), if the kernel does not know the type (`ENODEV`), if a
 * journal would have to be replayed on a read-only device (`EROFS`), if the process may
 * not mount (`EPERM`), or if the file cannot be attached, as for {@linkcode attach}. Other
 * errors are the kernel's; the message quotes its explanation.
 * @throws {TypeError} If an option is unknown or has the wrong type.
 * @throws {RangeError} If the partition number, the type or an option is out of range.
 *
 * @example Edit a file in an image
 * ```ts
 * import { mount } from "@loopdev/loopdev";
 * import { assertEquals } from "@std/assert";
 *
 * const path = await Deno.makeTempFile({ suffix: ".img" });
 * await Deno.truncate(path, 16 << 20);
 * await new Deno.Command("mkfs.ext4", { args: ["-q", path] }).output();
 * {
 *   await using image = await mount(path);
 *   await Deno.writeTextFile(`${image.path}/motd`, "hello\n");
 * }
 * {
 *   await using image = await mount(path, { readOnly: true });
 *   assertEquals(await Deno.readTextFile(`${image.path}/motd`), "hello\n");
 * }
 * await Deno.remove(path);
 * ```
 */
export async function mount(
  source: string | URL | Attachment | { readonly fd: number },
  options: MountOptions & { attach?: AttachOptions | undefined } = {},
): Promise<Mount> {
  const { checkMountOptions } = await import("./mounting/options.ts");
  const request = checkMountOptions(options, ["attach"]);
  const { attach: attaching, ...own } = options;
  if (attaching !== undefined) checkAttachOptions(attaching);
  if (source instanceof Attachment) {
    refuseAttachOptions(attaching);
    return await source.mount(own);
  }
  const mounted = await mountNode(source, request, attaching);
  if (mounted !== undefined) return new Mount(mounted);
  const attachment = await attach(source, {
    ...attaching,
    blockSize: attaching?.blockSize ?? "probe",
    readOnly: attaching?.readOnly ?? request.readOnly,
    signal: attaching?.signal ?? request.signal,
  });
  try {
    const mount = await attachment.mount(own);
    const timeout = attaching?.detachTimeout ?? DEFAULT_TIMEOUT;
    mountedIn(mount).own(attachment, timeout);
    return mount;
  } catch (error) {
    await undo(attachment);
    throw error;
  }
}

function refuseAttachOptions(options: AttachOptions | undefined): void {
  if (options === undefined) return;
  throw new TypeError(
    "Cannot use the option attach: it is for files, and this is attached already",
  );
}

/** Mounts a loop device or partition. Returns `undefined` for any other source. */
async function mountNode(
  source: string | URL | { readonly fd: number },
  request: MountRequest,
  attaching: AttachOptions | undefined,
): Promise<Mounted | undefined> {
  if (typeof source !== "string" && !(source instanceof URL)) return undefined;
  const { mountPath } = await import("./mount_disk.ts");
  return await mountPath(source, request, () => refuseAttachOptions(attaching));
}

/** Detaches a file that could not be mounted. Its error must not hide the first one. */
async function undo(attachment: Attachment): Promise<void> {
  try {
    await attachment[Symbol.asyncDispose]();
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
  }
}
