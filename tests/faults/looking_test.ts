import { describe } from "@std/testing/bdd";
import { onDevices } from "../device/support.ts";
import { LOOKING } from "./child.ts";
import { failEachCall } from "./injection.ts";

describe("looking: every system call fails in turn", onDevices, () => {
  Object.keys(LOOKING).forEach(failEachCall);
});
