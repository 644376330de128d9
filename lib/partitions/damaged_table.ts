/**
 * Error thrown when a partition table contradicts itself or the disk.
 *
 * The message describes the damage so that it can follow a colon:
 * `primary GPT header at byte 512 does not match its checksum`.
 */
export class DamagedTable extends Error {
  /** The name of the class. */
  override readonly name: string = "DamagedTable";
}
