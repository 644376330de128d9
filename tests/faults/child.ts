/**
 * The process into which faults are injected. It reads commands line by line as JSON
 * and answers the same way: `setup`, which is not traced, `run`, which is, and
 * `cleanup`.
 */
import {
  attach,
  type Attachment,
  detach,
  find,
  type Holder,
  holders,
  list,
  LoopError,
  type Mount,
  mount,
  openFile,
} from "@loopdev/loopdev";

/** Bytes written through the device before it is detached. */
export const DATA: Uint8Array = new Uint8Array(64 * 1024).fill(0x5a);

/**
 * Files of an operation: an image, another one of the same size, one with a partition
 * table, a directory for nodes, an image with a file system, and a mount point.
 */
interface Files {
  readonly path: string;
  readonly second: string;
  readonly partitioned: string;
  readonly nodes: string;
  readonly mountable: string;
  readonly target: string;
}

/** An operation and its preparation. */
interface Operation {
  setup?(files: Files): Promise<void>;
  run(files: Files): Promise<unknown> | unknown;
}

let attachment: Attachment | undefined;
let disk: Mount | undefined;
let reference: { minor: number; diskSequence: number } | undefined;

/** Options that harness and child agree on. */
export const EVERY_OPTION = {
  offset: 4096,
  sizelimit: 512 * 1024,
  blockSize: 4096,
  readOnly: false,
  autoclear: true,
  partscan: true,
  directIo: true,
  reference: "faults",
  overlap: "refuse",
} as const;

async function attachAndWrite(
  { path }: Files,
  options: Parameters<typeof attach>[1] = {},
): Promise<void> {
  attachment = await attach(path, options);
  if (!options.readOnly) await Deno.writeFile(attachment.path, DATA);
}

async function attachAndPersist(files: Files): Promise<void> {
  await attachAndWrite(files);
  const { minor, diskSequence } = attachment!;
  await attachment!.persist();
  reference = { minor, diskSequence };
}

/** Mounts, and writes a file. */
async function mountAndWrite(
  { mountable }: Files,
  options: Parameters<typeof mount>[1] = {},
): Promise<void> {
  disk = await mount(mountable, options);
  await Deno.writeFile(`${disk.path}/data`, DATA);
}

/** Operations that attach, change and detach devices, by name. */
export const ATTACHING: Record<string, Operation> = {
  "attach": {
    run: async ({ path }) => {
      attachment = await attach(path);
      return attachment.path;
    },
  },
  "attach without autoclear": {
    run: async ({ path }) => {
      attachment = await attach(path, { autoclear: false });
      return attachment.path;
    },
  },
  "attach with every option": {
    run: async ({ path }) => {
      attachment = await attach(path, EVERY_OPTION);
      return attachment.path;
    },
  },
  "attach a descriptor, no overlap": {
    run: async ({ path }) => {
      using file = openFile(path);
      attachment = await attach(file, { overlap: "refuse" });
      return attachment.path;
    },
  },
  "detach": {
    setup: attachAndWrite,
    run: () => attachment!.detach(),
  },
  "detach without autoclear": {
    setup: (files) => attachAndWrite(files, { autoclear: false }),
    run: () => attachment!.detach(),
  },
  "detach by reference": {
    setup: attachAndPersist,
    run: () => detach(reference!),
  },
  "detach what was persisted": {
    setup: attachAndPersist,
    run: () => attachment!.detach(),
  },
  "persist": {
    setup: attachAndWrite,
    run: () => attachment!.persist(),
  },
  "changeFd": {
    setup: (files) => attachAndWrite(files, { readOnly: true }),
    run: ({ second }) => {
      using file = openFile(second, { readOnly: true });
      attachment!.loop.changeFd(file.fd);
      return attachment!.diskSequence;
    },
  },
  "setStatus": {
    setup: attachAndWrite,
    run: () => {
      attachment!.loop.setStatus({ offset: 4096, reference: "changed" });
      return attachment!.loop.getStatus().offset;
    },
  },
  "clearFd": {
    setup: (files) => attachAndWrite(files, { autoclear: false }),
    run: () => {
      attachment!.loop.clearFd();
      attachment!.loop.close();
    },
  },
  "attach with nodes": {
    run: async ({ partitioned, nodes }) => {
      attachment = await attach(partitioned, { nodes, blockSize: "probe" });
      return attachment.path;
    },
  },
};

/** Operations that look at devices. */
export const LOOKING: Record<string, Operation> = {
  "partitions": {
    setup: async ({ partitioned }) => {
      attachment = await attach(partitioned);
    },
    run: async () =>
      (await attachment!.partitions({ timeout: 200 })).map(({ path }) => path),
  },
  "list": { run: () => list() },
  "find": {
    setup: attachAndWrite,
    run: ({ path }) => find(path).map(({ path }) => path),
  },
  "holders": {
    setup: attachAndWrite,
    run: async () => {
      const { holders: found, complete } = await holders(attachment!);
      const own =
        found.filter((holder: Holder) =>
          holder.kind === "process" && holder.pid === Deno.pid
        ).length;
      return complete ? own : 1; // an incomplete result is reported as such
    },
  },
};

/** Operations that mount and unmount. */
export const MOUNTING: Record<string, Operation> = {
  "mount": {
    run: async ({ mountable }) => {
      disk = await mount(mountable);
      return disk.source;
    },
  },
  "mount on a target": {
    run: async ({ mountable, target }) => {
      disk = await mount(mountable, { target, options: { lazytime: true } });
      return disk.source;
    },
  },
  "unmount": {
    setup: mountAndWrite,
    run: () => disk!.unmount({ timeout: 200 }),
  },
  "unmount a target": {
    setup: (files) => mountAndWrite(files, { target: files.target }),
    run: () => disk!.unmount({ timeout: 200 }),
  },
};

const OPERATIONS: Record<string, Operation> = {
  ...ATTACHING,
  ...LOOKING,
  ...MOUNTING,
};

/** Releases what is left, as a user would. */
async function cleanup(): Promise<void> {
  const [left, mounted] = [attachment, disk];
  [attachment, disk, reference] = [undefined, undefined, undefined];
  await mounted?.unmount();
  await left?.detach();
}

/** Result of a call. */
export type Answer =
  | { ok: true; value: unknown }
  | { ok: false; error: string; code: string; operation: string; text: string };

async function answerOf(call: () => unknown): Promise<Answer> {
  try {
    return { ok: true, value: await call() ?? null };
  } catch (error) {
    const known = error instanceof LoopError;
    return {
      ok: false,
      error: error instanceof Error ? error.name : typeof error,
      code: known ? error.code : "",
      operation: known ? error.operation : "",
      text: error instanceof Error ? error.message : String(error),
    };
  }
}

if (import.meta.main) {
  const decoder = new TextDecoderStream();
  let input = "";
  for await (const chunk of Deno.stdin.readable.pipeThrough(decoder)) {
    input += chunk;
    for (let end; (end = input.indexOf("\n")) >= 0;) {
      const { step, name, files } = JSON.parse(input.slice(0, end));
      input = input.slice(end + 1);
      const operation = OPERATIONS[name]!;
      const answer = await answerOf(() =>
        step === "setup"
          ? operation.setup?.(files)
          : step === "run"
          ? operation.run(files)
          : cleanup()
      );
      console.log(JSON.stringify(answer));
    }
  }
}
