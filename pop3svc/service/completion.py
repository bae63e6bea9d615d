"""
Scripts that complete the command line of C{pop3svc} in bash, zsh and fish.
"""

from __future__ import annotations

from collections.abc import Iterable

from pop3svc.service.synopsis import Argument, Synopsis

__all__ = ["SHELLS"]


def _flags(command: Synopsis) -> list[str]:
    return [flag for option in command.options for flag in option.flags]


def _words(command: Synopsis) -> list[str]:
    """
    @return: the words that may follow a command, except its options.
    """
    found = [each.lastName for each in command.commands]
    for argument in command.arguments:
        found += argument.words
    return found


# --- bash ------------------------------------------------------------------------------

_BASH = """\
# Completion of pop3svc for bash.  Made by: pop3svc completion bash
_pop3svc() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD - 1]}}
    # bash splits --option=value at the equals sign.
    if [[ $current == = ]]; then
        current=
    elif [[ $previous == = ]]; then
        previous=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    local command=pop3svc number words= files=
    for ((number = 1; number < COMP_CWORD; number++)); do
        case "$command ${{COMP_WORDS[number]}}" in
            {commands})
                command+=" ${{COMP_WORDS[number]}}"
                ;;
        esac
    done
    COMPREPLY=()
    case "$command $previous" in
{values}
    esac
    case "$command" in
{arguments}
    esac
    mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
    if [[ -n $files && $current != -* ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t -O ${{#COMPREPLY[@]}} COMPREPLY < <(compgen -f -- "$current")
    fi
}}
complete -F _pop3svc pop3svc
"""


def bash(top: Synopsis) -> str:
    """
    @param top: the command C{pop3svc}.
    @return: a script for bash.
    """
    every = top.everyCommand()
    return _BASH.format(
        commands=" | ".join(f'"{each.name}"' for each in every if each is not top),
        values="\n".join(line for each in every for line in _bashValues(each)),
        arguments="\n".join(line for each in every for line in _bashArguments(each)),
    )


def _bashValues(command: Synopsis) -> Iterable[str]:
    for option in command.options:
        if not option.value:
            continue
        places = " | ".join(f'"{command.name} {each}"' for each in option.flags)
        yield f"        {places})"
        if option.words:
            words = " ".join(option.words)
            yield f'            mapfile -t COMPREPLY < <(compgen -W "{words}" -- "$current")'
        elif option.isPath:
            yield "            compopt -o filenames 2>/dev/null"
            yield '            mapfile -t COMPREPLY < <(compgen -f -- "$current")'
        yield "            return"
        yield "            ;;"


def _bashArguments(command: Synopsis) -> Iterable[str]:
    yield f'        "{command.name}")'
    words = " ".join([*_words(command), *_flags(command)])
    yield f'            words="{words}"'
    if any(each.isPath for each in command.arguments):
        yield "            files=yes"
    yield "            ;;"


# --- zsh -------------------------------------------------------------------------------

_ZSH = """\
#compdef pop3svc
# Completion of pop3svc for zsh.  Made by: pop3svc completion zsh
_pop3svc() {{
    local command=pop3svc
    integer number last=1
    for ((number = 2; number < CURRENT; number++)); do
        case "$command ${{words[number]}}" in
            ({commands})
                command+=" ${{words[number]}}"
                last=$number
                ;;
        esac
    done
    # _arguments gets only the last command and its arguments.
    words=("${{(@)words[last,-1]}}")
    ((CURRENT -= last - 1))
    case "$command" in
{arguments}
    esac
}}
if [[ "${{funcstack[1]}}" == _pop3svc ]]; then
    _pop3svc "$@"
else
    compdef _pop3svc pop3svc
fi
"""


def zsh(top: Synopsis) -> str:
    """
    @param top: the command C{pop3svc}.
    @return: a script for zsh.
    """
    every = top.everyCommand()
    return _ZSH.format(
        commands="|".join(f'"{each.name}"' for each in every if each is not top),
        arguments="\n".join(line for each in every for line in _zshArguments(each)),
    )


def _zshArguments(command: Synopsis) -> Iterable[str]:
    specs = [spec for option in command.options for spec in _zshOption(option)]
    for argument in command.arguments:
        mark = "*" if argument.isRepeated else ":" if argument.isOptional else ""
        specs.append(f"{mark}:{_zshValue(argument)}")
    if command.commands:
        listed = " ".join(
            f"{each.lastName}\\:{_quoted(_zshText(each.help))}" for each in command.commands
        )
        specs.append(f"1:command:(({listed}))")
    yield f'        ("{command.name}")'
    yield "            _arguments \\"
    for spec in specs[:-1]:
        yield f"                {_quoted(spec)} \\"
    yield f"                {_quoted(specs[-1])}"
    yield "            ;;"


def _zshOption(option: Argument) -> Iterable[str]:
    for flag in option.flags:
        repeated = "*" if option.isRepeated else ""
        # "--file=" means that the value follows the equals sign, or is the next word.
        equals = "=" if option.value and flag.startswith("--") else ""
        value = f":{_zshValue(option)}" if option.value else ""
        yield f"{repeated}{flag}{equals}[{_zshText(option.help)}]{value}"


def _zshValue(argument: Argument) -> str:
    name = _zshText(argument.value)
    if argument.words:
        return f"{name}:({' '.join(argument.words)})"
    return f"{name}:{'_files' if argument.isPath else ' '}"


def _zshText(text: str) -> str:
    for special in ("\\", ":", "[", "]"):
        text = text.replace(special, f"\\{special}")
    return text


def _quoted(text: str) -> str:
    """
    @return: the text in single quotes, for zsh.
    """
    return "'" + text.replace("'", "'\\''") + "'"


# --- fish ------------------------------------------------------------------------------

_FISH = """\
# Completion of pop3svc for fish.  Made by: pop3svc completion fish
function __pop3svc_at --description 'Whether the command line has come to a command'
    set -l command pop3svc
    for word in (commandline -opc)[2..]
        if contains -- "$command $word" {commands}
            set command "$command $word"
        end
    end
    test "$command" = "$argv"
end
complete -c pop3svc -f
{arguments}
"""


def fish(top: Synopsis) -> str:
    """
    @param top: the command C{pop3svc}.
    @return: a script for fish.
    """
    every = top.everyCommand()
    return _FISH.format(
        commands=" ".join(_fishQuoted(each.name) for each in every if each is not top),
        arguments="\n".join(line for each in every for line in _fishArguments(each)),
    )


def _fishArguments(command: Synopsis) -> Iterable[str]:
    begin = f"complete -c pop3svc -n '__pop3svc_at {command.name}'"
    for each in command.commands:
        yield f"{begin} -a {each.lastName} -d {_fishQuoted(each.help)}"
    for option in command.options:
        names = " ".join(
            f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags
        )
        value = ""
        if option.words:
            value = f" -x -a {_fishQuoted(' '.join(option.words))}"
        elif option.value:
            value = " -r -F" if option.isPath else " -x"
        yield f"{begin} {names}{value} -d {_fishQuoted(option.help)}"
    for argument in command.arguments:
        if argument.words:
            yield f"{begin} -a {_fishQuoted(' '.join(argument.words))}"
        elif argument.isPath:
            yield f"{begin} -F"


def _fishQuoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


# For each shell, the function that makes its script.
SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}
