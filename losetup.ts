/**
 * A drop-in for losetup of util-linux, for scripts that call it. Options, output, exit
 * status and messages are those of version 2.38.1.
 *
 * Options may be abbreviated and mixed with operands. From later versions it has
 * `--loop-ref TEXT`, `--remove DEV...`, and the columns `REF`, `MAJ`, `MIN`, `BACK-MAJ`
 * and `BACK-MIN` for `--output`. Names are bytes and need not be UTF-8. Requires only
 * `--allow-ffi`, and root for most actions.
 *
 * It deviates from losetup where that can do damage. This table lists every deviation:
 *
 * | losetup | here | because |
 * |---|---|---|
 * | a failed attach detaches the previous file | nothing is detached | on any error except `EBUSY`, losetup clears the device, which may belong to another process |
 * | `-l DEV DEV` attaches one device to the other | `unexpected arguments`, also with the other options for tables | a request for a list must not change a device |
 * | `-D DEV` detaches every device | `unexpected arguments` | it is mostly meant to be `-d DEV` |
 * | numbers are truncated to 32 bits | they are refused: `-b 4294967808`, `/dev/loop4294967296` | a truncated number means another sector size or another device |
 * | a FIFO as FILE hangs | files that are neither regular nor block devices are refused before they are opened, sometimes with another message | opening them can wait forever or have side effects |
 * | `--direct-io` is silently ignored if it is not possible | `Invalid argument`, and nothing is attached | the result would not be what was requested |
 * | `-d A BAD` detaches A again | A is detached once | another process may have attached a file to A in the meantime |
 * | a DEV of more than 127 bytes is truncated | it is used in full | a truncated path is another path |
 * | attaching to a partition attaches to its disk | `Inappropriate ioctl for device` | the disk was not named |
 * | a node without a device adds the device | `No such device` | examining a node must not change anything |
 * | an empty FILE fails with a misleading error | `No such file or directory` | that is the actual error |
 * | a directory `/dev/loop` empties all lists | it is ignored | the devices still exist |
 * | `-d` discards the data written last | it is written back first; if that fails, so does `-d`, after detaching | from Linux 6.11 on, the last process to close the device loses it |
 * | `-f FILE` fails if a device has no node, and waits if it is held exclusively | the next device is tried | a single such device would prevent every attach |
 * | a device that an earlier user made read-only stays read-only | it is writable, unless `-r` is given | the device must be what was requested |
 * | partitions of the previous file stay | they are removed, or the device is busy | they would show parts of the new file |
 * | an invalid `-b` attaches the file for a moment | it is refused beforehand | other programs would see the device come and go |
 * | `-b SIZE DEV` of a mounted device depends on the kernel | `Device or resource busy` | kernels before 6.17 change it under the file system |
 * | a narrow terminal wraps cells | lines stay whole | output is the same everywhere |
 * | messages are translated | they are in English | there are no translations |
 * | `write error` of long output has no reason | the reason is printed | the reason is known |
 * | a locale must be installed | any locale whose name ends in `UTF-8` means UTF-8 | the locale is not loaded |
 * | `LOOPDEV_DEBUG` traces | it is ignored | `strace` traces as well |
 * | `--help` is that of util-linux | `--help` has its own text | the original text belongs to util-linux |
 * | `--version` names util-linux | it also names this program | both versions matter |
 *
 * @example Replace losetup for all scripts
 * ```sh
 * deno install --global --allow-ffi --name losetup jsr:@loopdev/loopdev/losetup
 * losetup --find --show --partscan disk.img
 * ```
 *
 * @module
 */
import { main } from "./lib/losetup/program.ts";

if (import.meta.main) Deno.exitCode = await main(Deno.args);
