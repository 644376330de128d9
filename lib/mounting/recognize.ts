/** Recognizes file systems by their superblocks. Reads few bytes and trusts none. */
import type { ByteSource } from "../partitions/byte_source.ts";

/**
 * A file system, or other content of a device, as its superblock describes it. Plain
 * data.
 */
export interface FileSystem {
  /** The type as mount(8) and blkid name it: `ext4`, `vfat`, `crypto_LUKS`. */
  type: string;
  /** The label, if it is not empty. */
  label?: string;
  /** The UUID or serial number, formatted as by blkid. */
  uuid?: string;
}

/** Recognizes the content of a device or partition. Returns `undefined` for unknown content. */
export function recognize(source: ByteSource): FileSystem | undefined {
  const reader = new Reader(source);
  for (const probe of PROBES) {
    const found = probe(reader);
    if (found !== undefined) return found;
  }
  return undefined;
}

/** Reads whole pages, each once. Bytes past the end are zero. */
class Reader {
  readonly size: number;
  readonly #source: ByteSource;
  readonly #pages = new Map<number, Uint8Array>();

  constructor(source: ByteSource) {
    this.#source = source;
    this.size = source.size;
  }

  bytes(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    // Offsets come from the device. An offset too large for a number is past the end too.
    if (!Number.isSafeInteger(offset) || offset < 0) return bytes;
    for (let done = 0; done < length;) {
      const at = offset + done;
      const page = this.#page(Math.floor(at / PAGE));
      const part = page.subarray(at % PAGE, at % PAGE + length - done);
      bytes.set(part, done);
      done += Math.min(length - done, PAGE - at % PAGE);
    }
    return bytes;
  }

  #page(number: number): Uint8Array {
    const known = this.#pages.get(number);
    if (known !== undefined) return known;
    const start = number * PAGE;
    const page = start < this.size
      ? this.#source.read(start, Math.min(PAGE, this.size - start))
      : new Uint8Array();
    this.#pages.set(number, page);
    return page;
  }

  view(offset: number, length: number): DataView {
    return new DataView(this.bytes(offset, length).buffer);
  }

  u16(offset: number): number {
    return this.view(offset, 2).getUint16(0, true);
  }

  u32(offset: number): number {
    return this.view(offset, 4).getUint32(0, true);
  }

  /** Returns `true` if these characters are at the offset. */
  has(offset: number, magic: string): boolean {
    return latin(this.bytes(offset, magic.length)) === magic;
  }

  /** Reads a text up to its first NUL. */
  text(offset: number, length: number, encoding = "utf-8"): string {
    const text = new TextDecoder(encoding).decode(this.bytes(offset, length));
    return text.split("\0", 1)[0]!.trimEnd();
  }

  uuid(offset: number): string | undefined {
    const digits = this.bytes(offset, 16).toHex();
    if (/^0+$/.test(digits)) return undefined;
    return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  }
}

const PAGE = 4096;

function latin(bytes: Uint8Array): string {
  return String.fromCharCode(...bytes);
}

function describe(type: string, label = "", uuid = ""): FileSystem {
  return {
    type,
    ...(label !== "" && { label }),
    ...(uuid !== "" && { uuid }),
  };
}

type Probe = (reader: Reader) => FileSystem | undefined;

/** Makes a probe for a format with a magic number in one place. */
function plain(
  type: string,
  magic: { at: number; is: string },
  { label, uuid }: { label?: [number, number]; uuid?: number } = {},
): Probe {
  return (reader) =>
    reader.has(magic.at, magic.is)
      ? describe(
        type,
        label && reader.text(...label),
        uuid === undefined ? undefined : reader.uuid(uuid),
      )
      : undefined;
}

function luks(reader: Reader): FileSystem | undefined {
  if (!reader.has(0, "LUKS\xba\xbe")) return undefined;
  const isSecond = reader.view(6, 2).getUint16(0) === 2;
  return describe(
    "crypto_LUKS",
    isSecond ? reader.text(24, 48) : "",
    reader.text(168, 40),
  );
}

function lvm(reader: Reader): FileSystem | undefined {
  for (let at = 0; at < 2048; at += 512) {
    if (!reader.has(at, "LABELONE") || !reader.has(at + 24, "LVM2 001")) {
      continue;
    }
    const id = reader.text(at + reader.u32(at + 20), 32);
    const groups = /^(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})$/.exec(id);
    return describe("LVM2_member", "", groups?.slice(1).join("-"));
  }
  return undefined;
}

function raid(reader: Reader): FileSystem | undefined {
  const magic = 0xa92b4efc;
  const atEnd = Math.floor((reader.size - 8192) / 4096) * 4096;
  for (const at of [0, 4096, atEnd]) {
    if (reader.u32(at) !== magic || reader.u32(at + 4) !== 1) continue;
    return describe(
      "linux_raid_member",
      reader.text(at + 32, 32),
      reader.uuid(at + 16),
    );
  }
  const old = Math.floor(reader.size / 65536) * 65536 - 65536;
  if (old < 0 || reader.u32(old) !== magic) return undefined;
  const words = [20, 52, 56, 60].map((at) =>
    reader.u32(old + at).toString(16).padStart(8, "0")
  );
  const uuid = words.join("")
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
  return describe("linux_raid_member", "", uuid);
}

function ext(reader: Reader): FileSystem | undefined {
  if (reader.u16(1080) !== 0xef53) return undefined;
  const hasJournal = (reader.u32(1116) & 4) !== 0;
  const incompatible = reader.u32(1120);
  const readOnly = reader.u32(1124);
  const isJournal = (incompatible & 8) !== 0;
  // Features of ext3: file types, recovery, meta groups; sparse, large files, trees.
  const isNew = (incompatible & ~0x16) !== 0 || (readOnly & ~7) !== 0;
  const type = isJournal
    ? "jbd"
    : isNew
    ? "ext4"
    : hasJournal
    ? "ext3"
    : "ext2";
  return describe(type, reader.text(1144, 16), reader.uuid(1128));
}

function swap(reader: Reader): FileSystem | undefined {
  for (const page of [4096, 8192, 16384, 32768, 65536]) {
    const magic = latin(reader.bytes(page - 10, 10));
    if (magic === "SWAPSPACE2") {
      return describe("swap", reader.text(1052, 16), reader.uuid(1036));
    }
    if (magic === "SWAP-SPACE") return describe("swap");
    if (magic.startsWith("S1SUSPEND") || magic.startsWith("S2SUSPEND")) {
      return describe(
        "swsuspend",
        reader.text(1052, 16),
        reader.uuid(1036),
      );
    }
  }
  return undefined;
}

/** Formats a serial number of FAT or exFAT. */
function serial(number: number): string {
  const digits = number.toString(16).toUpperCase().padStart(8, "0");
  return number === 0 ? "" : `${digits.slice(0, 4)}-${digits.slice(4)}`;
}

/** Limit of bytes of a root directory that are searched for a label. */
const DIRECTORY = 16384;

function exfat(reader: Reader): FileSystem | undefined {
  if (!reader.has(3, "EXFAT   ")) return undefined;
  const [sectorShift, clusterShift] = reader.bytes(108, 2);
  const root = (reader.u32(88) +
    (reader.u32(96) - 2) * 2 ** clusterShift!) * 2 ** sectorShift!;
  const size = Math.min(DIRECTORY, 2 ** (sectorShift! + clusterShift!));
  let label = "";
  for (let at = root; at < root + size; at += 32) {
    const [type, length] = reader.bytes(at, 2);
    if (type === 0) break;
    if (type !== 0x83) continue;
    label = reader.text(at + 2, Math.min(length!, 11) * 2, "utf-16le");
    break;
  }
  return describe("exfat", label, serial(reader.u32(100)));
}

function ntfs(reader: Reader): FileSystem | undefined {
  if (!reader.has(3, "NTFS    ")) return undefined;
  const id = reader.view(72, 8).getBigUint64(0, true);
  const uuid = id === 0n ? "" : id.toString(16).toUpperCase().padStart(16, "0");
  return describe("ntfs", ntfsLabel(reader), uuid);
}

/** Limit of attributes that are read. A volume has about 10. */
const MAX_ATTRIBUTES = 64;

/** Reads the name in the volume record, which is the fourth record of the master file table. */
function ntfsLabel(reader: Reader): string {
  const factor = reader.bytes(13, 1)[0]!;
  const sectors = factor > 128 ? 2 ** (256 - factor) : factor;
  const cluster = reader.u16(11) * sectors;
  const recordFactor = reader.view(64, 1).getInt8(0);
  const record = recordFactor < 0 ? 2 ** -recordFactor : recordFactor * cluster;
  if (!(record >= 512 && record <= 65536)) return "";
  const table = Number(reader.view(48, 8).getBigUint64(0, true)) * cluster;
  const volume = table + 3 * record;
  if (!reader.has(volume, "FILE")) return "";
  let at = reader.u16(volume + 20);
  for (let count = 0; count < MAX_ATTRIBUTES && at + 24 <= record; count++) {
    const type = reader.u32(volume + at);
    const length = reader.u32(volume + at + 4);
    if (type === 0xffffffff || length < 16) return "";
    if (type === 0x60) {
      const start = reader.u16(volume + at + 20);
      const size = Math.min(reader.u32(volume + at + 16), 256);
      return reader.text(volume + at + start, size, "utf-16le");
    }
    at += length;
  }
  return "";
}

function vfat(reader: Reader): FileSystem | undefined {
  if (reader.u16(510) !== 0xaa55) return undefined;
  const sector = reader.u16(11);
  const [cluster] = reader.bytes(13, 1);
  const reserved = reader.u16(14);
  const [fats] = reader.bytes(16, 1);
  const isSane = [512, 1024, 2048, 4096].includes(sector) && cluster! > 0 &&
    (cluster! & (cluster! - 1)) === 0 && reserved > 0 && fats! > 0;
  const isLarge = reader.has(82, "FAT32   ");
  if (!isSane || !(isLarge || reader.has(54, "FAT"))) return undefined;
  const perFat = isLarge ? reader.u32(36) : reader.u16(22);
  const behind = (reserved + fats! * perFat) * sector;
  const root = isLarge
    ? behind + (reader.u32(44) - 2) * cluster! * sector
    : behind;
  const size = isLarge ? cluster! * sector : reader.u16(17) * 32;
  const fallback = reader.text(isLarge ? 71 : 43, 11);
  const label = fatLabel(reader, root, Math.min(size, DIRECTORY)) ??
    (fallback === "NO NAME" ? "" : fallback);
  return describe("vfat", label, serial(reader.u32(isLarge ? 67 : 39)));
}

/** Reads the label in the root directory, which takes precedence over the one in the boot sector. */
function fatLabel(
  reader: Reader,
  root: number,
  size: number,
): string | undefined {
  for (let at = root; at < root + size; at += 32) {
    const entry = reader.bytes(at, 12);
    if (entry[0] === 0) return undefined;
    const isLabel = (entry[11]! & 0x18) === 0x08 &&
      (entry[11]! & 0x3f) !== 0x0f;
    if (entry[0] !== 0xe5 && isLabel) return reader.text(at, 11);
  }
  return undefined;
}

function f2fs(reader: Reader): FileSystem | undefined {
  if (reader.u32(1024) !== 0xf2f52010) return undefined;
  return describe(
    "f2fs",
    reader.text(1148, 1024, "utf-16le"),
    reader.uuid(1132),
  );
}

/** Offset of the descriptors of ISO 9660 and UDF, which have 2048 bytes each. */
const DESCRIPTORS = 32768;

function udf(reader: Reader): FileSystem | undefined {
  for (let number = 0; number < 8; number++) {
    const at = DESCRIPTORS + number * 2048;
    if (reader.has(at + 1, "NSR02") || reader.has(at + 1, "NSR03")) {
      return describe("udf", udfLabel(reader));
    }
  }
  return undefined;
}

/** Reads the logical volume identifier, which the anchor in sector 256 leads to. */
function udfLabel(reader: Reader): string {
  for (const sector of [2048, 512, 1024, 4096]) {
    const anchor = 256 * sector;
    if (reader.u16(anchor) !== 2) continue;
    const first = reader.u32(anchor + 20);
    for (let number = first; number < first + 16; number++) {
      const at = number * sector;
      if (reader.u16(at) !== 6 || reader.u32(at + 12) !== number) continue;
      const length = Math.min(reader.bytes(at + 84 + 127, 1)[0]!, 127);
      const [width] = reader.bytes(at + 84, 1);
      const encoding = width === 16 ? "utf-16be" : "latin1";
      return length < 2 ? "" : reader.text(at + 85, length - 1, encoding);
    }
  }
  return "";
}

function iso9660(reader: Reader): FileSystem | undefined {
  if (!reader.has(DESCRIPTORS, "\x01CD001")) return undefined;
  let label = reader.text(DESCRIPTORS + 40, 32);
  for (let number = 1; number < 8; number++) {
    const at = DESCRIPTORS + number * 2048;
    if (!reader.has(at, "\x02CD001")) continue;
    const escape = latin(reader.bytes(at + 88, 3));
    if (["%/@", "%/C", "%/E"].includes(escape)) {
      label = reader.text(at + 40, 32, "utf-16be") || label;
    }
  }
  const [created, modified] = [813, 830].map((at) =>
    reader.text(DESCRIPTORS + at, 16)
  );
  const isSet = (date?: string): date is string =>
    /^\d{16}$/.test(date!) && !/^0+$/.test(date!);
  const date = [modified, created].find(isSet) ?? "";
  const uuid = date.replace(
    /^(\d{4})(..)(..)(..)(..)(..)(..)$/,
    "$1-$2-$3-$4-$5-$6-$7",
  );
  return describe("iso9660", label, uuid);
}

function squashfs(reader: Reader): FileSystem | undefined {
  if (!reader.has(0, "hsqs")) return undefined;
  return describe(reader.u16(28) === 4 ? "squashfs" : "squashfs3");
}

function reiserfs(reader: Reader): FileSystem | undefined {
  const magic = reader.text(65588, 10);
  if (!/^ReIsEr(2|3)?Fs/.test(magic)) return undefined;
  return describe("reiserfs", reader.text(65636, 16), reader.uuid(65620));
}

function nilfs2(reader: Reader): FileSystem | undefined {
  if (reader.u16(1030) !== 0x3434) return undefined;
  const size = reader.u16(1032);
  if (size < 64 || size > 1024) return undefined;
  return describe("nilfs2", reader.text(1192, 80), reader.uuid(1176));
}

function minix(reader: Reader): FileSystem | undefined {
  const isFirst = [0x137f, 0x138f, 0x2468, 0x2478].includes(reader.u16(1040));
  const isThird = reader.u16(1048) === 0x4d5a;
  const inodes = isThird ? reader.u32(1024) : reader.u16(1024);
  return (isFirst || isThird) && inodes > 0 ? describe("minix") : undefined;
}

/** All probes: layers below file systems first, formats with the weakest magic numbers last. */
const PROBES: readonly Probe[] = [
  luks,
  lvm,
  raid,
  plain("xfs", { at: 0, is: "XFSB" }, { label: [108, 12], uuid: 32 }),
  plain("btrfs", { at: 65600, is: "_BHRfS_M" }, {
    label: [65835, 256],
    uuid: 65568,
  }),
  squashfs,
  plain("erofs", { at: 1024, is: "\xe2\xe1\xf5\xe0" }, {
    label: [1088, 16],
    uuid: 1072,
  }),
  f2fs,
  plain("BitLocker", { at: 3, is: "-FVE-FS-" }),
  exfat,
  ntfs,
  plain("cramfs", { at: 0, is: "\x45\x3d\xcd\x28" }, { label: [48, 16] }),
  swap,
  ext,
  plain("jfs", { at: 32768, is: "JFS1" }, { label: [32920, 16], uuid: 32904 }),
  reiserfs,
  nilfs2,
  udf,
  iso9660,
  vfat,
  minix,
];
