/** Writes the completion script for zsh. */
import { quoted, type Source, sourceOf, type Subject } from "./subject.ts";
import { spellings } from "../spelling.ts";

/** Returns the script. */
export function zsh(subjects: readonly Subject[]): string {
  const names = subjects.map(({ name }) => name).join(" ");
  const action = (source: Source): string => {
    switch (source) {
      case undefined:
        return " ";
      case "attached devices":
        return "_loopdev_attached";
      case "all devices":
        return "_loopdev_all";
      case "attached devices and files":
        return "_loopdev_attached_and_files";
      case "commands":
        return `(${names})`;
      case "files":
        return "_files";
      case "directories":
        return "_files -/";
      default:
        return source.isList
          ? `_values -s , column ${source.choices.join(" ")}`
          : `(${source.choices.join(" ")})`;
    }
  };
  const escape = (text: string) =>
    text.replace(/[[\]:\\]/g, (character) => `\\${character}`);
  const cases = subjects.map(({ name, operands, options }) => {
    const specs = Object.entries(options).flatMap(([long, option]) => {
      const { letter, value, negatable, choices, help } = option;
      const text = `[${escape(help)}]${
        value === undefined
          ? ""
          : `:${value}:${action(sourceOf(name, value, choices))}`
      }`;
      const equals = value === undefined ? "" : "=";
      const plus = value === undefined ? "" : "+";
      const all = [
        ...spellings(long, negatable).map((word) => word + equals),
        ...letter ? [`-${letter}${plus}`] : [],
      ];
      const group = all.map((word) => word.replace(/[=+]$/, "")).join(" ");
      return all.map((word) => quoted(`(${group})${word}${text}`));
    });
    const places = operands.map((word, index) =>
      quoted(
        `${index === operands.length - 1 ? "*" : index + 1}:${word}:${
          action(sourceOf(name, word))
        }`,
      )
    );
    return `        ${name})\n          _arguments -s -S ${
      [...specs, ...places].join(" \\\n            ")
    } ;;`;
  });
  const described = subjects.map(({ name, summary }) =>
    `        ${quoted(`${name}:${summary}`)}`
  );
  return `#compdef loopdev
_loopdev_attached() {
  local -a found=(/sys/block/loop*/loop(N:h:t))
  (( $#found )) && compadd "$@" -- /dev/$^found
}
_loopdev_attached_and_files() {
  _alternative 'devices:device:_loopdev_attached' 'files:file:_files'
}
_loopdev_all() {
  local -a found=(/sys/block/loop<->(N:t))
  (( $#found )) && compadd "$@" -- /dev/$^found
}
_loopdev() {
  local curcontext=$curcontext state line
  typeset -A opt_args
  _arguments -C '(- *)'{-h,--help}'[tell more]' '(- *)'{-V,--version}'[print the version]' \\
    '1: :->command' '*:: :->arguments'
  case $state in
    command)
      local -a commands=(
${described.join("\n")}
      )
      _describe command commands ;;
    arguments)
      if [[ $words[1] == run ]] && (( \${words[(i)--]} < CURRENT )); then
        local skip=\${words[(i)--]}
        words=("\${(@)words[skip + 1, -1]}") CURRENT=$(( CURRENT - skip ))
        _normal
        return
      fi
      case $words[1] in
${cases.join("\n")}
      esac ;;
  esac
}
if [[ $funcstack[1] == _loopdev ]]; then _loopdev "$@"; else compdef _loopdev loopdev; fi`;
}
