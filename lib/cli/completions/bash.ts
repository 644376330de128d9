/** Writes the completion script for bash. */
import {
  type Source,
  sourceOf,
  type Subject,
  valuedOptions,
} from "./subject.ts";
import { spellings } from "../spelling.ts";

/** Returns the script. */
export function bash(subjects: readonly Subject[]): string {
  const names = subjects.map(({ name }) => name).join(" ");
  const reply = (source: Source): string => {
    switch (source) {
      case undefined:
        return ":";
      case "attached devices":
        return "_loopdev_words $(_loopdev_attached)";
      case "all devices":
        return "_loopdev_words $(_loopdev_all)";
      case "attached devices and files":
        return "_loopdev_attached_and_files";
      case "commands":
        return `_loopdev_words ${names}`;
      case "files":
        return "_loopdev_files -f";
      case "directories":
        return "_loopdev_files -d";
      default:
        return `_loopdev_${source.isList ? "list" : "words"} ${
          source.choices.join(" ")
        }`;
    }
  };
  const cases = subjects.map(({ name, operands, options }) => {
    const values = Object.entries(options)
      .filter(([, { value }]) => value !== undefined)
      .map(([long, { letter, value, choices }]) => {
        const words = [`--${long}`, ...letter ? [`-${letter}`] : []].join(
          " | ",
        );
        return `        ${words}) ${
          reply(sourceOf(name, value, choices))
        }; return ;;`;
      });
    const words = Object.entries(options)
      .flatMap(([long, { negatable }]) => spellings(long, negatable));
    const places = operands.map((word, index) =>
      `        ${index === operands.length - 1 ? "*" : index}) ${
        reply(sourceOf(name, word))
      } ;;`
    );
    return [
      `    ${name})`,
      ...values.length === 0
        ? []
        : ['      case "$prev" in', ...values, "      esac"],
      `      if [[ $cur == -* ]]; then _loopdev_words ${
        words.join(" ")
      }; return; fi`,
      ...places.length === 0
        ? []
        : ['      case "$operands" in', ...places, "      esac"],
      "      ;;",
    ].join("\n");
  });
  // Only the place of one operand among several has to be known.
  const valued = subjects.filter(({ operands }) => operands.length > 1)
    .map((subject) =>
      `    ${subject.name}) valued="${valuedOptions(subject).join(" ")}" ;;`
    );
  return `# bash completion of loopdev
_loopdev_attached() {
  local path
  for path in /sys/block/loop*/loop; do
    [[ -d $path ]] && path=\${path%/loop} && echo "/dev/\${path##*/}"
  done
}
_loopdev_all() {
  local path
  for path in /sys/block/loop*; do echo "/dev/\${path##*/}"; done
}
_loopdev_words() { mapfile -t COMPREPLY < <(compgen -W "$*" -- "$cur"); }
_loopdev_list() {
  local last=\${cur##*,}
  mapfile -t COMPREPLY < <(compgen -P "\${cur%"$last"}" -W "$*" -- "$last")
}
_loopdev_files() {
  compopt -o filenames 2> /dev/null
  mapfile -t COMPREPLY < <(compgen "$1" -- "$cur")
}
_loopdev_attached_and_files() {
  compopt -o filenames 2> /dev/null
  mapfile -t COMPREPLY < <(compgen -f -W "$(_loopdev_attached)" -- "$cur" | sort -u)
}
_loopdev() {
  local cur=\${COMP_WORDS[COMP_CWORD]} prev=\${COMP_WORDS[COMP_CWORD - 1]}
  local command=\${COMP_WORDS[1]} valued= operands=0 i
  COMPREPLY=()
  if ((COMP_CWORD == 1)); then
    _loopdev_words ${names} --help --version
    return
  fi
  case "$command" in
${valued.join("\n")}
  esac
  for ((i = 2; i < COMP_CWORD; i++)); do
    case "\${COMP_WORDS[i]}" in
      --)
        if [[ $command != run || $COMP_CWORD -gt $((i + 1)) ]]; then _loopdev_files -f
        else mapfile -t COMPREPLY < <(compgen -c -- "$cur"); fi
        return ;;
      -*)
        if [[ " $valued " == *" \${COMP_WORDS[i]} "* ]]; then
          ((i++))
          if [[ \${COMP_WORDS[i]} == = ]]; then ((i++)); fi
        fi ;;
      *) ((operands++)) ;;
    esac
  done
  # --name=value arrives as three words.
  if [[ $cur == = ]]; then cur=
  elif [[ $prev == = ]]; then prev=\${COMP_WORDS[COMP_CWORD - 2]}; fi
  case "$command" in
${cases.join("\n")}
  esac
}
complete -F _loopdev loopdev`;
}
