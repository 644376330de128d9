/** Files that are slow to read or to close: neither may stop the event loop. */
import {
  attach,
  LoopError,
  mount,
  openFile,
  partitions,
} from "@loopdev/loopdev";
import { probe } from "../../lib/partitions/table.ts";
import { assertEquals, assertMatch, assertRejects } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { runOk, type Scratch, Undo, withScratch } from "../device/support.ts";
import { alone, FileServer } from "./support.ts";

const MiB = 1 << 20;

function ext4(scratch: Scratch, size = 8 * MiB): string {
  const image = scratch.image(size, "ext4.img");
  runOk("mkfs.ext4", "-q", "-F", image);
  return image;
}

/** Does work with an image on a slow server, whose reads fail if the event loop stops. */
async function onServer<T>(
  scratch: Scratch,
  image: string,
  work: (file: string) => Promise<T>,
): Promise<T> {
  await using server = await FileServer.start(`${scratch.path}/slow`, image);
  const timer = setInterval(() => server.beat(), 1);
  try {
    return await work(server.file);
  } finally {
    clearInterval(timer);
  }
}

async function typeOf(file: string): Promise<string> {
  await using disk = await mount(file, { readOnly: true });
  return disk.type;
}

describe("a file that is slow to close", alone, () => {
  it(
    "does not stop the event loop at detach() and persist()",
    withScratch(async (scratch) => {
      const image = scratch.image();
      await using server = await FileServer.start(
        `${scratch.path}/slow`,
        image,
        "to close",
      );
      const timer = setInterval(() => server.beat(), 1);
      using _timer = new Undo(() => clearInterval(timer));
      const detached = await attach(server.file, { readOnly: true });
      await detached.detach();
      const persisted = await attach(server.file, { readOnly: true });
      await persisted.persist();
      await persisted.detach();
      assertEquals((await Deno.readFile(server.file)).length, MiB);
    }),
  );
});

describe("a file that is slow to read", alone, () => {
  it(
    "does not stop probe() while another call reads it",
    withScratch(async (scratch) => {
      const server = await FileServer.start(`${scratch.path}/silent`);
      const ended = `${scratch.path}/ended`;
      await using stack = new AsyncDisposableStack();
      stack.use(server);
      using file = openFile(server.file, { readOnly: true });
      await server.stop("silent");
      await using _limit = server.endAfter(5, ended);
      const start = () =>
        probe({ fd: file.fd, start: 0, size: MiB, name: "file" });
      const first = start();
      // Until the kernel has put the page that it reads into the page cache.
      await new Promise((resolve) => setTimeout(resolve, 200));
      const both = Promise.allSettled([first, start()]);
      const names = [...Deno.readDirSync(scratch.path)].map(({ name }) => name);
      assertEquals(names, ["silent"]); // both calls have returned
      await stack.disposeAsync();
      const results = await both;
      assertEquals(results.map(({ status }) => status), [
        "rejected",
        "rejected",
      ]);
    }),
  );

  it(
    "is not read again after a read that failed late",
    withScratch(async (scratch) => {
      const image = scratch.image(64 << 10);
      Deno.writeTextFileSync(image, "<bad sector>", { append: false });
      Deno.truncateSync(image, 64 << 10);
      const error = await assertRejects(
        () => onServer(scratch, image, (file) => partitions(file)),
        LoopError,
      );
      assertEquals([error.code, error.operation], ["EIO", "pread"]);
      assertMatch(error.message, /another attempt would take long/);
    }),
  );

  it(
    "is read around a bad sector, as far as that is needed",
    withScratch(async (scratch) => {
      const image = scratch.image(8 * MiB);
      runOk("bash", "-c", `echo 'start=2048, type=83' | sfdisk -q '${image}'`);
      runOk("mkfs.ext4", "-q", "-F", "-E", `offset=${MiB}`, image, "7168k");
      {
        using file = Deno.openSync(image, { write: true });
        // Beside the places of the superblocks of a RAID, in one block with them.
        file.seekSync(-(32 << 10), Deno.SeekMode.End);
        file.writeSync(new TextEncoder().encode("<bad sector>"));
      }
      const [found] = await onServer(
        scratch,
        image,
        (file) => partitions(file),
      );
      assertEquals(found?.fileSystem?.type, "ext4");
    }),
  );

  it(
    "does not delay the abort of mount() and partitions()",
    withScratch(async (scratch) => {
      const image = ext4(scratch);
      for (const call of [mount, partitions]) {
        const directory = `${scratch.path}/${call.name}`;
        await using server = await FileServer.start(directory, image);
        const reason = new Error("aborted");
        const controller = new AbortController();
        const { signal } = controller;
        const calling = call(server.file, { signal });
        setTimeout(() => controller.abort(reason), 100);
        assertEquals(await calling.catch((error) => error), reason);
      }
    }),
  );

  it(
    "does not stop mount()",
    withScratch(async (scratch) => {
      assertEquals(await onServer(scratch, ext4(scratch), typeOf), "ext4");
    }),
  );

  it(
    "stops neither mount() nor partitions() if it has partitions",
    withScratch(async (scratch) => {
      const image = scratch.image(10 * MiB);
      const table = "label: gpt\nsize=8M, name=one\n";
      runOk("sh", "-c", `printf '${table}' | sfdisk -q ${image}`);
      const part = ext4(scratch);
      const place = "bs=1M seek=1 conv=notrunc status=none".split(" ");
      runOk("dd", `if=${part}`, `of=${image}`, ...place);
      const found = await onServer(scratch, image, async (file) => {
        const [inFile] = await partitions(file);
        assertEquals(inFile!.fileSystem!.type, "ext4");
        assertEquals(await typeOf(file), "ext4");
        await using device = await attach(file, { readOnly: true });
        const [found] = await partitions(device);
        assertEquals(await typeOf(found!.path), "ext4");
        return found;
      });
      assertEquals(found!.fileSystem!.type, "ext4");
    }),
  );

  it(
    "does not stop a mount() that fails",
    withScratch(async (scratch) => {
      // The root directory is not near the superblock, which is read before.
      const image = ext4(scratch, 64 * MiB);
      runOk("debugfs", "-w", "-R", "clri <2>", image);
      const error = await assertRejects(
        () => onServer(scratch, image, typeOf),
        LoopError,
      );
      // The error of the other thread is lost. The kernel's is EUCLEAN.
      assertEquals([error.code, error.operation], ["EINVAL", "fsconfig"]);
    }),
  );
});
