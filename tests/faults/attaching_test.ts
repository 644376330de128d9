import { describe } from "@std/testing/bdd";
import { onDevices } from "../device/support.ts";
import { ATTACHING } from "./child.ts";
import { failEachCall } from "./injection.ts";

describe("attaching: every system call fails in turn", onDevices, () => {
  Object.keys(ATTACHING).forEach(failEachCall);
});
