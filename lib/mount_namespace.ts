/** Mounts for the programs that this process starts, and for no others. */
import { checkPath } from "./arguments.ts";
import type { Attachment } from "./attachment.ts";
import { mountedIn } from "./mount_handle.ts";
import type { MountedFileSystem } from "./mounted.ts";
import { enterMountNamespace } from "./mounting/namespace.ts";
import type { MountOptions } from "./mounting/options.ts";
import { Target } from "./mounting/public_mount.ts";

/**
 * Mounts the file system of a device on a directory, in a mount namespace of this thread
 * and of the programs that it starts from now on. The mount ends with the last of them.
 * Disposal unmounts it and detaches the device.
 */
export async function mountInNamespace(
  device: Attachment,
  directory: string | URL,
  options: MountOptions,
  timeout: number,
): Promise<MountedFileSystem> {
  const mount = await device.mount(options);
  const mounted = mountedIn(mount) as MountedFileSystem;
  mounted.own(device, timeout);
  try {
    enterMountNamespace();
    // A directory opened earlier would be in the old namespace.
    using target = new Target(checkPath(directory));
    mounted.moveInNamespace(target);
    return mounted;
  } catch (error) {
    await mounted.dispose();
    throw error;
  }
}
