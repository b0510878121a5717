"""Completion scripts for bash, zsh and fish, made from the parser, so that they cannot disagree with it."""

import argparse
from typing import NamedTuple

from hypergrad.cli.arguments import SHELLS, parser, subparsers
from hypergrad.core.checks import check_name

FILES, FOLDERS, TASKS, NOTHING = "files", "folders", "tasks", ""

_KINDS = {"TASK": TASKS, "FILE": FILES, "DIR": FOLDERS, "PATH": FILES}


class Command(NamedTuple):
    """What can follow a command.

    Attributes:
        text: what it does.
        flags: flag -> (what it is, what its value is).
        words: what each word without a flag is: `FILES`, `TASKS`, ..., or names separated by spaces.
    """

    text: str
    flags: dict[str, tuple[str, str | None]]
    words: list[str]


def script(shell: str, names: dict[str, list[str]]) -> str:
    """Write the completion script of a shell.

    Args:
        shell: "bash", "zsh" or "fish".
        names: flag -> the names it may have, such as {"--method": ["descent", "random"]}.

    Raises:
        ValueError: for another shell.
    """
    check_name("SHELL", shell, SHELLS)
    commands = _commands(names)
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _commands(names: dict[str, list[str]]) -> dict[str, Command]:
    top = parser()
    texts = {}
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts = {choice.dest: choice.help or "" for choice in action._choices_actions}
    found = {}
    for name, command in subparsers(top).items():
        flags, words = {}, []
        for action in command._actions:
            kind = _kind(action, names)
            for flag in action.option_strings:
                flags[flag] = (action.help or "", None if action.nargs == 0 else kind)
            if not action.option_strings:
                words.append(kind)
        found[name] = Command(texts[name], flags, words)
    return found


def _kind(action: argparse.Action, names: dict[str, list[str]]) -> str:
    for flag in action.option_strings:
        if flag in names:
            return " ".join(names[flag])
    if action.dest == "shell":
        return " ".join(SHELLS)
    return _KINDS.get(str(action.metavar), NOTHING)


def _bash(commands: dict[str, Command]) -> str:
    ways = {
        FILES: 'compgen -f -- "$cur"',
        FOLDERS: 'compgen -d -- "$cur"',
        TASKS: 'compgen -W "$(_hypergrad_tasks)" -- "$cur"; compgen -f -X \'!*.py\' -- "$cur"',
        NOTHING: ":",
    }

    def way(kind: str) -> str:
        return ways.get(kind) or f'compgen -W "{kind}" -- "$cur"'

    cases = []
    for name, command in commands.items():
        values = [
            f'        {flag}) _hypergrad_reply "$({way(kind)})"; return ;;'
            for flag, (_, kind) in command.flags.items()
            if kind is not None
        ]
        flags = " ".join(command.flags)
        words = "\n".join(
            f'        {index}) _hypergrad_reply "$({way(kind)})" ;;'
            for index, kind in enumerate(command.words)
        )
        cases.append(
            f"    {name})\n      case $prev in\n" + "\n".join(values) + "\n      esac\n"
            "      if [[ $cur == -* ]]; then\n"
            f'        _hypergrad_reply "$(compgen -W "{flags}" -- "$cur")"\n        return\n      fi\n'
            f"      case $place in\n{words}\n      esac ;;"
        )
    takes = " | ".join(
        dict.fromkeys(
            flag
            for command in commands.values()
            for flag, (_, kind) in command.flags.items()
            if kind is not None
        )
    )
    return f"""# bash completion of hypergrad; write it to ~/.local/share/bash-completion/completions/hypergrad
_hypergrad_tasks() {{
  local file
  for file in tasks/*.py; do
    file=${{file##*/}}; file=${{file%.py}}
    # a name is only a name: what compgen -W is given it expands, commands too
    [[ $file =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] && grep -qs '^def task(' "tasks/$file.py" && echo "$file"
  done
}}

_hypergrad_reply() {{
  local line
  COMPREPLY=()
  while IFS= read -r line; do [[ $line ]] && COMPREPLY+=("$line"); done <<< "$1"
}}

_hypergrad() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} place=0 skip= word
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    _hypergrad_reply "$(compgen -W "{" ".join(commands)} --help --version" -- "$cur")"
    return
  fi
  for word in "${{COMP_WORDS[@]:2:COMP_CWORD-2}}"; do
    if [[ $skip ]]; then skip=; continue; fi
    case $word in
      {takes}) skip=1 ;;
      -*) ;;
      *) place=$((place + 1)) ;;
    esac
  done
  case ${{COMP_WORDS[1]}} in
{chr(10).join(cases)}
  esac
}}

complete -o filenames -F _hypergrad hypergrad
"""


def _zsh(commands: dict[str, Command]) -> str:
    ways = {FILES: "_files", FOLDERS: "_files -/", TASKS: "_hypergrad_tasks", NOTHING: " "}

    def way(kind: str) -> str:
        return ways.get(kind) or f"({kind})"

    listed = "\n".join(f"    {_quote(name + ':' + c.text)}" for name, c in commands.items())
    cases = []
    for name, command in commands.items():
        lines = []
        for flag, (text, kind) in command.flags.items():
            value = "" if kind is None else f":value:{way(kind)}"
            repeat = "*" if flag in ("--arg", "--log") else ""
            lines.append(_quote(f"{repeat}{flag}[{_bracketed(text)}]{value}"))
        lines += [_quote(f"{i}:word:{way(kind)}") for i, kind in enumerate(command.words, 1)]
        cases.append(f"    {name})\n      _arguments " + " \\\n        ".join(lines) + " ;;")
    return f"""#compdef hypergrad
# zsh completion of hypergrad; write it to a file _hypergrad in a folder of $fpath
_hypergrad_tasks() {{
  local -a names
  names=(${{(f)"$(grep -ls '^def task(' tasks/*.py(N) /dev/null)"}})
  compadd -- ${{names:t:r}}
  _files -g '*.py'
}}

_hypergrad() {{
  local -a commands
  commands=(
{listed}
  )
  if (( CURRENT == 2 )); then
    _describe command commands
    return
  fi
  local command=$words[2]
  shift words
  (( CURRENT-- ))
  case $command in
{chr(10).join(cases)}
  esac
}}

if [[ $funcstack[1] == _hypergrad ]]; then
  _hypergrad "$@"
else
  compdef _hypergrad hypergrad
fi
"""


def _fish(commands: dict[str, Command]) -> str:
    ways = {
        FILES: "-F",
        FOLDERS: "-a '(__fish_complete_directories)'",
        TASKS: "-F -a '(__hypergrad_tasks)'",
        NOTHING: "",
    }

    def way(kind: str) -> str:
        return ways[kind] if kind in ways else f"-a {_quote(kind)}"

    lines = [
        "# fish completion of hypergrad; write it to ~/.config/fish/completions/hypergrad.fish",
        "function __hypergrad_tasks",
        "    for file in tasks/*.py",
        "        grep -qs '^def task(' $file; and basename $file .py",
        "    end",
        "end",
        "complete -c hypergrad -f",
        f"set -l names {' '.join(commands)}",
    ]
    for name, command in commands.items():
        first = "'not __fish_seen_subcommand_from '\"$names\""
        lines.append(f"complete -c hypergrad -n {first} -a {name} -d {_quote(command.text)}")
        seen = f"-n '__fish_seen_subcommand_from {name}'"
        for flag, (text, kind) in command.flags.items():
            long = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            value = "" if kind is None else f" -r {way(kind)}".rstrip()
            lines.append(f"complete -c hypergrad {seen} {long}{value} -d {_quote(text)}")
        lines += [
            f"complete -c hypergrad {seen} {way(kind)}"
            for kind in dict.fromkeys(command.words)
            if kind
        ]
    return "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _bracketed(text: str) -> str:
    """Escape what `_arguments` of zsh reads in a description."""
    return text.replace("\\", "\\\\").replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")
