/** Creates a mount namespace for the programs that this process starts. */
import { unwrap } from "../errors.ts";
import { EINVAL, EPERM } from "../sys/errno.ts";
import { stopPropagation, unshareMounts } from "../sys/mount_calls.ts";

/**
 * Gives this thread a mount namespace of its own, which programs that it starts inherit.
 * Mounts in the namespace are visible nowhere else. File systems that other processes
 * unmount are also unmounted in the namespace, because it would keep their devices busy
 * otherwise. Other threads, and therefore nonblocking calls, stay in the old namespace.
 */
export function enterMountNamespace(): void {
  const action = "Cannot make a mount namespace";
  unwrap(unshareMounts(), () => ({
    action,
    operation: "unshare",
    hint: {
      [EPERM]:
        "it needs CAP_SYS_ADMIN: run it as root (in a container: --cap-add SYS_ADMIN)",
    },
  }));
  unwrap(stopPropagation(), () => ({
    action,
    operation: "mount",
    hint: { [EINVAL]: "the root directory is not a mount point (chroot)" },
  }));
}
