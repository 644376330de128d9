/** Writes the completion script for fish. */
import { quoted, type Source, sourceOf, type Subject } from "./subject.ts";
import { spellings } from "../spelling.ts";

/** Returns the script. */
export function fish(subjects: readonly Subject[]): string {
  const names = subjects.map(({ name }) => name).join(" ");
  const candidates = (source: Source): string => {
    switch (source) {
      case undefined:
        return "";
      case "attached devices":
        return " -a '(__loopdev_attached)'";
      case "all devices":
        return " -a '(__loopdev_all)'";
      case "attached devices and files":
        return " -F -a '(__loopdev_attached)'";
      case "commands":
        return ` -a '${names}'`;
      case "files":
        return " -F";
      case "directories":
        return " -a '(__fish_complete_directories)'";
      default:
        return source.isList
          ? ` -a '(__fish_complete_list , "string split \\" \\" \\"${
            source.choices.join(" ")
          }\\"")'`
          : ` -a '${source.choices.join(" ")}'`;
    }
  };
  const lines = subjects.flatMap(({ name, summary, operands, options }) => {
    const behind = `complete -c loopdev -n '__loopdev_in ${name}`;
    return [
      `complete -c loopdev -n __fish_use_subcommand -a ${name} -d ${
        quoted(summary)
      }`,
      ...Object.entries(options).flatMap(([long, option]) => {
        const { letter, value, negatable, choices, help } = option;
        const source = sourceOf(name, value, choices);
        const takes = value === undefined
          ? ""
          : source === "files"
          ? " -r"
          : " -x";
        return spellings(long, negatable).map((word) =>
          `${behind}'${letter ? ` -s ${letter}` : ""} -l ${
            word.slice(2)
          }${takes}${candidates(source)} -d ${quoted(help)}`
        );
      }),
      ...operands.flatMap((word, index) => {
        const given = candidates(sourceOf(name, word));
        if (given === "") return [];
        const place = index === operands.length - 1 && index === 0
          ? ""
          : `; and test (count (commandline -opc)) ${
            index === operands.length - 1 ? "-gt" : "-eq"
          } ${index === operands.length - 1 ? index + 1 : index + 2}`;
        return [`${behind}${place}'${given}`];
      }),
    ];
  });
  return `# fish completion of loopdev
function __loopdev_attached
    for path in /sys/block/loop*/loop
        string replace -r '.*/(loop[0-9]+)/loop$' '/dev/$1' $path
    end
end
function __loopdev_all
    for path in /sys/block/loop*
        string replace -r '.*/' /dev/ $path
    end
end
function __loopdev_in
    set -l words (commandline -opc)
    test (count $words) -gt 1; and test $words[2] = $argv[1]
end
complete -c loopdev -f
complete -c loopdev -n __fish_use_subcommand -s h -l help -d 'tell more'
complete -c loopdev -n __fish_use_subcommand -s V -l version -d 'print the version'
${lines.join("\n")}`;
}
