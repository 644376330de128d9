/** Who uses a mounted file system. */
import { list } from "./devices.ts";
import { LoopError } from "./errors.ts";
import type { Holder, Holders } from "./holder.ts";
import type { PrivateMount } from "./mounting/private_mount.ts";
import { PublicMount } from "./mounting/public_mount.ts";
import { readLink } from "./sys/sysfs.ts";

/** {@linkcode Holders}, and what is mounted in the file system. */
export interface Users extends Holders {
  readonly within: string[];
}

/**
 * Who uses a file system that is mounted, as far as that can be seen; or, once it is
 * unmounted here, whoever keeps its device busy.
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
    // That nobody can be found must not hide that it is busy.
    if (!(error instanceof LoopError)) throw error;
    return { holders: [], complete: false, within: [] };
  }
}

/** The node may be in another directory than `/dev`. */
function nameOf(path: string): string {
  return path.slice(path.lastIndexOf("/") + 1);
}

/** Who has the node open does not use the file system. The mount itself has copies in other namespaces. */
function isUser(
  holder: Holder,
  place: PrivateMount | PublicMount,
): boolean {
  switch (holder.kind) {
    case "mount":
      return holder.target !== place.path;
    case "file":
      // Of a private mount our own descriptor would always be among them.
      return place instanceof PublicMount ||
        holder.pid !== Number(readLink("/proc/self"));
    default:
      return false;
  }
}

/** The loop devices to which a file in it is attached. */
function devicesIn(path: string, device: string): Holder[] {
  return list({ under: path })
    .map(({ name }) => ({ kind: "block", device, name }));
}
