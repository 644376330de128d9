/**
 * A drop-in for losetup of util-linux, for scripts that call it: options, output, exit
 * status and messages are those of version 2.38.1.
 *
 * Options may be abbreviated, and come with operands in any order. Of later versions it
 * has `--loop-ref TEXT`, `--remove DEV...`, and the columns `REF`, `MAJ`, `MIN`,
 * `BACK-MAJ` and `BACK-MIN` for `--output`. Names are bytes, and need not be UTF-8.
 * Requires `--allow-ffi` alone, and for most of it root.
 *
 * Where losetup harms those who use it, this differs. These are all the differences:
 *
 * | losetup | here | because |
 * |---|---|---|
 * | a failed attach detaches what was there | nothing is detached | for each error but `EBUSY` it clears the device, which may be somebody else's |
 * | `-l DEV DEV` attaches one to the other | `unexpected arguments`; the same with each option for tables | who asks for a list does not expect a device to change |
 * | numbers are cut to 32 bits | they are refused: `-b 4294967808`, `/dev/loop4294967296` | what is cut is another sector size, or another device |
 * | a FIFO as FILE hangs | what is neither a regular file nor a block device is refused before it is opened, sometimes with another message | opening waits for ever, or does things |
 * | `--direct-io` is dropped in silence where it cannot be | `Invalid argument`, and nothing is attached | the file is not what it was asked to be |
 * | `-d A BAD` detaches A again | it does not | somebody else may have attached to A meanwhile |
 * | a DEV of more than 127 bytes is cut | it is not | what is cut is another path |
 * | a partition as DEV to attach to stands for its disk | `Inappropriate ioctl for device` | the disk was not named |
 * | a node of no device adds the device | `No such device` | looking at a node should change nothing |
 * | an empty FILE fails for no reason that is true | `No such file or directory` | so it is |
 * | a directory `/dev/loop` empties all lists | it is not looked at | the devices are there |
 * | `-d` throws away what was written last | it is written back first; when that fails, so does `-d`, after detaching | from Linux 6.11 on the last one to close loses it |
 * | `-f FILE` fails when a device has no node, and waits when it is held | it goes on with the next one | one such device is enough to attach nothing any more |
 * | a device that an earlier owner made read-only stays so | it is writable, unless `-r` | a device is what was asked for |
 * | partitions of the last file stay | they are removed, or the device is busy | they show parts of the next file |
 * | a bad `-b` attaches the file for a moment | it is refused before | others see it come and go |
 * | a narrow terminal gets cells on lines of their own | lines stay whole | output is the same wherever it goes |
 * | messages are translated | they are in English | there are no translations |
 * | `write error` of long output does not say why | it does | there is a reason |
 * | a locale must be installed | one whose name ends in `UTF-8` has UTF-8 | the locale is not loaded |
 * | `LOOPDEV_DEBUG` traces | it does nothing | `strace` does |
 * | `--help` in its own words | in ours | they are theirs |
 * | `--version` names this program | it names the version of util-linux, too | both matter |
 *
 * @example In place of losetup, for all scripts
 * ```sh
 * deno install --global --allow-ffi --name losetup jsr:@loopdev/loopdev/losetup
 * losetup --find --show --partscan disk.img
 * ```
 *
 * @module
 */
import { main } from "./lib/losetup/program.ts";

if (import.meta.main) Deno.exitCode = await main(Deno.args);
