/** Recognizes files that are rarely attached on purpose: compressed files, and images of other formats. */

/** A format that is not a raw image. */
interface Format {
  readonly name: string;
  /** First bytes of its files, as characters. */
  readonly magic: string;
  /** Advice for getting the raw content. */
  readonly remedy: string;
}

const FORMATS: readonly Format[] = [
  { name: "xz", magic: "\xfd7zXZ\0", remedy: "unpack it with xz -d" },
  { name: "gzip", magic: "\x1f\x8b\x08", remedy: "unpack it with gzip -d" },
  { name: "zstd", magic: "\x28\xb5\x2f\xfd", remedy: "unpack it with zstd -d" },
  ...["QFI\xfb", "KDMV", "# Disk DescriptorFile", "vhdxfile"]
    .map((magic, index) => ({
      name: ["qcow2", "VMDK", "VMDK", "VHDX"][index]!,
      magic,
      remedy: "convert it with qemu-img convert -O raw",
    })),
  {
    name: "an Android sparse image",
    magic: "\x3a\xff\x26\xed",
    remedy: "convert it with simg2img",
  },
];

/** Number of bytes that identify a format. */
export const HEAD_SIZE = 32;

/** Returns the format of files that begin with these bytes, if there is one. */
export function formatOf(head: Uint8Array): Format | undefined {
  const text = String.fromCharCode(...head);
  return FORMATS.find(({ magic }) => text.startsWith(magic));
}
