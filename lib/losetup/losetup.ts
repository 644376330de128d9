/** Runs the drop-in. `losetup.ts` lists where and why it deviates from util-linux. */
import project from "../../deno.json" with { type: "json" };
import { MAX_MINOR } from "../arguments.ts";
import { quote, unwrap } from "../errors.ts";
import { type Loop, reopen, repeatWhileAgain } from "../kernel/loop.ts";
import { LoopControl } from "../kernel/loop_control.ts";
import { EINVAL, ENODEV, ENOENT } from "../sys/errno.ts";
import { ioctlValue, O_EXCL, O_RDONLY } from "../sys/libc.ts";
import { LOOP_SET_BLOCK_SIZE } from "../sys/loop_uapi.ts";
import { type ByteString, fromText, toBytes } from "./byte_string.ts";
import { create, type CreateRequest, sizeWarning } from "./create.ts";
import { Device, openNode } from "./device.ts";
import { Failure, orFail, systemFailure } from "./failure.ts";
import { findUnused } from "./find.ts";
import { GetoptError } from "./getopt.ts";
import { help } from "./help.ts";
import { describe, devicesOf, tabulate, usedDevices } from "./listing.ts";
import { existingDevice, parseRequest, type Request } from "./request.ts";

/** Output streams and environment of the program. */
export interface Surroundings {
  /** Writes bytes to standard output. */
  stdout(bytes: Uint8Array): void;
  /** Writes bytes to standard error. */
  stderr(bytes: Uint8Array): void;
  /** Returns the value of an environment variable. */
  variable(name: string): string | undefined;
}

const NAME = "losetup";

/** The version of util-linux that this program imitates. */
const DIALECT = "2.38.1";

/** Runs losetup and returns the exit status. */
export async function losetup(
  args: readonly ByteString[],
  surroundings: Surroundings,
): Promise<number> {
  const run = new Run(surroundings);
  try {
    const isPosix = () =>
      surroundings.variable("POSIXLY_CORRECT") !== undefined;
    await run.perform(parseRequest(args, isPosix));
  } catch (error) {
    run.fail(error);
  }
  return run.status;
}

class Run {
  status = 0;
  readonly #surroundings: Surroundings;

  constructor(surroundings: Surroundings) {
    this.#surroundings = surroundings;
  }

  /**
   * Prints an error in the words of losetup. Unexpected errors are printed with their
   * stack.
   */
  fail(error: unknown): void {
    this.status = 1;
    if (error instanceof Failure) {
      if (error.message !== "") this.#warn(error.message);
    } else if (error instanceof GetoptError) {
      this.#warn(error.message);
      this.#surroundings.stderr(
        toBytes(`Try '${NAME} --help' for more information.\n`),
      );
    } else if (
      error instanceof RangeError || // a size larger than any number
      error instanceof Deno.errors.NotCapable ||
      error instanceof Deno.errors.NotSupported
    ) {
      this.#warn(fromText(error.message));
    } else throw error;
  }

  #print(text: ByteString): void {
    this.#surroundings.stdout(toBytes(text));
  }

  #warn(message: ByteString): void {
    this.#surroundings.stderr(toBytes(`${NAME}: ${message}\n`));
  }

  async perform(request: Request): Promise<void> {
    const { device = "", blockSize = 0n, directIo } = request;
    switch (request.action) {
      case "help":
        return this.#print(help());
      case "version":
        return this.#print(
          `losetup from loopdev ${project.version}, like util-linux ${DIALECT}\n`,
        );
      case "list":
        return this.#list(request);
      case "show":
        return this.#show(request);
      case "find":
        return this.#print(`${findUnused()}\n`);
      case "create":
        return await this.#create(request);
      case "detach":
        this.#each([device], detach);
        return this.#each(request.devices, (name) => {
          detach(existingDevice(name));
        });
      case "detach-all":
        return this.#each(usedDevices(), ({ path }) => detach(path));
      case "remove":
        return this.#each(request.devices, remove);
      case "set-capacity":
        return change(device, "set capacity", (loop) => loop.setCapacity());
      case "set-direct-io":
        return change(
          device,
          "set direct io",
          (loop) => loop.setDirectIo(directIo!),
        );
      case "set-block-size":
        return change(
          device,
          "set logical block size",
          (loop) => setBlockSize(loop, blockSize),
        );
    }
  }

  /** Applies an action to each item, continuing after a failure. */
  #each<T>(items: Iterable<T>, action: (item: T) => void): void {
    for (const item of items) {
      try {
        action(item);
      } catch (error) {
        this.fail(error);
      }
    }
  }

  #list(request: Request): void {
    const { file, offset, table } = request;
    const devices = file === undefined
      ? usedDevices()
      : devicesOf(file, offset);
    if (table) return this.#tabulate(devices, request);
    for (const device of devices) this.#print(describe(device) ?? "");
  }

  #show(request: Request): void {
    const device = new Device(request.device!);
    if (request.table) return this.#tabulate([device], request);
    const line = describe(device);
    if (line === undefined) throw systemFailure(device.path, ENOENT);
    this.#print(line);
  }

  #tabulate(
    devices: Iterable<Device>,
    { columns, format, headings }: Request,
  ): void {
    const isUtf8 = isUtf8Locale(this.#surroundings);
    this.#print(tabulate(devices, columns, { format, headings, isUtf8 }));
  }

  async #create(request: Request): Promise<void> {
    const { file, show } = request;
    if (file === undefined) throw new Failure("no file specified");
    const created: CreateRequest = { ...request, file };
    const path = await create(created);
    if (show) this.#print(`${path}\n`);
    const warning = sizeWarning(created);
    if (warning !== undefined) this.#warn(warning);
  }
}

function isUtf8Locale({ variable }: Surroundings): boolean {
  const locale = variable("LC_ALL") || variable("LC_CTYPE") || variable("LANG");
  return /\.utf-?8$/i.test(locale ?? "");
}

/** Opens a device and changes it. */
function change(
  path: ByteString,
  what: string,
  action: (loop: Loop) => void,
): void {
  orFail(`${path}: ${what} failed`, () => {
    using loop = openNode(path, true);
    action(loop);
  });
}

function detach(path: ByteString): void {
  change(path, "detach", (loop) => loop.clearFd());
}

/**
 * Sets the block size. 0 means the kernel's default. A number that losetup would
 * truncate to 32 bits is refused.
 */
function setBlockSize(loop: Loop, size: bigint): void {
  const what = "change the block size of";
  using exclusive = reopen(loop, O_RDONLY | O_EXCL, what);
  const result = size > MAX_BLOCK_SIZE ? -EINVAL : repeatWhileAgain(
    () => ioctlValue(exclusive.fd, LOOP_SET_BLOCK_SIZE, size),
    exclusive.fd,
  );
  unwrap(result, () => ({
    action: `Cannot ${what} ${quote(loop.path)}`,
    operation: "LOOP_SET_BLOCK_SIZE",
  }));
}

const MAX_BLOCK_SIZE = 65536n;

/** Removes a device, whose name must be exactly of the form `/dev/loop7`. */
function remove(name: ByteString): void {
  const digits = /^(?:\/dev\/)?loop(0|[1-9]\d{0,6})$/.exec(name)?.[1];
  if (digits === undefined || Number(digits) > MAX_MINOR) {
    throw systemFailure(`${name}: failed to use device`, ENODEV);
  }
  orFail(`${name}: remove failed`, () => {
    using control = new LoopControl();
    control.remove(Number(digits));
  });
}
