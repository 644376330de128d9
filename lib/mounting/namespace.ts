/** A mount namespace for the programs that this process starts. */
import { unwrap } from "../errors.ts";
import { EINVAL, EPERM } from "../sys/errno.ts";
import { stopPropagation, unshareMounts } from "../sys/mount_calls.ts";

/**
 * Gives this thread a mount namespace of its own, which programs that it starts inherit.
 * What is mounted in it is seen nowhere else; what others unmount is unmounted here too,
 * or their devices would stay busy. Other threads, and so nonblocking calls, do not see it.
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
    hint: { [EINVAL]: "the root directory is no mount point (chroot)" },
  }));
}
