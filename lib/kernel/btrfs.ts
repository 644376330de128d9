/**
 * Maps Btrfs file systems to their devices, because their mounts have device numbers of
 * their own.
 */
import { isBlockDevice, makedev } from "../sys/stat.ts";
import type { Lookup } from "./lookup.ts";
import type { MountLine } from "./mounts.ts";
import { cString } from "../sys/libc.ts";
import { listDirectory, readText } from "../sys/sysfs.ts";

const SYSFS = "/sys/fs/btrfs";

/** A Btrfs that is mounted somewhere: sysfs lists no others. */
interface FileSystem {
  readonly uuid: string;
  /** Names of its devices: `loop3`. */
  readonly names: Set<string>;
  /** Numbers of its devices. */
  readonly numbers: Set<number>;
}

interface Mounted {
  readonly device: string;
  readonly target: string;
  readonly pid: number | undefined;
}

/** Maximum number of unidentified mounts to remember. */
const MAX_UNKNOWN = 1000;

/** The Btrfs file systems on the devices of a search. */
export class Btrfs {
  readonly #targets: ReadonlyMap<number, string>;
  readonly #lookup: Lookup;
  readonly #all: FileSystem[];
  /**
   * File systems by the device number of their mounts; `undefined` if it is not a Btrfs
   * or not known which one.
   */
  readonly #byNumber = new Map<number, FileSystem | undefined>();
  readonly #unknown = new Map<number, Omit<Mounted, "device">[]>();

  constructor(targets: [number: number, path: string][], lookup: Lookup) {
    this.#lookup = lookup;
    this.#targets = new Map(targets);
    const all = fileSystems();
    this.#all = all.some((one) => this.#devicesOn(one).length > 0) ? all : [];
  }

  /** Returns the devices that a mount with that device number keeps busy. */
  devicesOf(
    number: number,
    mount: MountLine,
    pid: number | undefined,
  ): string[] {
    if (this.#all.length === 0) return [];
    if (!this.#byNumber.has(number)) this.#identify(number, mount);
    const unknown = this.#unknown.get(number);
    if (unknown !== undefined && unknown.length < MAX_UNKNOWN) {
      unknown.push({ target: mount.target, pid });
    }
    const found = this.#byNumber.get(number);
    return found === undefined ? [] : this.#devicesOn(found);
  }

  #identify(number: number, mount: MountLine): void {
    // Users can name the source of any other mount freely, but Btrfs always names one
    // of its devices.
    const isBtrfs = mount.type === "btrfs";
    const found = isBtrfs ? this.#named(mount.source) : undefined;
    this.#byNumber.set(number, found);
    if (isBtrfs && found === undefined) this.#unknown.set(number, []);
  }

  #named(source: string): FileSystem | undefined {
    const name = source.replace("/dev/", "");
    const found = this.#all.find(({ names }) => names.has(name));
    if (found !== undefined) return found;
    const stat = this.#lookup.examine(cString(source)); // a node outside /dev
    return stat === undefined || !isBlockDevice(stat)
      ? undefined
      : this.#all.find(({ numbers }) => numbers.has(stat.rdev));
  }

  #devicesOn({ numbers }: FileSystem): string[] {
    return [...numbers].map((number) => this.#targets.get(number))
      .filter((path) => path !== undefined);
  }

  /** Returns the file systems not recognized among the mounts. */
  #missing(): FileSystem[] {
    const seen = new Set(this.#byNumber.values());
    return this.#all.filter((one) => !seen.has(one));
  }

  /**
   * Returns the unidentified mounts if only one file system was not recognized, since
   * they must then belong to it.
   */
  mountsLeft(): Mounted[] {
    const missing = this.#missing();
    const [number, ...others] = this.#unknown.keys();
    if (
      number === undefined || others.length > 0 || missing.length !== 1
    ) return [];
    this.#byNumber.set(number, missing[0]);
    const mounts = this.#unknown.get(number)!;
    return this.#devicesOn(missing[0]!)
      .flatMap((device) => mounts.map((mount) => ({ ...mount, device })));
  }

  /** Returns the file systems of which no mount was seen. */
  unseen(): { device: string; uuid: string }[] {
    return this.#missing().flatMap((one) =>
      this.#devicesOn(one).map((device) => ({ device, uuid: one.uuid }))
    );
  }
}

function fileSystems(): FileSystem[] {
  const entries = listDirectory(SYSFS);
  if (typeof entries === "number") return []; // no Btrfs was ever mounted
  const found: FileSystem[] = [];
  for (const uuid of entries) {
    const names = listDirectory(`${SYSFS}/${uuid}/devices`);
    if (typeof names === "number") continue; // "features", or unmounted during the call
    const numbers = names.map((name) =>
      readText(`/sys/class/block/${name}/dev`)
    )
      .filter((text) => typeof text === "string")
      .map((text) => {
        const [major, minor] = text.split(":").map(Number);
        return makedev(major!, minor!);
      });
    found.push({ uuid, names: new Set(names), numbers: new Set(numbers) });
  }
  return found;
}
