/** Options that select attached devices. */
import type { ListFilter } from "../devices.ts";
import type { Arguments } from "./arguments.ts";
import type { Options } from "./command.ts";
import { fileOf } from "./files.ts";

/** Options of the commands that select devices. */
export const FILTERS: Options = {
  "loop-ref": {
    value: "NAME",
    help: "the devices that were attached with that --loop-ref",
  },
  deleted: { help: "the devices whose file has been deleted" },
  under: {
    value: "DIR",
    help: "the devices whose file is in that directory, or below it",
  },
};

/** Returns the filter that the options describe, or `undefined` if none of them was given. */
export function listFilter(given: Arguments): ListFilter | undefined {
  const reference = given.value("loop-ref");
  const under = given.value("under");
  const filter = {
    ...(reference !== undefined && { reference }),
    ...(given.flag("deleted") && { deleted: true }),
    ...(under !== undefined && { under: fileOf(under) }),
  };
  return Object.keys(filter).length === 0 ? undefined : filter;
}
