/** Lists the commands. */
import type { Commands } from "./command.ts";

/** All commands, in the order of the help. */
// A command is loaded when it is needed. The specifiers must be literal, because a
// computed one needs --allow-read and is not found by deno compile.
export const COMMANDS: Commands = {
  attach: {
    operands: "FILE...",
    summary: "attach files to devices that outlive the command",
    load: () => import("./attach.ts"),
  },
  run: {
    operands: "FILE... [-- COMMAND...]",
    summary: "attach files, run a command, detach them",
    load: () => import("./run.ts"),
  },
  mount: {
    operands: "FILE|DEV DIR",
    summary: "mount a file system where every process sees it",
    load: () => import("./mount.ts"),
  },
  unmount: {
    operands: "DIR...",
    alias: "umount",
    summary: "write back and unmount",
    load: () => import("./unmount.ts"),
  },
  detach: {
    operands: "[DEV...]",
    summary: "detach devices and wait until they are free",
    load: () => import("./detach.ts"),
  },
  list: {
    operands: "",
    alias: "ls",
    summary: "list attached devices",
    load: () => import("./list.ts"),
  },
  find: {
    operands: "FILE",
    summary: "print the devices of a file; exit status 1 if there are none",
    load: () => import("./find.ts"),
  },
  show: {
    operands: "DEV...",
    summary: "show everything about devices",
    load: () => import("./show.ts"),
  },
  set: {
    operands: "DEV",
    summary: "change a live device",
    load: () => import("./set.ts"),
  },
  swap: {
    operands: "DEV FILE",
    summary: "replace the file of a read-only device",
    load: () => import("./swap.ts"),
  },
  resize: {
    operands: "DEV",
    summary: "resize a device to the size of its file",
    load: () => import("./resize.ts"),
  },
  partitions: {
    operands: "DEV|FILE",
    summary: "make partitions appear, and list them",
    load: () => import("./partitions.ts"),
  },
  add: {
    operands: "[N]",
    summary: "add a device",
    load: () => import("./add.ts"),
  },
  remove: {
    operands: "[N]",
    summary: "remove an unused device",
    load: () => import("./remove.ts"),
  },
  mknod: {
    operands: "DEV DIR",
    summary: "create a node of a device in a directory",
    load: () => import("./mknod.ts"),
  },
  doctor: {
    operands: "",
    summary: "diagnose why loop devices do not work here",
    load: () => import("./doctor.ts"),
  },
  completions: {
    operands: "SHELL",
    summary: "print a completion script for bash, zsh or fish",
    load: () => import("./completions.ts"),
  },
  help: {
    operands: "[COMMAND]",
    summary: "explain a command",
    load: () => import("./help.ts"),
  },
};
