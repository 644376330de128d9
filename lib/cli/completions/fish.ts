/** Writes the completion script for fish. */
import {
  quoted,
  type Source,
  sourceOf,
  type Subject,
  valuedOptions,
} from "./subject.ts";
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
  const lines = subjects.flatMap((subject) => {
    const { name, summary, operands, options } = subject;
    const valued = valuedOptions(subject).join(" ");
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
        const isLast = index === operands.length - 1;
        const place = isLast && index === 0
          ? ""
          : `; and test (__loopdev_operands ${valued}) ${
            isLast ? "-ge" : "-eq"
          } ${index}`;
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
# Counts the operands before the cursor, given the options that take a value.
function __loopdev_operands
    set -l words (commandline -opc)
    set -l count 0
    set -l is_value 0
    for word in $words[3..]
        if test $is_value = 1
            set is_value 0
        else if contains -- $word $argv
            set is_value 1
        else if not string match -q -- '-*' $word
            set count (math $count + 1)
        end
    end
    echo $count
end
complete -c loopdev -f
complete -c loopdev -n __fish_use_subcommand -s h -l help -d 'tell more'
complete -c loopdev -n __fish_use_subcommand -s V -l version -d 'print the version'
${lines.join("\n")}`;
}
