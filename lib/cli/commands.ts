/** The commands. */
import type { Commands, Entry } from "./command.ts";

/** All commands, in the order of the help. */
// Each is loaded when it is needed. The specifiers must be literal: a computed one
// needs --allow-read, and is lost to deno compile.
export const COMMANDS: Commands = {
  attach: {
    operands: "FILE...",
    summary: "attach files to devices that outlive the command",
    load: () => import("./attach.ts"),
  },
  run: {
    operands: "FILE... -- COMMAND...",
    summary: "attach files, run a command, detach them",
    load: () => import("./run.ts"),
  },
  mount: {
    operands: "FILE|DEV DIR",
    summary: "mount a file system for everybody to see",
    load: () => import("./mount.ts"),
  },
  unmount: {
    operands: "DIR...",
    summary: "write back and unmount",
    load: () => import("./unmount.ts"),
  },
  detach: {
    operands: "DEV...",
    summary: "detach devices and wait until they are free",
    load: () => import("./detach.ts"),
  },
  list: {
    operands: "",
    summary: "attached devices",
    load: () => import("./list.ts"),
  },
  find: {
    operands: "FILE",
    summary: "devices of a file; exit status 1 when there is none",
    load: () => import("./find.ts"),
  },
  show: {
    operands: "DEV",
    summary: "everything about one device",
    load: () => import("./show.ts"),
  },
  set: {
    operands: "DEV",
    summary: "change a live device",
    load: () => import("./set.ts"),
  },
  swap: {
    operands: "DEV FILE",
    summary: "exchange the file of a read-only device",
    load: () => import("./swap.ts"),
  },
  resize: {
    operands: "DEV",
    summary: "take over the present size of the file",
    load: () => import("./resize.ts"),
  },
  partitions: {
    operands: "DEV|FILE",
    summary: "make partitions appear; list them",
    load: () => import("./partitions.ts"),
  },
  add: {
    operands: "[N]",
    summary: "add a device",
    load: () => import("./add.ts"),
  },
  remove: {
    operands: "[N]",
    summary: "remove a device that nobody uses",
    load: () => import("./remove.ts"),
  },
  mknod: {
    operands: "DEV DIR",
    summary: "make a node of a device in a directory",
    load: () => import("./mknod.ts"),
  },
  doctor: {
    operands: "",
    summary: "why loop devices do not work here, and what to do",
    load: () => import("./doctor.ts"),
  },
  completions: {
    operands: "SHELL",
    summary: "a script that completes command lines in bash, zsh or fish",
    load: () => import("./completions.ts"),
  },
};

/** The entry of a command; `undefined` when there is none. */
export function entryOf(name: string): Entry | undefined {
  return Object.hasOwn(COMMANDS, name) ? COMMANDS[name] : undefined;
}
