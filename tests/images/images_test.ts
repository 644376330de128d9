/**
 * Reads disk images from packages with boot loaders, and compares with the programs of
 * util-linux. The packages are downloaded and unpacked, but not installed. Every file
 * in them is treated as an image: the readers must also agree on files that are none.
 */
import { LoopError, type Partition } from "@loopdev/loopdev";
import { assert, assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { run, runOk, Scratch } from "../device/support.ts";
import { partitionTable } from "../../lib/partitions/partitions.ts";

/**
 * Packages with images, boot sectors or kernels, and the minimum number of partitions
 * in each.
 */
const PACKAGES = {
  "grub-efi-amd64-bin": 0,
  "grub-pc-bin": 0,
  "grub-rescue-pc": 2,
  "ipxe": 1,
  "isolinux": 0,
  "memtest86+": 4,
  "ovmf": 0,
  "refind": 0,
  "syslinux": 0,
  "syslinux-common": 0,
  "u-boot-qemu": 0,
};
const SECTOR_SIZE = 512;

/** Returns the files of a package, unpacked into a directory. */
function unpack(name: string, directory: string): string[] {
  runOk("bash", "-c", 'cd "$0" && apt-get download -qq "$1"', directory, name);
  const [archive] = [...Deno.readDirSync(directory)]
    .filter((entry) => entry.name.endsWith(".deb"));
  assert(archive !== undefined);
  const files = `${directory}/files`;
  runOk("dpkg-deb", "--extract", `${directory}/${archive.name}`, files);
  return [...filesIn(files)].filter((path) =>
    Deno.statSync(path).size >= SECTOR_SIZE
  );
}

function* filesIn(directory: string): Generator<string> {
  for (const { name, isDirectory, isFile } of Deno.readDirSync(directory)) {
    const path = `${directory}/${name}`;
    if (isDirectory) yield* filesIn(path);
    else if (isFile) yield path;
  }
}

/** Content of a file as all readers describe it. */
interface Content {
  partitions: { number: number; start: number; size: number }[];
  /** File system of the whole file, if it has no table. */
  fileSystem?: string;
}

async function ours(path: string): Promise<Content & { all: Partition[] }> {
  try {
    const { partitions, fileSystem } = await partitionTable(path);
    return {
      all: partitions,
      partitions: partitions.map(({ number, start, size }) => ({
        number,
        start,
        size,
      })),
      ...(fileSystem !== undefined && { fileSystem: fileSystem.type }),
    };
  } catch (error) {
    assert(error instanceof LoopError && error.code === "EUCLEAN", `${error}`);
    return { all: [], partitions: [] };
  }
}

function partx(path: string): Content["partitions"] {
  const { stdout } = run(
    "partx",
    "--raw", // the fields to print
    "--noheadings",
    "--output=NR,START,SECTORS",
    path,
  );
  return stdout.trim().split("\n").filter((line) => line !== "").map((line) => {
    const [number, start, sectors] = line.split(" ").map(Number);
    return {
      number: number!,
      start: start! * SECTOR_SIZE,
      size: sectors! * SECTOR_SIZE,
    };
  });
}

function sfdisk(path: string): Content["partitions"] {
  const { code, stdout } = run("sfdisk", "--json", path);
  if (code !== 0) return []; // partx finds no table
  const { partitiontable } = JSON.parse(stdout);
  return (partitiontable.partitions ?? []).map((
    entry: { node: string; start: number; size: number },
  ) => ({
    number: Number(/\d+$/.exec(entry.node)?.[0]),
    start: entry.start * SECTOR_SIZE,
    size: entry.size * SECTOR_SIZE,
  }));
}

/** Returns blkid's type of the file system in a range. */
function blkid(path: string, start: number, size: number): string | undefined {
  const { stdout } = run(
    "blkid",
    "--probe",
    "--usages=filesystem,crypto,raid",
    `--offset=${start}`,
    `--size=${size}`,
    "--match-tag=TYPE",
    "--output=value",
    path,
  );
  return stdout.trim() || undefined;
}

/**
 * Cuts a partition off at the end of the file, as the kernel does and the other tools
 * do not.
 */
function cutOff(
  path: string,
  partitions: Content["partitions"],
): Content["partitions"] {
  const sectors = Math.floor(Deno.statSync(path).size / SECTOR_SIZE);
  const end = sectors * SECTOR_SIZE;
  return partitions.filter(({ start, size }) => size > 0 && start < end)
    .map((one) => ({ ...one, size: Math.min(one.size, end - one.start) }));
}

describe("partitions() of the images that Debian ships", () => {
  for (const [name, atLeast] of Object.entries(PACKAGES)) {
    it(`equals partx, sfdisk and blkid in ${name}`, async () => {
      using scratch = new Scratch();
      const files = unpack(name, scratch.path);
      assert(files.length > 0);
      const differences = [];
      let found = 0;
      for (const path of files) {
        const own = await ours(path);
        found += own.all.length;
        const difference = compare(path, own);
        if (difference.length > 0) differences.push({ path, difference });
      }
      assert(found >= atLeast, `there are ${found} partitions`);
      assertEquals(differences, []);
    });
  }
});

/** Returns the differences between the readers. */
function compare(
  path: string,
  { all, partitions, fileSystem }: Awaited<ReturnType<typeof ours>>,
): Comparison[] {
  const shown = cutOff(path, partx(path));
  const compared: Comparison[] = [["partx", partitions, shown]];
  // Only sfdisk considers boot code a table.
  if (shown.length > 0) {
    compared.push(["sfdisk", partitions, cutOff(path, sfdisk(path))]);
  }
  for (const { number, start, size, fileSystem } of all) {
    const theirs = blkid(path, start, size);
    compared.push([`blkid of ${number}`, fileSystem?.type, theirs]);
  }
  if (all.length === 0) {
    const { size } = Deno.statSync(path);
    compared.push(["blkid", fileSystem, blkid(path, 0, size)]);
  }
  return compared.filter(([, ours, theirs]) =>
    JSON.stringify(ours) !== JSON.stringify(theirs)
  );
}

type Comparison = [program: string, ours: unknown, theirs: unknown];
