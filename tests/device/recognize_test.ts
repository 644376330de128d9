import { assertEquals } from "@std/assert";
import { describe, it } from "@std/testing/bdd";
import { recognize } from "../../lib/mounting/recognize.ts";
import { onAnyKernel, run, runOk } from "./support.ts";

// These tests use files only and attach nothing.

/**
 * Commands that create the content of a device, with the path at @ or last, and the
 * size in megabytes.
 */
const KINDS: readonly [command: string, megabytes: number][] = [
  ["mkfs.ext2 -q -F -L two", 16],
  ["mkfs.ext3 -q -F -L three", 16],
  ["mkfs.ext4 -q -F -L vier", 16],
  ["mkfs.ext4 -q -F -O ^has_journal", 16],
  ["mkfs.xfs -q -L xlabel", 512],
  ["mkfs.btrfs -q -L blabel", 256],
  ["mkfs.vfat -F 12 -n TWELVE", 2],
  ["mkfs.vfat -F 16 -n SIXTEEN", 32],
  ["mkfs.vfat -F 32 -n THIRTYTWO", 64],
  ["mkfs.vfat -F 32", 64],
  ["mkfs.exfat -L elabel", 16],
  ["mkfs.ntfs -q -F -L nlabel", 16],
  ["mkfs.f2fs -q -l flabel", 128],
  ["mkfs.jfs -q -L jlabel", 32],
  ["mkfs.reiserfs -q -f -f -l rlabel", 64],
  ["mkfs.nilfs2 -q -L nilabel", 160],
  ["mkfs.minix -1", 4],
  ["mkfs.minix -2", 4],
  ["mkfs.minix -3", 4],
  ["mkudffs --label=ulabel -b 512", 16],
  ["mkudffs --label=ulabel -b 2048", 16],
  ["mkswap -q -L slabel", 4],
  ["mkswap -q -p 32768 -L slabel", 4],
  ["mkswap -q -p 65536 -L slabel", 4],
  ["mksquashfs /etc/default @ -quiet -noappend", 0],
  ["genisoimage -quiet -V ISOLABEL -o @ /etc/default", 0],
  ["genisoimage -quiet -J -V ISOLABEL -o @ /etc/default", 0],
  ["mkfs.erofs @ /etc/default", 0],
  ["mkfs.cramfs -n clabel /etc/default", 0],
  [
    "cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 -d /etc/hostname",
    16,
  ],
  [
    "cryptsetup -q luksFormat --type luks2 --label llabel --pbkdf pbkdf2 --pbkdf-force-iterations 1000 -d /etc/hostname",
    32,
  ],
];

function make(command: string, path: string): { code: number; stderr: string } {
  const text = command.includes("@") ? command : `${command} @`;
  return run("sh", "-c", text.replace("@", '"$0"'), path);
}

describe(...onAnyKernel("recognize() equals blkid"), () => {
  for (const [command, megabytes] of KINDS) {
    const [program] = command.split(" ");
    const isThere = run("sh", "-c", `command -v ${program}`).code === 0;
    it(
      `for ${command}${isThere ? "" : " (skipped: not there)"}`,
      { ignore: !isThere },
      () => {
        const directory = Deno.makeTempDirSync({ prefix: "loopdev-test-" });
        try {
          const path = `${directory}/image`;
          Deno.writeFileSync(path, new Uint8Array());
          Deno.truncateSync(path, megabytes << 20);
          const { code, stderr } = make(command, path);
          assertEquals(code, 0, stderr);
          const values = Object.fromEntries(
            runOk("blkid", "-p", "-o", "export", path).split("\n")
              .map((line) => line.replaceAll("\\", "").split("=")),
          );
          using file = Deno.openSync(path);
          const ours = recognize({
            size: Deno.statSync(path).size,
            read(offset, length): Uint8Array {
              file.seekSync(offset, Deno.SeekMode.Start);
              const bytes = new Uint8Array(length);
              return bytes.subarray(0, file.readSync(bytes) ?? 0);
            },
          });
          const { TYPE: type, LABEL: label, UUID: uuid } = values;
          assertEquals(ours, {
            type,
            ...(label !== undefined && { label }),
            ...(uuid !== undefined && type !== "udf" && { uuid }),
          });
        } finally {
          Deno.removeSync(directory, { recursive: true });
        }
      },
    );
  }
});
