/** Images of disks with odd tables, named by what is odd about them. */
import {
  changeHeaders,
  gptImage,
  type GptPartition,
  headerOf,
  logicalParts,
  mbrImage,
  type MbrParts,
  writeBootRecord,
} from "./partition_images.ts";

const TWO: GptPartition[] = [
  { first: 64, last: 127 },
  { first: 128, last: 200 },
];

/** Returns an MBR with logical partitions, after a change. */
function mbr(change: (parts: MbrParts) => void): Uint8Array {
  const parts = logicalParts();
  change(parts);
  return mbrImage(parts);
}

function gpt(
  change: (image: Uint8Array) => Uint8Array | void,
  partitions: GptPartition[] = TWO,
): Uint8Array {
  const image = gptImage({ partitions });
  return change(image) ?? image;
}

function grown(image: Uint8Array, size: number): Uint8Array {
  const larger = new Uint8Array(size);
  larger.set(image);
  return larger;
}

/** Changes a byte that the checksum of a header covers. */
function spoil(image: Uint8Array, sector: number): void {
  headerOf(image, 512, sector).setUint8(57, 1);
}

/** Images of a few MiB each, with sectors of 512 bytes. */
export const ODD_IMAGES: Record<string, Uint8Array> = {
  "MBR: nothing odd": mbr(() => {}),
  "MBR: type 0 with sectors, and overlapping": mbr(({ slots }) => {
    slots![0] = { start: 0, count: 100, type: 0, bootFlag: 0x80 };
  }),
  "MBR: type 0 apart": mbr(({ slots }) => {
    slots![3] = { start: 1400, count: 100, type: 0 };
  }),
  "MBR: past the end": mbr(({ slots }) => {
    slots![1] = { start: 2000, count: 64 };
  }),
  "MBR: begins past the end": mbr(({ slots }) => {
    slots![1] = { start: 5000, count: 64 };
  }),
  "MBR: overlapping": mbr(({ slots }) => {
    slots![0]!.count = 90;
  }),
  "EBR: type 0": mbr(({ records }) => {
    records![0]!.slots[0]!.type = 0;
  }),
  "EBR: both slots are partitions": mbr(({ records }) => {
    records![2]!.slots[1] = { start: 256, count: 10, type: 0x82 };
  }),
  "EBR: slots in the other order": mbr(({ records }) => {
    records![0]!.slots.reverse();
  }),
  "EBR: garbage in the third slot": mbr(({ records }) => {
    records![0]!.slots.push({ start: 7, count: 2000 });
  }),
  "EBR: a partition in the third slot": mbr(({ records }) => {
    records![0]!.slots.push({ start: 120, count: 20 });
  }),
  "EBR: the first is missing": mbr(({ records }) => {
    records!.shift();
  }),
  "EBR: the second is missing": mbr(({ records }) => {
    records!.splice(1, 1);
  }),
  "EBR: links to itself": mbr(({ records }) => {
    records![1]!.slots[1]!.start = 256;
  }),
  "EBR: the last links to the first": mbr(({ records }) => {
    records![2]!.slots[1] = { start: 0, count: 1, type: 5 };
  }),
  "EBR: two links": mbr(({ records }) => {
    records![0]!.slots[0] = { type: 5, start: 256, count: 9 };
  }),
  "EBR: linked past the end": mbr(({ records }) => {
    records![1]!.slots[1]!.start = 100000 - 256;
  }),
  "EBR: linked outside of the extended partition": mbr(({ records }) => {
    records![1]!.slots[1]!.start = 1300 - 256;
    records![2]!.sector = 1300;
  }),
  "EBR: larger than the extended partition": mbr(({ records }) => {
    records![2]!.slots[0]!.count = 512;
  }),
  "EBR: begins at its own record": mbr(({ records }) => {
    records![0]!.slots[0]!.start = 0;
  }),
  "EBR: overlapping": mbr(({ records }) => {
    records![0]!.slots[0]!.count = 257;
  }),
  "two extended partitions": mbrImage({
    slots: [
      { start: 100, count: 100, type: 5 },
      { start: 200, count: 100, type: 0x0f },
    ],
    records: [
      { sector: 100, slots: [{ start: 1, count: 9 }] },
      { sector: 200, slots: [{ start: 1, count: 9 }] },
    ],
  }),
  "GPT: nothing odd": gpt(() => {}),
  "GPT: outside of the usable sectors": gpt(() => {}, [
    { first: 33, last: 40 },
    { first: 64, last: 2040 },
  ]),
  "GPT: unknown revision": gpt((image) =>
    changeHeaders(image, 512, (header) => header.setUint32(8, 0x20000, true))
  ),
  "GPT: all sectors from 0 on are usable": gpt((image) =>
    changeHeaders(image, 512, (header) => header.setBigUint64(40, 0n, true))
  ),
  "GPT: one past the end, one good": gpt(() => {}, [
    { first: 40, last: 2048 },
    { first: 128, last: 200 },
  ]),
  "GPT: one ends before it begins": gpt(() => {}, [
    { first: 41, last: 40 },
    { first: 128, last: 200 },
  ]),
  "GPT: overlapping": gpt(() => {}, [
    { first: 60, last: 70 },
    { first: 50, last: 60 },
  ]),
  "GPT: number 255 and 256": gptImage({
    entryCount: 256,
    partitions: [
      { number: 255, first: 80, last: 90 },
      { number: 256, first: 91, last: 99 },
    ],
  }),
  "GPT: grown": gpt((image) => grown(image, 2 << 20)),
  "GPT: primary bad": gpt((image) => spoil(image, 1)),
  "GPT: primary without a signature": gpt((image) => {
    headerOf(image, 512, 1).setUint8(0, 0);
  }),
  "GPT: backup bad": gpt((image) => spoil(image, 2047)),
  "GPT: grown, primary bad": gpt((image) => {
    spoil(image, 1);
    return grown(image, 2 << 20);
  }),
  "GPT: grown, primary without a signature": gpt((image) => {
    headerOf(image, 512, 1).setUint8(0, 0);
    return grown(image, 2 << 20);
  }),
  "GPT: backup cut off": gpt((image) => image.slice(0, 2015 * 512)),
  "GPT: cut off in the usable sectors": gpt((image) =>
    image.slice(0, 1024 * 512)
  ),
  "GPT: hybrid": gpt((image) => {
    writeBootRecord(image, 0, [
      { type: 0xee, start: 1, count: 63 },
      { type: 0x83, start: 64, count: 64 },
    ]);
  }),
  "GPT: no protective MBR": gpt((image) => {
    writeBootRecord(image, 0, []);
  }),
  "a protective MBR alone": mbrImage({
    slots: [{ type: 0xee, start: 1, count: 2047 }],
  }),
};
