/** Probes a file for the sector size of its partition table. */
import { isCached } from "../sys/page_cache.ts";
import { DescriptorSource } from "./byte_source.ts";
import { type Readable, readAhead } from "./read_ahead.ts";
import { announcesGpt, BOOT_RECORD, probeSectorSize } from "./table.ts";

/** Like {@linkcode probeSectorSize}, but without blocking the event loop. */
export async function probe(readable: Readable): Promise<number | undefined> {
  const { fd, start, name } = readable;
  // Most images have no GPT, and their boot record is cached.
  if (isCached(fd, start, BOOT_RECORD)) {
    const source = new DescriptorSource(fd, readable, name);
    if (!announcesGpt(source)) return undefined;
  }
  return await readAhead(readable, probeSectorSize);
}
