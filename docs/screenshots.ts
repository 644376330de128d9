/**
 * Makes the pictures of the README: runs the commands on a terminal, and draws what it
 * shows. As root:
 *
 *     deno task screenshots [DIRECTORY]
 *
 * In a mount namespace of its own, with images that are gone afterwards.
 */
import { attach, type Attachment } from "@loopdev/loopdev";

const DIRECTORY = new URL(".", import.meta.url).pathname;
const CLI = new URL("../cli.ts", import.meta.url).pathname;
/** Where the images are, in a file system of this namespace. */
const IMAGES = "/srv";
const COLUMNS = 96;

async function main(directory: string): Promise<void> {
  run("mount", "-t", "tmpfs", "images", IMAGES);
  const disk = image("disk.img", 256);
  run(
    "sh",
    "-c",
    `printf 'label: gpt\nsize=16M,type=uefi,name=EFI\nsize=160M,name=root\nsize=48M,type=swap,name=swap\n' | sfdisk --quiet ${disk}`,
  );
  const rootfs = image("rootfs-2.squashfs", 64);
  const data = image("data.ext4", 128);
  run("mkfs.ext4", "-q", data);
  run("mkdir", `${IMAGES}/mnt`);

  await using devices = new AsyncDisposableStack();
  const use = async (attaching: Promise<Attachment>): Promise<string> =>
    devices.use(await attaching).path;
  const diskDevice = await use(attach(disk, { partscan: true }));
  await use(attach(rootfs, { readOnly: true, blockSize: 4096 }));
  const dataDevice = await use(attach(data, { reference: "build 7" }));
  run("mount", dataDevice, `${IMAGES}/mnt`);
  devices.defer(() => void run("umount", `${IMAGES}/mnt`));

  const commands = {
    list: "list",
    show: `show ${dataDevice}`,
    partitions: `partitions ${diskDevice}`,
  };
  for (const [name, command] of Object.entries(commands)) {
    await save(name, draw(`loopdev ${command}`, shown(command)));
  }
  await save("doctor", draw("loopdev doctor", shown("doctor", inContainer)));

  async function save(name: string, picture: string): Promise<void> {
    const path = `${directory}/${name}.svg`;
    await Deno.writeTextFile(path, picture);
    console.log(path);
  }
}

/** A command in a world like that of many containers. */
function inContainer(command: string): string {
  const nodes = "mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/urandom c 1 9";
  const right = "setpriv --bounding-set -mknod --inh-caps -mknod";
  return `unshare --mount sh -c "mount -t tmpfs dev /dev; ${nodes}; exec ${right} ${command}"`;
}

function image(name: string, mebibytes: number): string {
  const path = `${IMAGES}/${name}`;
  run("truncate", "--size", `${mebibytes}M`, path);
  return path;
}

function run(command: string, ...args: string[]): string {
  const { code, stdout, stderr } = new Deno.Command(command, { args })
    .outputSync();
  const decoder = new TextDecoder();
  if (code > 1) throw new Error(`${command}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout);
}

/** What a terminal shows of a command. */
function shown(
  command: string,
  world = (command: string) => `exec ${command}`,
): string[] {
  const loopdev = `${Deno.execPath()} run --quiet --allow-ffi ${CLI}`;
  return run(
    "script",
    ...["--quiet", "--return", "--command"],
    `stty cols ${COLUMNS}; ${world(`${loopdev} ${command}`)}`,
    "/dev/null",
  ).trimEnd().replace(/(Linux \d+\.\d+)\S*/, "$1").split(/\r?\n/).flatMap(wrap);
}

/** As a terminal breaks lines. Escape sequences take no room. */
function wrap(line: string): string[] {
  const lines = [""];
  let column = 0;
  for (const part of line.split(SEQUENCE)) {
    if (SEQUENCE.test(part)) {
      lines[lines.length - 1] += part;
      continue;
    }
    for (const character of part) {
      if (column === COLUMNS) {
        lines.push("");
        column = 0;
      }
      lines[lines.length - 1] += character;
      column++;
    }
  }
  return lines;
}

// deno-lint-ignore no-control-regex
const SEQUENCE = /(\x1b\[[\d;]*m)/;
const COLOURS: Record<string, string> = {
  "32": "#7ec699",
  "33": "#e6c07b",
  "1;31": "#f47067",
};

const CHARACTER = { width: 8.4, height: 18 };

function draw(command: string, lines: string[]): string {
  const width = COLUMNS * CHARACTER.width + 32;
  const height = (lines.length + 1) * CHARACTER.height + 28;
  const rows = [`<tspan fill="#8b949e">$ </tspan>${escape(command)}`]
    .concat(lines.map(coloured))
    .map((row, index) =>
      `<text x="16" y="${28 + index * CHARACTER.height}">${row}</text>`
    );
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="ui-monospace, 'DejaVu Sans Mono', monospace" font-size="14">
<rect width="100%" height="100%" rx="8" fill="#161b22"/>
<g fill="#e6edf3" xml:space="preserve">
${rows.join("\n")}
</g>
</svg>
`;
}

function coloured(line: string): string {
  let colour: string | undefined;
  return line.split(SEQUENCE).map((part) => {
    if (SEQUENCE.test(part)) {
      colour = COLOURS[part.slice(2, -1)];
      return "";
    }
    const text = escape(part);
    return colour === undefined || text === ""
      ? text
      : `<tspan fill="${colour}">${text}</tspan>`;
  }).join("");
}

function escape(text: string): string {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

await main(Deno.args[0] ?? DIRECTORY.replace(/\/$/, ""));
