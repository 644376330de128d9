/** Names of partition types. */

// UEFI specification, table "Defined GPT Partition Entry - Partition Type GUIDs"; the
// Discoverable Partitions Specification; for MBR the numbers of fdisk.
const NAMES: Readonly<Record<string, string>> = {
  "C12A7328-F81F-11D2-BA4B-00A0C93EC93B": "EFI System",
  "21686148-6449-6E6F-744E-656564454649": "BIOS boot",
  "0FC63DAF-8483-4772-8E79-3D69D8477DE4": "Linux filesystem",
  "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F": "Linux swap",
  "E6D6D379-F507-44C2-A23C-238F2A3DF928": "Linux LVM",
  "A19D880F-05FC-4D3B-A006-743F0F84911E": "Linux RAID",
  "CA7D7CCB-63ED-4C53-861C-1742536059CC": "Linux LUKS",
  "BC13C2FF-59E6-4262-A352-B275FD6F7172": "Linux extended boot",
  "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709": "Linux root (x86-64)",
  "B921B045-1DF0-41C3-AF44-4C6F280D3FAE": "Linux root (ARM-64)",
  "933AC7E1-2EB4-4F13-B844-0E14E2AEF915": "Linux home",
  "EBD0A0A2-B9E5-4433-87C0-68B6B72699C7": "Microsoft basic data",
  "E3C9E316-0B5C-4DB8-817D-F92DF00215AE": "Microsoft reserved",
  "0x5": "Extended",
  "0x7": "HPFS/NTFS/exFAT",
  "0xb": "W95 FAT32",
  "0xc": "W95 FAT32 (LBA)",
  "0xe": "W95 FAT16 (LBA)",
  "0xf": "W95 Ext'd (LBA)",
  "0x82": "Linux swap",
  "0x83": "Linux",
  "0x8e": "Linux LVM",
  "0xef": "EFI (FAT-12/16/32)",
  "0xfd": "Linux raid autodetect",
};

/** Returns the name of a type, or the type itself if its name is unknown. */
export function partitionTypeName(type: string): string {
  return Object.hasOwn(NAMES, type) ? NAMES[type]! : type;
}
