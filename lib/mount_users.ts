/** Users of a mounted file system. */
import { list } from "./devices.ts";
import { LoopError } from "./errors.ts";
import type { Holder, Holders } from "./holder.ts";
import type { PrivateMount } from "./mounting/private_mount.ts";
import { PublicMount } from "./mounting/public_mount.ts";
import { readLink } from "./sys/sysfs.ts";

/** {@linkcode Holders}, and mount points in the file system. */
export interface Users extends Holders {
  readonly within: string[];
}

/**
 * Finds the users of a mounted file system, or the holders of its device after unmounting.
 */
export async function usersOf(
  minor: number,
  source: string,
  place: PrivateMount | PublicMount,
  state: "mounted" | "unmounted" = "mounted",
): Promise<Users> {
  try {
    const { findHolders } = await import("./holder_search.ts");
    if (state === "unmounted") {
      return { ...await findHolders(minor), within: [] };
    }
    const { holders, complete } = await findHolders(minor, { withUsers: true });
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
