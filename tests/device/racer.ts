/** An unprivileged user who replaces a name in his own directory as fast as possible. */
import type { Scratch } from "./support.ts";

/** A racing process. Runs until it is disposed of. */
export class Racer implements AsyncDisposable {
  /** The directory, owned by the racer. */
  readonly directory: string;
  readonly #process: Deno.ChildProcess;

  private constructor(directory: string, perl: string, args: string[]) {
    this.directory = directory;
    this.#process = new Deno.Command("setpriv", {
      args: [
        ..."--reuid 65534 --regid 65534 --clear-groups perl -e".split(" "),
        `chdir shift or die; ${perl}`,
        directory,
        ...args,
      ],
    }).spawn();
  }

  /** Creates a directory owned by the racer. */
  static directory(scratch: Scratch): string {
    const path = `${scratch.path}/his`;
    Deno.chmodSync(scratch.path, 0o755);
    Deno.mkdirSync(path);
    Deno.chownSync(path, 65534, 65534);
    return path;
  }

  /** Makes a name refer to its file and to a FIFO in turn. */
  static swappingFifo(directory: string, name: string): Racer {
    return new Racer(
      directory,
      `my $name = shift;
       system("mkfifo", "fifo") == 0 or die;
       for (;;) {
         rename $name, "kept"; rename "fifo", $name;
         rename $name, "fifo"; rename "kept", $name;
       }`,
      [name],
    );
  }

  /** Replaces a node that appears by a link to a file, and removes that soon. */
  static linkingNodes(
    directory: string,
    name: string,
    target: string,
  ): Racer {
    return new Racer(
      directory,
      `my ($name, $target) = @ARGV;
       for (;;) {
         symlink $target, "link";
         until (lstat $name and -b _) {}
         rename "link", $name;
         select undef, undef, undef, 0.001;
         unlink $name;
       }`,
      [name, target],
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#process.status;
  }
}
