/** What a partition table says of a partition. Plain data. */
export interface TableEntry {
  /** The number of the partition, from 1 on; logical partitions of an MBR from 5 on. */
  number: number;
  /** Where it begins on the disk, in bytes. */
  start: number;
  /** Its size in bytes. */
  size: number;
  /** GPT: the type GUID in upper case, as sfdisk prints it. MBR: `"0x83"`, `"0xc"`. */
  type: string;
  /** GPT: the name, unless it is empty. */
  name?: string;
  /** GPT: the GUID of the partition, in upper case. MBR: disk id and number, `"1234abcd-01"`, unless the disk has no id. */
  uuid?: string;
  /**
   * Set for the extended partition of an MBR, of which the logical ones are parts.
   * The size is its full size; Linux shows only its first sectors as a device.
   */
  isContainer?: true;
}

/** The highest number of a partition: Linux has minor numbers for no more. */
export const MAX_NUMBER = 255;

/** What is wrong with a partition of a higher number. */
export function beyondMaximum(number: number): string {
  return `partition ${number} cannot be shown: the highest number in Linux is ${MAX_NUMBER}`;
}
