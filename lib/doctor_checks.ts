/** Checks that {@linkcode doctor} runs. */
import { isBlockDevice, majorMinor, statAt } from "./sys/stat.ts";
import { list } from "./devices.ts";
import { LoopError, quote, UnexpectedDevice } from "./errors.ts";
import { configureNothing, type Loop } from "./kernel/loop.ts";
import { isUdevRunning } from "./attaching/binding.ts";
import {
  existingMinors,
  hasSysfs,
  isBound,
  partitionsOf,
  rdevOf,
} from "./kernel/loop_sysfs.ts";
import { ownMounts } from "./kernel/mounts.ts";
import { openControl, openLoop } from "./kernel/nodes.ts";
import { leftDirectories } from "./kernel/left_nodes.ts";
import {
  EACCES,
  EBADF,
  EBUSY,
  EMFILE,
  ENFILE,
  ENOENT,
  ENXIO,
  EPERM,
  errnoMessage,
  errnoName,
} from "./sys/errno.ts";
import { AT_FDCWD, cString } from "./sys/libc.ts";
import { listDirectory, readBytes, readText, readWhole } from "./sys/sysfs.ts";

/** Result of one check of {@linkcode doctor}. Plain data. */
export interface Check {
  /** Name of the check, or of the cause of a problem: `driver`, `rights`. */
  name: string;
  /** `problem`: attaching cannot work. `warning`: attaching works, with a restriction. */
  status: "ok" | "warning" | "problem";
  /** The finding, in one line. */
  finding: string;
  /** The remedy, in one line. */
  remedy?: string;
}

/** Runs all checks and sorts the results, problems first. */
export async function diagnose(): Promise<Check[]> {
  const self = examineProcess();
  if (typeof self === "number") return [diagnoseProc(self)];
  const driver = diagnoseDriver();
  const descriptors = diagnoseDescriptors(self);
  // Skipped if these failed: it would only repeat them, and opening loop-control could
  // load the driver.
  const isClear = driver.status === "ok" && descriptors.status === "ok";
  const checks = [
    descriptors,
    diagnoseKernel(),
    driver,
    ...isClear ? diagnoseAccess(self) : [],
    ...attempt("sysfs", diagnoseSysfs),
    ...attempt("/dev", () => diagnoseDevDirectory(self)),
    ...attempt("nodes", diagnoseNodes),
    ...attempt("left nodes", diagnoseLeftNodes),
    ...attempt("capabilities", () => diagnoseCapabilities(self)),
    ...attempt("AppArmor", () => diagnoseAppArmor(self)),
    ...attempt("stale partitions", diagnoseStalePartitions),
    ...attempt("deleted files", diagnoseDeletedFiles),
    diagnoseUdev(),
    await diagnoseParsers(),
  ];
  const order = ["problem", "warning", "ok"];
  return checks.sort((a, b) =>
    order.indexOf(a.status) - order.indexOf(b.status)
  );
}

function ok(name: string, finding: string): Check {
  return { name, status: "ok", finding };
}

function warning(name: string, finding: string, remedy: string): Check {
  return { name, status: "warning", finding, remedy };
}

function problem(name: string, finding: string, remedy: string): Check {
  return { name, status: "problem", finding, remedy };
}

/**
 * Reports a check that failed as a warning: whether attaching works is tested directly.
 */
function attempt(name: string, examine: () => Check[]): Check[] {
  try {
    return examine();
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    if (error.errno === EMFILE) return []; // reported by the check of descriptors
    return [{ name, status: "warning", finding: error.message }];
  }
}

/** Privileges and environment of this process. */
interface Process {
  readonly uid: number;
  readonly capabilities: bigint;
  /** `true` if root here is not root of the system. */
  readonly isInUserNamespace: boolean;
  readonly descriptorLimit: number;
  readonly openDescriptors: number;
  /** The mount on `/dev`. */
  readonly devMount: DevMount | undefined;
}

interface DevMount {
  readonly type: string;
  readonly options: string[];
}

// linux/capability.h
const CAP_DAC_OVERRIDE = 1n;
const CAP_SYS_ADMIN = 21n;
const CAP_MKNOD = 27n;

/**
 * Collects what the checks need, or returns the error number of a file that cannot be
 * read.
 */
function examineProcess(): Process | number {
  const [status, limits, uidMap] = ["status", "limits", "uid_map"]
    .map((name) => readWhole(`/proc/self/${name}`));
  const devMount = findDevMount();
  const descriptors = listDirectory("/proc/self/fd");
  if (
    typeof status !== "string" || typeof limits !== "string" ||
    typeof devMount === "number" || typeof descriptors === "number"
  ) {
    return [status, limits, devMount, descriptors]
      .find((result) => typeof result === "number") as number;
  }
  const field = (pattern: RegExp, from: string) => pattern.exec(from)?.[1];
  return {
    uid: Number(field(/^Uid:\s+\d+\s+(\d+)/m, status)),
    capabilities: BigInt(`0x${field(/^CapEff:\s+(\w+)/m, status) ?? "0"}`),
    // A kernel without user namespaces does not have this file.
    isInUserNamespace: typeof uidMap === "string" &&
      !/^\s*0\s+0\s+4294967295\s*$/.test(uidMap),
    descriptorLimit: Number(
      field(/^Max open files\s+(\d+)/m, limits) ?? Infinity,
    ),
    openDescriptors: descriptors.length - 1, // one is the descriptor of the directory itself
    devMount,
  };
}

/**
 * Finds the mount visible on `/dev`, or returns the error number if the mounts cannot
 * be read.
 */
function findDevMount(): DevMount | undefined | number {
  let found: DevMount | undefined;
  try {
    for (const mount of ownMounts()) {
      if (mount.target !== "/dev") continue;
      found = { type: mount.type, options: mount.options };
    }
  } catch (error) {
    if (error instanceof LoopError) return -error.errno;
    throw error;
  }
  return found;
}

/** Reports a missing `/proc`, without which the other findings would be guesses. */
function diagnoseProc(result: number): Check {
  return result === -EMFILE || result === -ENFILE
    ? noDescriptors(-result)
    : problem(
      "/proc",
      `it cannot be read (${errnoName(-result)}): nothing else can be checked`,
      "mount -t proc proc /proc",
    );
}

function noDescriptors(errno: number): Check {
  return problem(
    "descriptors",
    errnoMessage(errno),
    errno === ENFILE
      ? "raise the limit of the system: sysctl fs.file-max"
      : MORE_DESCRIPTORS,
  );
}

const MORE_DESCRIPTORS = "raise the limit: ulimit -n 1024, or more";

function can({ capabilities }: Process, capability: bigint): boolean {
  return (capabilities >> capability & 1n) === 1n;
}

/**
 * Descriptors that attaching holds at once: file, loop-control, device, the device
 * again, an attribute.
 */
const DESCRIPTORS = 5;

function diagnoseDescriptors(
  { descriptorLimit, openDescriptors }: Process,
): Check {
  const left = descriptorLimit - openDescriptors;
  const finding =
    `${openDescriptors} descriptors are open, and the limit is ${descriptorLimit}`;
  return left >= DESCRIPTORS ? ok("descriptors", finding) : problem(
    "descriptors",
    `${finding}: attaching needs up to ${DESCRIPTORS} more`,
    MORE_DESCRIPTORS,
  );
}

function diagnoseKernel(): Check {
  const release = readText("/proc/sys/kernel/osrelease");
  return ok(
    "kernel",
    `Linux ${
      typeof release === "string" ? release : "(unknown)"
    } on ${Deno.build.arch}`,
  );
}

const CONTROL = "/dev/loop-control";

/** Checks for the driver, and reports its parameters. */
function diagnoseDriver(): Check {
  const module = "/sys/module/loop";
  const isThere = (path: string): boolean =>
    typeof statAt(AT_FDCWD, cString(path)) !== "number";
  const devices = readWhole("/proc/devices");
  const isRegistered = typeof devices === "string" &&
    /^ *7 loop$/m.test(devices);
  if (!isThere(module) && !isRegistered) {
    // If the node exists without the driver, opening it loads the driver.
    return isThere(CONTROL)
      ? warning(
        "driver",
        "it is not loaded: the kernel loads it when loop-control is opened",
        "for details: modprobe loop, then run this again",
      )
      : problem(
        "driver",
        "the kernel has no loop driver",
        "load it: modprobe loop (in a container: on the host)",
      );
  }
  const kind = isThere(`${module}/initstate`)
    ? "loaded as a module"
    : "built in";
  const parameters = ["max_loop", "max_part"].map((name) => {
    const value = readText(`${module}/parameters/${name}`);
    return typeof value === "string" ? `${name}=${value}` : undefined;
  }).filter((parameter) => parameter !== undefined);
  return ok("driver", [kind, ...parameters].join(", "));
}

/** Opens the same nodes as attaching. */
function diagnoseAccess(self: Process): Check[] {
  try {
    openControl().close();
  } catch (error) {
    const node: RefusedNode = { path: CONTROL, type: "c", numbers: "10:237" };
    return [diagnoseRefusal(error, node, self)];
  }
  const checks = [ok("loop-control", `${CONTROL} can be opened`)];
  let minors;
  try {
    minors = existingMinors();
  } catch (error) {
    if (error instanceof LoopError) return checks; // reported by the check of sysfs
    throw error;
  }
  // Like attaching, skips a device that cannot be opened.
  let refused: Check | undefined;
  for (const minor of minors) {
    try {
      if (isBound(minor)) continue;
      using loop = openLoop(minor, {});
      const device = ok("device", `${loop.path} can be opened`);
      return [...checks, device, probe(loop)];
    } catch (error) {
      const isTaken = error instanceof LoopError &&
        (error.errno === ENXIO || error.errno === EBUSY);
      if (isTaken) continue;
      const numbers = majorMinor(rdevOf(minor) ?? 0).join(":");
      const path = `/dev/loop${minor}`;
      refused ??= diagnoseRefusal(error, { path, type: "b", numbers }, self);
    }
  }
  return [
    ...checks,
    refused ??
      ok("device", "all are in use: the kernel adds one on demand"),
  ];
}

/** A node that cannot be opened. */
interface RefusedNode {
  readonly path: string;
  readonly type: "b" | "c";
  /** `10:237` */
  readonly numbers: string;
}

/** Determines why a node cannot be opened, and suggests a remedy. */
function diagnoseRefusal(
  error: unknown,
  node: RefusedNode,
  self: Process,
): Check {
  if (!(error instanceof LoopError)) throw error;
  switch (error.errno) {
    case EMFILE:
    case ENFILE:
      return noDescriptors(error.errno);
    case ENOENT:
      return diagnoseMissing(node, self);
    case EACCES:
    case EPERM:
      return diagnoseForbidden(error, node, self);
  }
  const { path, type, numbers } = node;
  return problem(
    nameOf(node),
    error.message,
    error instanceof UnexpectedDevice
      ? `rm ${path} && mknod ${path} ${type} ${numbers.replace(":", " ")}`
      : "see dmesg",
  );
}

function nameOf({ path }: RefusedNode): string {
  return path === CONTROL ? "loop-control" : "nodes";
}

/** Returns the docker option that grants access to the devices. */
function cgroupRule({ type, numbers }: RefusedNode): string {
  const devices = type === "b" ? "b 7:*" : `c ${numbers}`;
  return `--device-cgroup-rule='${devices} rwm'`;
}

function diagnoseMissing(node: RefusedNode, self: Process): Check {
  const { path } = node;
  const refusal = `${path} does not exist, and no node can be created: `;
  if (self.isInUserNamespace) {
    return problem(
      "user namespace",
      `${refusal}root of a user namespace may not access devices`,
      `pass ${path} to the container, and allow its users to open it`,
    );
  }
  return can(self, CAP_MKNOD)
    ? problem(
      "device cgroup",
      `${refusal}the device cgroup forbids it`,
      `allow it: docker run ${cgroupRule(node)}`,
    )
    : problem(
      nameOf(node),
      `${refusal}it requires CAP_MKNOD`,
      `mknod ${path} as root (in a container: --device ${path})`,
    );
}

function diagnoseForbidden(
  error: LoopError,
  node: RefusedNode,
  self: Process,
): Check {
  const refusal = `${node.path} cannot be opened: `;
  if (self.isInUserNamespace) {
    return problem(
      "user namespace",
      `${refusal}root of a user namespace may not access devices`,
      "run it outside, as root (podman, docker: not rootless)",
    );
  }
  if (self.uid !== 0 && !can(self, CAP_DAC_OVERRIDE)) {
    return problem(
      "rights",
      `${refusal}user ${self.uid} has no permission`,
      "run it as root or as a member of the group of the node (often disk)",
    );
  }
  if (self.devMount?.options.includes("nodev")) {
    return problem(
      "/dev",
      `${refusal}/dev is mounted with the option nodev`,
      "remove it: mount -o remount,dev /dev",
    );
  }
  if (error.errno === EPERM) {
    return problem(
      "device cgroup",
      `${refusal}a rule of the device cgroup forbids it`,
      `allow it: docker run ${cgroupRule(node)}, DeviceAllow= of systemd`,
    );
  }
  return problem(
    "rights",
    `${refusal}${error.message}`,
    "run it as root with CAP_DAC_OVERRIDE; see dmesg for SELinux and AppArmor",
  );
}

/** Checks which ioctls the kernel supports. */
function probe(loop: Loop): Check {
  if (configureNothing(loop) !== -EBADF) {
    return problem(
      "ioctls",
      "this kernel has no LOOP_CONFIGURE",
      "use Loop.setFd() and setStatus(), or Linux 5.10 or later",
    );
  }
  let hasSequence = true;
  try {
    loop.getDiskSequence();
  } catch (error) {
    if (!(error instanceof LoopError)) throw error;
    hasSequence = false;
  }
  return hasSequence
    ? ok("ioctls", "LOOP_CONFIGURE, BLKGETDISKSEQ and all older ones")
    : warning(
      "ioctls",
      "LOOP_CONFIGURE, but no disk sequence numbers (Linux 5.15)",
      "check what is attached before detach(device); an Attachment still recognizes its own",
    );
}

function diagnoseSysfs(): Check[] {
  if (hasSysfs()) return [ok("sysfs", "mounted on /sys")];
  return [warning(
    "sysfs",
    "/sys is not mounted: list() and find() cannot work",
    "mount -t sysfs sysfs /sys",
  )];
}

function diagnoseDevDirectory({ devMount: mount }: Process): Check[] {
  if (mount === undefined) {
    return [warning(
      "/dev",
      "it is a plain directory: nodes do not appear automatically",
      "for other programs: attach({ nodes }), or loopdev mknod",
    )];
  }
  return [
    mount.type === "devtmpfs"
      ? ok("/dev", "devtmpfs: the kernel creates the nodes")
      : warning(
        "/dev",
        `${mount.type}: nodes do not appear automatically`,
        "for other programs: attach({ nodes }), or loopdev mknod",
      ),
  ];
}

/** Checks the nodes of all existing devices. */
function diagnoseNodes(): Check[] {
  if (!hasSysfs()) return [];
  const missing: string[] = [];
  const checks: Check[] = [];
  const minors = existingMinors();
  for (const minor of minors) {
    const path = `/dev/loop${minor}`;
    const stat = statAt(AT_FDCWD, cString(path));
    const rdev = rdevOf(minor);
    if (rdev === undefined) continue; // removed during the check
    if (typeof stat === "number") missing.push(path);
    else if (!isBlockDevice(stat) || stat.rdev !== rdev) {
      checks.push(warning(
        "nodes",
        `${path} is not the node of loop${minor}`,
        `rm ${path} && mknod ${path} b ${majorMinor(rdev).join(" ")}`,
      ));
    }
  }
  if (missing.length > 0) {
    checks.push(warning(
      "nodes",
      `${missing.length} of ${minors.length} devices have no node: ${
        some(missing)
      }`,
      "for other programs: loopdev mknod DEV /dev",
    ));
  }
  return checks.length > 0
    ? checks
    : [ok("nodes", `all ${minors.length} devices have one`)];
}

/**
 * Reports private nodes that nothing will remove: each gives access to later devices of
 * its number.
 */
function diagnoseLeftNodes(): Check[] {
  const left = leftDirectories();
  if (left.length === 0) return [ok("left nodes", "none")];
  return [warning(
    "left nodes",
    `a killed process left private nodes: ${some(left)}`,
    `they give access to later devices; remove them: rm -r ${
      left.slice(0, 3).join(" ")
    }`,
  )];
}

/** Returns the first few of many items. */
function some(items: string[]): string {
  const shown = items.slice(0, 3).join(", ");
  return items.length > 3 ? `${shown} …` : shown;
}

function diagnoseCapabilities(self: Process): Check[] {
  if (canMount(self)) {
    return [ok("capabilities", "CAP_SYS_ADMIN: partitions and mounts work")];
  }
  const consequence =
    "partitions cannot be created, and most file systems not mounted";
  return [
    self.isInUserNamespace
      ? warning(
        "user namespace",
        `its root is not root of the system: ${consequence}`,
        "run it outside, as root",
      )
      : warning(
        "capabilities",
        `no CAP_SYS_ADMIN: ${consequence}`,
        "run it as root (in a container: --cap-add SYS_ADMIN)",
      ),
  ];
}

function canMount(self: Process): boolean {
  return can(self, CAP_SYS_ADMIN) && !self.isInUserNamespace;
}

/** Warns of a profile, which may forbid mounting whatever the capabilities are. */
function diagnoseAppArmor(self: Process): Check[] {
  const profile = ["apparmor/current", "current"]
    .map((name) => readText(`/proc/self/attr/${name}`))
    .find((text) => typeof text === "string");
  // Other security modules use another syntax.
  const name = /^(.+) \((?:enforce|kill)\)$/.exec(profile ?? "")?.[1];
  if (name === undefined || !canMount(self)) return [];
  return [
    warning(
      "AppArmor",
      `profile ${quote(name)} may forbid to mount file systems`,
      "for mounting: --security-opt apparmor=unconfined, or a profile that allows it",
    ),
  ];
}

function diagnoseStalePartitions(): Check[] {
  if (!hasSysfs()) return [];
  const stale = existingMinors().filter((minor) => !isBound(minor))
    .flatMap((minor) => partitionsOf(minor))
    .map(({ name }) => `/dev/${name}`);
  if (stale.length === 0) return [ok("stale partitions", "none")];
  return [warning(
    "stale partitions",
    `leftover partitions of an earlier file: ${some(stale)}`,
    "attach() removes them; with other tools they show parts of the next file",
  )];
}

function diagnoseDeletedFiles(): Check[] {
  if (!hasSysfs()) return [];
  // Files in memory never have a name.
  const deleted = list().filter(({ deleted, backingFile }) =>
    deleted && !backingFile.startsWith("/memfd:")
  );
  if (deleted.length === 0) return [ok("deleted files", "none is attached")];
  return deleted.map(({ path, backingFile }) =>
    warning(
      "deleted files",
      `${path} uses ${
        quote(backingFile)
      }, which was deleted but still takes up space`,
      `if it is no longer needed: loopdev detach ${path}`,
    )
  );
}

function diagnoseUdev(): Check {
  return ok(
    "udev",
    isUdevRunning() ? "running" : "not running, and not needed",
  );
}

/** Checks whether the kernel reads partition tables itself. */
async function diagnoseParsers(): Promise<Check> {
  const config = await kernelConfig();
  if (config === undefined) {
    return ok("partition tables", "read by loopdev if the kernel does not");
  }
  const has = (option: string): boolean =>
    new RegExp(`^${option}=y$`, "m").test(config);
  const kinds = [
    ...has("CONFIG_EFI_PARTITION") ? ["GPT"] : [],
    ...has("CONFIG_MSDOS_PARTITION") ? ["MBR"] : [],
  ];
  return ok(
    "partition tables",
    kinds.length === 0
      ? "this kernel reads none; loopdev reads them instead"
      : `this kernel reads ${kinds.join(" and ")}; loopdev reads the rest`,
  );
}

async function kernelConfig(): Promise<string | undefined> {
  const release = readText("/proc/sys/kernel/osrelease");
  for (
    const path of [`/boot/config-${release}`, `/lib/modules/${release}/config`]
  ) {
    const text = readWhole(path);
    if (typeof text === "string") return text;
  }
  const compressed = readBytes("/proc/config.gz");
  if (typeof compressed === "number") return undefined;
  try {
    const stream = new Blob([compressed.slice()]).stream()
      .pipeThrough(new DecompressionStream("gzip"));
    return await new Response(stream).text();
  } catch {
    return undefined; // truncated: there is room for one line only
  }
}
