import { attach } from "@loopdev/loopdev";
import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import {
  mounted,
  onDevices,
  OwnDevice,
  runOk,
  Scratch,
  times,
} from "../device/support.ts";

const RUNS = times(100);
const MiB = 1 << 20;

type Files = Map<string, Uint8Array>;

/** A file system, with commands to copy files into it and out of it. */
interface FileSystem {
  readonly make: [string, ...string[]];
  readonly check: [string, ...string[]];
  write(device: string, directory: string, files: Files): void;
  read(device: string, directory: string, names: string[]): Files;
}

const FILE_SYSTEMS: Record<string, FileSystem> = {
  ext4: {
    make: ["mkfs.ext4", "-q", "-F"],
    check: ["fsck.ext4", "-f", "-n"],
    write(device, directory, files): void {
      using _mount = mounted(device, directory);
      for (const [name, content] of files) {
        Deno.writeFileSync(`${directory}/${name}`, content);
      }
    },
    read(device, directory, names): Files {
      using _mount = mounted("-o", "ro", device, directory);
      return readAll(directory, names);
    },
  },
  // With mtools, because not every kernel has vfat.
  vfat: {
    make: ["mkfs.vfat"],
    check: ["fsck.vfat", "-n"],
    write(device, directory, files): void {
      for (const [name, content] of files) {
        const path = `${directory}/${name}`;
        Deno.writeFileSync(path, content);
        runOk("mcopy", "-i", device, path, "::");
        Deno.removeSync(path);
      }
    },
    read(device, directory, names): Files {
      for (const name of names) {
        runOk("mcopy", "-i", device, `::${name}`, directory);
      }
      const files = readAll(directory, names);
      for (const name of names) Deno.removeSync(`${directory}/${name}`);
      return files;
    },
  },
};

function readAll(directory: string, names: string[]): Files {
  return new Map(
    names.map((name) => [name, Deno.readFileSync(`${directory}/${name}`)]),
  );
}

/** Returns files of random content and size. */
function randomFiles(): Files {
  const files: Files = new Map();
  for (let index = 0; index < 5; index++) {
    const content = new Uint8Array(Math.floor(Math.random() * 65536));
    crypto.getRandomValues(content);
    files.set(`file-${index}`, content);
  }
  return files;
}

describe(
  "a file system that is made and filled through a device",
  onDevices,
  () => {
    for (const [name, fileSystem] of Object.entries(FILE_SYSTEMS)) {
      it(`${name} is intact after detaching at once, ${RUNS} times`, async () => {
        using scratch = new Scratch();
        using own = new OwnDevice(); // programs that try the number keep mkfs out for a moment
        const directory = `${scratch.path}/mnt`;
        Deno.mkdirSync(directory);
        for (let round = 0; round < RUNS; round++) {
          const image = scratch.image(16 * MiB, `${round}.img`);
          const files = randomFiles();
          {
            await using device = await attach(image, {
              autoclear: round % 2 === 0,
              minor: own.minor,
            });
            const [command, ...args] = fileSystem.make;
            runOk(command, ...args, device.path);
            fileSystem.write(device.path, directory, files);
          }
          const [command, ...args] = fileSystem.check;
          runOk(command, ...args, image);
          await using device = await attach(image, { readOnly: true });
          assertEquals(
            fileSystem.read(device.path, directory, [...files.keys()]),
            files,
          );
          await device.detach();
          Deno.removeSync(image);
        }
        scratch.check();
      });
    }
  },
);
