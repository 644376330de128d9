import { describe } from "@std/testing/bdd";
import { onDevices } from "../device/support.ts";
import { MOUNTING } from "./child.ts";
import { ALL, failEachCall, failOnOtherThreads } from "./injection.ts";

describe("mounting: every system call fails in turn", onDevices, () => {
  const names = Object.keys(MOUNTING);
  // Mounting on a target makes all the calls that a private mount takes.
  names.filter((name) => ALL || name !== "mount").forEach(failEachCall);
  names.filter((name) => ALL || name.endsWith("target"))
    .forEach(failOnOtherThreads);
});
