/** Command lines on which losetup and ours are compared. */
import { ODD_NAMES, type World } from "./world.ts";

/** A command line. */
export interface Case {
  /** The command line and its situation. */
  readonly name: string;
  /**
   * The arguments, with one character for each byte; `$A` and the like represent
   * devices.
   */
  readonly args: string[];
  /** Preparation before the command line. */
  readonly given?: (world: World) => void;
  readonly user?: "nobody";
  readonly env?: Record<string, string>;
  /** `true` if losetup would hang. */
  readonly hangs?: boolean;
  /** `true` if every visible device will be detached. */
  readonly detachesAll?: boolean;
  /** Deviation from losetup: the first cell of a row in the table of deviations. */
  readonly differs?: string;
}

/** Words separated by blanks, or a list of words. */
type Line = string | readonly string[];

type More = Omit<Case, "name" | "args">;

function words(line: string): string[] {
  return line.split(" ").filter((word) => word !== "");
}

/**
 * Declares command lines in one situation, with their deviations. A line is a text, or
 * a list of words if these contain blanks.
 */
function situation(
  what: string,
  more: More,
  lines: readonly (Line | readonly [Line, More])[],
): Case[] {
  return lines.map((line) => {
    const isPair = typeof line !== "string" && typeof line[1] === "object";
    const [typed, own] = isPair
      ? line as readonly [Line, More]
      : [line as Line, {}];
    const args = typeof typed === "string" ? words(typed) : [...typed];
    const shown = args.map((arg) =>
      /^[!-~]+$/.test(arg) ? arg : JSON.stringify(arg)
    );
    return {
      name: ["losetup", ...shown].join(" ") + (what && ` (${what})`),
      args,
      ...more,
      ...own,
    };
  });
}

const MiB = 1 << 20;

const two = (world: World) => {
  world.attach("A", "disk.img", { offset: MiB, sizelimit: 2 * MiB });
  world.attach("B", "odd.img", { readOnly: true, partscan: true });
};
const one = (world: World) => world.attach("A", "disk.img");
const onePart = (world: World) =>
  world.attach("A", "disk.img", { offset: MiB, sizelimit: MiB });
const nested = (world: World) => {
  world.attach("A", "disk.img");
  world.nest("B", "A");
};
const pending = (world: World) => {
  world.attach("A", "disk.img");
  world.hold("A");
  world.clear("A");
};

const HELP = "`--help` is that of util-linux";
const CUT = "a DEV of more than 127 bytes is truncated";
const VERSION = "`--version` names util-linux";
const TWO_DEVICES = "`-l DEV DEV` attaches one device to the other";
const DIRECT_IO = "`--direct-io` is silently ignored if it is not possible";
const DETACHES = "a failed attach detaches the previous file";
const WRAPS = "numbers are truncated to 32 bits";
const HANGS = "a FIFO as FILE hangs";
const AGAIN = "`-d A BAD` detaches A again";
const READ_ONLY =
  "a device that an earlier user made read-only stays read-only";
const PARTITION = "attaching to a partition attaches to its disk";
const STALE = "a node without a device adds the device";
const NO_NAME = "an empty FILE fails with a misleading error";
const DEV_LOOP = "a directory `/dev/loop` empties all lists";

const OPTIONS = situation("", {}, [
  "--nope",
  "--nope=3",
  "-X",
  "-lX",
  "-:",
  "-W",
  "--f",
  "--al",
  "--a",
  "--l",
  "--lis",
  "--s",
  "--o",
  "--d",
  "--n",
  "--r",
  "--re",
  "--v",
  "--de",
  "--j",
  "--",
  "--=",
  "--=x",
  "-",
  "--detach",
  "--detach-a=3",
  "-d",
  "-o",
  "-ro",
  "--offset",
  "--all=3",
  "--list=",
  "--sho $A",
  "--direct",
  "--direct-io=maybe $A",
  "--direct-io= $A",
  "--direct-io=ON $A",
  "--direct-io on $A",
  "--json --raw",
  "-J --raw -V",
  "-a -d $A",
  "-f -j disk.img",
  "-D -d $A",
  "-l -f",
  "-l -c $A",
  "-j disk.img -c $A",
  "-d $A -f",
  "-D -l",
  "-f -a",
  "-O",
  "-O bogus",
  "-O NAME,bogus",
  "-O bogus,NAME",
  "-O ,",
  "-O +",
  "-O NAME,,RO",
  "-O NAME,",
  "-O ,NAME",
  "-O +bogus",
  "-O=NAME",
  "-O NAM",
  "-O NAMES",
  ["-O", ""],
  ["-O", " NAME"],
  "-n",
  "-v",
  "--verbose",
  "--output-all",
  "-J -n",
  "-J -J",
  "-J --",
  "--raw -a",
  "-c",
  "-j",
  "--set-capacity",
  ["--offset="],
  "-f extra1 extra2",
  "-fv --bogus",
  "-o 1 -o x -f",
  ["--\xff"],
  ["-\xff"],
  ["--help", { differs: HELP }],
  ["-V", { differs: VERSION }],
  ["--version", { differs: VERSION }],
  ["$A disk.img -r -a", { env: { POSIXLY_CORRECT: "1" } }],
  ["-r $A disk.img", { env: { POSIXLY_CORRECT: "" } }],
]);

const LISTS = [
  ...situation("nothing attached", {}, [
    "",
    "-a",
    "-l",
    "-J",
    "--raw",
    "-J -l",
    "-n -l",
    "-n -l -O RO,NAME",
    "-l --output-all",
    "$A",
    "-l $A",
    "-J -l $A",
    "-J $A",
    "-n -l $A",
    "--raw -l $A",
    "-l --output-all $A",
    "-l --output-all -J $A",
    "-l --output-all --raw $A",
    "-O NAME,BACK-FILE $A",
    "-j disk.img",
    "-f",
    "-f -f",
    "--find --json",
    "-L -f",
  ]),
  ...situation("two attached", { given: two }, [
    "",
    "-a",
    "-l",
    "-J",
    "--raw",
    "--raw -n -l",
    "-n",
    "-n -l",
    "-n -l --output-all",
    "$A",
    "$B",
    "-J $A",
    "-l $B",
    "-J -a",
    "-a -l",
    "-a $A",
    "-a --",
    "-j disk.img",
    "-j disk.img -J",
    "-j disk.img -l -J",
    "-j disk.img -o 1M",
    "-j disk.img -o 2M",
    "-j disk.img -o 2M -l",
    "-j disk.img -o 2M -l -J",
    "-j disk.img other.img",
    "-j disk.img -j odd.img",
    "-l -j odd.img",
    "-j link.img",
    "-j hard.img",
    "-j ./directory/../disk.img",
    "-j $PWD/disk.img",
    "-j missing",
    ["-j", ""],
    "-j directory",
    "-j $A",
    "-l --output-all",
    "-l --output-all -J",
    "-l --output-all --raw",
    "--output-all $A",
    "-O NAME,name,Back-File",
    "-O NAME $A",
    "-O +MAJ:MIN,PARTSCAN",
    "-O BACK-FILE,NAME",
    "-O LOG-SEC,RO -J",
    "-ONAME -n",
    "-nlO NAME",
    "-O NAME -O RO",
    "-O RO --output-all",
    "--output-all -O +NAME",
    "-o 0 -a",
    "-o 1M",
    "--sizelimit 0 -a",
    "-r -a",
    "-b 512 -a",
    "--direct-io=off -a",
    "--direct-io -a",
    "-L -a",
    ["-l", { env: { LC_ALL: "C" } }],
  ]),
  ...situation("names in /dev and elsewhere", { given: one }, [
    "$a",
    "-l $a",
    "$PWD/node",
    "-l $PWD/node",
    "-l -J $PWD/node",
    "-l --output-all $PWD/node",
    "$PWD/devlink",
    "-l $PWD/devlink",
    "./node",
    "-l node",
    "-d node",
    "-c devlink",
    "-l $PWD/directory/$a",
    "/dev/../dev/$a",
    "-l /dev//$a",
    "-l /$A",
    "$A/",
    "/dev/nonexist",
    "/dev/null",
    "-l /dev/null",
    "$PWD/disk.img",
    "$PWD/directory",
    "$D",
    "-l $D",
    [""],
    ["-l", ""],
  ]),
];

const SIZES = [
  ..."1M 1MiB 1m 1kib 1KB 1kB 1MB 1.5M 0x1000 0x10K 010 +1 1.10K 1.9K 1.0.5K 1.K 0.3K 7E 0 1T"
    .split(" "),
  ..."1.5 .5K 1B 512s 1Ki -5 09 1e3 1kIb 1KX 1.b 0x -0 +-5".split(" "),
  ..."99999999999999999999 18446744073709551615 9223372036854775807 9223372036854775808 16E 1Z"
    .split(" "),
];

const ATTACHING = [
  ...situation("", {}, [
    ...SIZES.map((size) => ["-o", size, "$A", "disk.img"]),
    ["-o", "", "$A", "disk.img"],
    ["-o", " 1", "$A", "disk.img"],
    ["-o", "1 ", "$A", "disk.img"],
    ["-o", "\t4K", "$A", "disk.img"],
    "--sizelimit 4K $A disk.img",
    "--sizelimit 1000 $A disk.img",
    "--sizelimit 256 $A disk.img",
    "--sizelimit 1G $A disk.img",
    "--sizelimit x $A disk.img",
    "--sizelimit 9223372036854775808 $A disk.img",
    "-o 9M --sizelimit 2M $A disk.img",
    "-o 11M $A disk.img",
    "-o 500 $A odd.img",
    "-b 4096 $A disk.img",
    "-b 4K $A disk.img",
    "-b 64K $A disk.img",
    "-b 512 $A disk.img",
    "-b 0 $A disk.img",
    "-b 1000 $A disk.img",
    "-b 256 $A disk.img",
    "-b 128K $A disk.img",
    "-b x $A disk.img",
    ["-b 4294967808 $A disk.img", { differs: WRAPS }],
    "$A disk.img",
    "$a disk.img",
    "--show $A disk.img",
    "-r $A disk.img",
    "-P --show $A parts.img",
    "$A disk.img -rP --show",
    "-- $A disk.img",
    "-v $A disk.img",
    "$A disk.img extra",
    "-n $D",
    "$A odd.img",
    "$A tiny.img",
    "$A empty.img",
    "$A missing",
    "$A directory",
    ["-r $A directory", { differs: HANGS }],
    "$A fifo",
    ["-r $A fifo", { hangs: true, differs: HANGS }],
    ["$A socket", { differs: HANGS }],
    "$A /dev/null",
    "$A /dev/loop-control",
    "$A disk.img/x",
    [["$A", ""], { differs: NO_NAME }],
    "$A $B",
    "$A $A",
    "$A link.img",
    "$A ./directory/../disk.img",
    "$A $PWD/disk.img",
    "$A ro/disk.img",
    "-r $A ro/disk.img",
    "$D disk.img",
    "--show $D disk.img",
    "$D missing",
    "$PWD/node disk.img",
    "$PWD/devlink --show disk.img",
    "$PWD/directory/$a disk.img",
    "$PWD/disk.img disk.img",
    "/dev/null disk.img",
    "/dev/nonexist disk.img",
    "/dev/nonexist missing",
    "/dev/null missing",
    "x disk.img",
    "-f disk.img",
    "--find --show disk.img",
    "-f --show -P parts.img",
    "-rf --show disk.img",
    "--find --show --partscan --read-only parts.img",
    "-f --show odd.img",
    "-f missing",
    "-f --show directory",
    "-f --show -o 1M --sizelimit 1M -b 1024 disk.img",
    "--show -f",
    "-r -f",
    "-o 5 -f",
    "-P",
    "--show",
    "$D",
    "/dev/loop1048576 disk.img",
    "/dev/loop-1 disk.img",
    "/dev/loop disk.img",
    "$W disk.img",
    ["$X disk.img", { differs: WRAPS }],
  ]),
  ...situation("attached already", { given: one }, [
    "$A other.img",
    "$A disk.img --show",
    "$A missing",
    "$A $A",
    "$B $A",
    "-b 1000 $A disk.img",
    ["-l $B $A", { differs: TWO_DEVICES }],
    ["-J $B $A", { differs: TWO_DEVICES }],
    ["$A /dev/null", { differs: HANGS }],
    ["$A /dev/loop-control", { differs: DETACHES }],
  ]),
  ...situation("nested", { given: nested }, [
    "$A $B",
    "-a",
    "-l",
    "-l --output-all",
    "-d $A",
    "-d $B",
    "-d $A $B",
    "-d $B $A",
    "-j $A",
    "-j disk.img",
  ]),
  ...situation("made read-only by an earlier owner", {
    given: (world) => world.makeReadOnly("A"),
  }, [["$A disk.img", { differs: READ_ONLY }], "-r $A disk.img"]),
  ...situation("held exclusively", {
    given: (world) => world.holdExclusively("A"),
  }, ["$A disk.img", "-l $A"]),
];

const DIRECT = [
  ...situation("", {}, [
    "--direct-io $A disk.img",
    "--direct-io=on --show $A disk.img",
    "--direct-io=off $A disk.img",
    "--direct-io -o 512 $A disk.img",
    "--direct-io -o 1M -b 4096 $A disk.img",
    ["--direct-io -o 100 $A disk.img", { differs: DIRECT_IO }],
    "--direct-io -f --show disk.img",
    "--direct-io $A missing",
    "--direct-io",
    "--direct-io $A",
  ]),
  ...situation("attached", { given: one }, [
    "--direct-io $A",
    "--direct-io=on $A",
    "--direct-io=off $A",
    "--direct-io -d $A",
    "--direct-io $B",
    "--direct-io /dev/null",
    "-l --direct-io $A",
    "-b 4096 $A",
    "-b 512 $A",
    "-b 0 $A",
    "-b 1000 $A",
    "-b 128K $A",
    ["-b 4294967808 $A", { differs: WRAPS }],
    "-b 4096 $B",
    "-b 1000 $B",
    "-b 4096 --direct-io $A",
    "-b 512 -d $A",
    "-o 512 $A",
    "--sizelimit 0 $A",
    "-P $A",
    "--show $A",
    "-r $A",
  ]),
  ...situation("direct I/O at an odd offset", {
    given: (world) => world.attach("A", "disk.img", { offset: 100 }),
  }, ["--direct-io $A", "-l $A"]),
  ...situation("with direct I/O", {
    given: (world) => world.attach("A", "disk.img", { directIo: true }),
  }, ["--direct-io=off $A", "-l", "-J", "-b 4096 $A"]),
  ...situation("held exclusively", {
    given: (world) => {
      world.attach("A", "disk.img");
      world.holdExclusively("A");
    },
  }, ["-b 4096 $A", "--direct-io $A", "-c $A", "-d $A"]),
];

const OVERLAPS = [
  ...situation("whole file attached", { given: one }, [
    "-L -f --show disk.img",
    "-L -f disk.img",
    "-L -f --show link.img",
    "-L -f --show hard.img",
    "-L -r -f --show disk.img",
    "-L -f --show -o 1M disk.img",
    "-L -f --show --sizelimit 1M disk.img",
    "-L $B disk.img",
    "-L --show $B other.img",
    "-L $A disk.img",
    "-L $B missing",
    "-L -f missing",
    "--nooverlap --find --show $PWD/disk.img",
    "-L $B",
  ]),
  ...situation("read-only", {
    given: (world) => world.attach("A", "disk.img", { readOnly: true }),
  }, ["-L -f --show disk.img", "-L -r -f --show disk.img"]),
  ...situation("part of a file attached", { given: onePart }, [
    "-L -f --show -o 1M --sizelimit 1M disk.img",
    "-L -f --show -o 2M disk.img",
    "-L $B -o 2M --sizelimit 1M disk.img",
    "-L $B --sizelimit 1M disk.img",
    "-L $B --sizelimit 1025K disk.img",
    "-L $B -o 1535K disk.img",
    "-L $B disk.img",
  ]),
  ...situation("being detached", { given: pending }, [
    "-L -f --show disk.img",
    "-L $B disk.img",
  ]),
];

const DETACHING = [
  ...situation("two attached", { given: two }, [
    "-d $A",
    "-d $A $B",
    "--detach $A $B",
    "--detach=$B",
    "-d $A -d $B",
    "-d $A $C $B",
    "-d $C",
    "-d $C $A",
    "-d /dev/null",
    ["-d $A /dev/null $B", { differs: AGAIN }],
    ["-d $C $D $A", { differs: AGAIN }],
    "-d $D",
    ["-d", ""],
    "-d $PWD/disk.img",
    "-d $PWD/node",
    "-d $PWD/devlink $B",
    "-d $A $A",
    "-d $A -r",
    ["-d $PWD/stale", { differs: STALE }],
    [`$PWD/${"deep/".repeat(30)}node`, { differs: CUT }],
    ["-D", { detachesAll: true }],
    ["--detach-all", { detachesAll: true }],
    ["-D -O NAME", { detachesAll: true }],
    ["-J -D extra", {
      detachesAll: true,
      differs: "`-D DEV` detaches every device",
    }],
  ]),
  ...situation("nothing attached", {}, [
    "-d $A",
    "-d $A $B",
    ["-D", { detachesAll: true }],
  ]),
  ...situation("held", {
    given: (world) => {
      world.attach("A", "disk.img");
      world.hold("A");
    },
  }, ["-d $A", "-d $A $A", "-c $A", ["-D", { detachesAll: true }]]),
  ...situation("being detached", { given: pending }, [
    "$A",
    "-l $A",
    "-d $A",
    "-a",
    "$A disk.img",
    "-j disk.img",
  ]),
  ...situation("grown", {
    given: (world) => {
      world.attach("A", "disk.img");
      world.grow("disk.img", 20 * MiB);
    },
  }, [
    "-c $A",
    "--set-capacity $A",
    "--set-capacity=$A",
    "-c $A $B",
    "-c $B",
    "-c $A -c $B",
    "-c $D",
    "-c /dev/null",
    "-c $A -l",
    "-c $A -o 5",
    "-c $PWD/node",
    "-O NAME -c $C",
  ]),
];

const ODD = [
  ...situation("", {}, [
    ...ODD_NAMES.map((name) => ["--show", "$A", "--", name]),
    ["-f", "--show", "\xff"],
    ["$A", "missing\xff"],
    ["$A", "\xe7\x94\xbb missing"],
    ["-j", "missing\xff"],
    ["-d", "\xff"],
    ["\xff"],
    ["-O", "\xff"],
    ["-o", "\xff", "$A", "disk.img"],
    ["--direct-io=\xff", "$A"],
  ]),
  ...ODD_NAMES.flatMap((name) => {
    const shown = JSON.stringify(name);
    const given = (world: World) => world.attachBytes("A", name);
    return situation(`attached: ${shown}`, { given }, ["-l", "-J"]);
  }),
  ...["new\nline", "\xff", "\xe7\x94\xbb\xe5\x83\x8f", "\\x41", "a b"]
    .flatMap((name) => {
      const shown = JSON.stringify(name);
      const given = (world: World) => world.attachBytes("A", name);
      return situation(`attached: ${shown}`, { given }, [
        "-a",
        "--raw",
        ["-l", { env: { LC_ALL: "C" } }],
        ["-j", name],
        ["-l", "-O", "BACK-FILE,NAME"],
      ]);
    }),
  ...situation("deleted", {
    given: (world) => world.attachDeleted("A", "gone.img"),
  }, [
    "-a",
    "-l",
    "-j gone.img",
    ["-j", "gone.img (deleted)"],
    ["-j", "$PWD/gone.img (deleted)"],
    ["-j", "./gone.img (deleted)"],
    ["-j", "directory/../gone.img (deleted)"],
  ]),
];

const WORLDS = [
  ...situation("a partition", {
    given: (world) => world.attachPartition("A"),
  }, [
    "$P",
    "-l $P",
    "-d $P",
    "-c $P",
    "-b 512 $P",
    ["$P disk.img", { differs: PARTITION }],
    "$B $P",
    "-l",
  ]),
  ...situation("a lost node", {
    given: (world) => {
      two(world);
      world.loseNode("A");
    },
  }, [
    "-a",
    "-l",
    "$A",
    "-l $A",
    "-j disk.img",
    "-d $A",
    "-d $B",
    "-c $A",
    "-d $PWD/node",
    "$PWD/node",
    "-L $C disk.img",
    ["-D", { detachesAll: true }],
  ]),
  ...situation("a lost node, nothing attached", {
    given: (world) => world.loseNode("A"),
  }, ["$A disk.img", "--show $A missing", "-l $A"]),
  ...situation("/dev/loop", {
    given: (world) => {
      two(world);
      world.makeDevLoop();
    },
  }, [
    ["-a", { differs: DEV_LOOP }],
  ]),
  ...situation("nobody, two attached", { given: two, user: "nobody" }, [
    "",
    "-a",
    "-l",
    "$A",
    "-l $A",
    "-l $C",
    "$C",
    "-l --output-all",
    "-J -l --output-all",
    "-j disk.img",
    "-j $PWD/disk.img",
    "-j link.img",
    "-j hard.img",
    "-j secret.img",
    "-j missing",
    "-f",
    "-f disk.img",
    "-f secret.img",
    "-f missing",
    "--show -f disk.img",
    "$C disk.img",
    "$C missing",
    "$C secret.img",
    "-r $C disk.img",
    "$D disk.img",
    "-d $A",
    "-d $A $B",
    "-d $C",
    "-c $A",
    "--direct-io $A",
    "-b 4096 $A",
    "-L -f disk.img",
    "-L $C disk.img",
    ["-D", { detachesAll: true }],
    "$PWD/node",
  ]),
  ...situation("nobody, who may use the device", {
    given: (world) => world.share("A"),
    user: "nobody",
  }, [
    "$A disk.img",
    "$A secret.img",
    "-r $A disk.img",
    "-P $A parts.img",
    "--direct-io $A disk.img",
    "-d $A",
    "-l $A",
  ]),
  ...situation("nobody, who may use the device that is attached", {
    given: (world) => {
      world.share("A");
      world.attach("A", "disk.img");
    },
    user: "nobody",
  }, [
    "-d $A",
    "-c $A",
    "--direct-io $A",
    "-b 4096 $A",
    "$A",
    "-L $A disk.img",
  ]),
];

/** All command lines. */
export const CASES: readonly Case[] = [
  ...OPTIONS,
  ...LISTS,
  ...ATTACHING,
  ...DIRECT,
  ...OVERLAPS,
  ...DETACHING,
  ...ODD,
  ...WORLDS,
];
