"""
Make the manual pages: C{pop3svc(1)} from the parsers of the commands, and C{pop3svc.toml(5)} from
the declarations of the settings.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from textwrap import wrap

from twisted.cred.strcred import ICheckerFactory
from twisted.plugin import getPlugins

from pop3svc import __version__
from pop3svc.service.options import Options, providerPlugins
from pop3svc.service.settings import GROUPS, Setting
from pop3svc.service.synopsis import Argument, Synopsis, readSynopsis

__all__ = ["makePages"]

# The most characters of a line of text, without escapes. mandoc warns about lines of more than 80
# octets with their escapes.
_WIDTH = 68


def makePages() -> dict[str, str]:
    """
    @return: the texts of the pages, by the names of their files.
    """
    return {"pop3svc.1": _ofCommands(readSynopsis()), "pop3svc.toml.5": _ofSettings()}


# --- roff ------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    r"""
    @return: the text with the escapes that it needs in the middle of a line of roff.
    """
    return text.replace("\\", "\\e").replace("-", "\\-")


def _bold(text: str) -> str:
    return f"\\fB{_escaped(text)}\\fR"


def _italic(text: str) -> str:
    return f"\\fI{_escaped(text)}\\fR"


def _line(text: str) -> str:
    """
    @return: the line, changed so that it does not begin with a control character of roff.
    """
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _sentences(text: str) -> Iterable[str]:
    """
    Begin each sentence on a new line, as roff expects.
    """
    for each in re.split(r"(?<=[.?!])  ?(?=[A-Z0-9(])", " ".join(text.split())):
        for line in wrap(each, _WIDTH, break_long_words=False, break_on_hyphens=False):
            yield _line(_escaped(line))


def _paragraph(text: str) -> Iterable[str]:
    yield ".PP"
    yield from _sentences(text)


def _item(term: str, text: str) -> Iterable[str]:
    yield ".TP"
    yield _line(term)
    yield from _sentences(text) if text else ["\\&"]


def _example(text: str) -> Iterable[str]:
    yield from (".RS 4", ".nf")
    yield from (_line(_escaped(each)) if each else "\\&" for each in text.splitlines())
    yield from (".fi", ".RE")


def _header(name: str, section: int, title: str) -> Iterable[str]:
    # If the environment gives a date, use it, so that the build is reproducible; see
    # https://reproducible-builds.org.
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    day = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    yield f'.TH {name.upper()} {section} "{day}" "pop3svc {__version__}" "pop3svc"'
    # Do not justify lines, because roff cannot justify a line with a long word.
    yield ".ad l"
    yield ".SH NAME"
    yield f"{name} \\- {_escaped(title)}"


# --- the commands ----------------------------------------------------------------------


def _ofCommands(top: Synopsis) -> str:
    lines = [
        *_header("pop3svc", 1, top.help),
        ".SH SYNOPSIS",
        *_usage(top),
        ".SH DESCRIPTION",
        *_sentences(
            "pop3svc serves mailboxes over POP3, stores mail in them, moves whole mailboxes, "
            "manages accounts, and checks POP3 servers.  Its configuration file is described in "
            "pop3svc.toml(5)."
        ),
        ".SH OPTIONS",
        *_options(top),
        ".SH COMMANDS",
    ]
    for each in top.everyCommand()[1:]:
        if each.commands:
            continue
        lines += [f".SS {_escaped(each.name)}", *_usage(each)]
        lines += _paragraph(each.description or f"{each.help[:1].upper()}{each.help[1:]}.")
        lines += _options(each)
    lines += [
        ".SH EXIT STATUS",
        *_item("0", "The command has done its work."),
        *_item("1", "The command failed; one sentence on the standard error says why."),
        *_item("2", "A rule of pop3svc check failed."),
        *_item(
            "65, 67, 75, 77",
            "The numbers of sysexits(3), which pop3svc deliver uses.  75 means that a later "
            "attempt may succeed; pop3svc import, export and fetch also use this number.",
        ),
        ".SH FILES",
        *_item(_italic("/etc/pop3svc/pop3svc.toml"), "The configuration of an installed service."),
        *_item(
            _italic("~/.local/share/pop3svc"),
            "Accounts, mail and a certificate of a service without configuration.",
        ),
        ".SH SEE ALSO",
        "\\fBpop3svc.toml\\fR(5), \\fBtwistd\\fR(1)",
    ]
    return "\n".join(lines) + "\n"


def _usage(command: Synopsis) -> Iterable[str]:
    parts = [_bold(command.name)]
    if command.options:
        parts.append("[\\fIoption\\fR ...]")
    if command.commands:
        parts.append("\\fIcommand\\fR [\\fIargument\\fR ...]")
    for each in command.arguments:
        text = _italic(each.value) + (" ..." if each.isRepeated else "")
        parts.append(f"[{text}]" if each.isOptional else text)
    yield " ".join(parts)


def _options(command: Synopsis) -> Iterable[str]:
    for each in (*command.arguments, *command.options):
        yield from _item(_term(each), _finished(each.help))


def _term(argument: Argument) -> str:
    value = f" {_italic(argument.value)}" if argument.value else ""
    if not argument.flags:
        return value.strip()
    return ", ".join(_bold(flag) + value for flag in argument.flags)


def _finished(text: str) -> str:
    """
    @return: a help text in the form of a sentence.
    """
    if not text:
        return ""
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")


# --- the settings ----------------------------------------------------------------------

_EXAMPLE = """\
data = "/var/lib/pop3svc"
certificate = "/etc/pop3svc/fullchain.pem"
private-key = "/etc/pop3svc/privkey.pem"

[[listener]]
endpoint = "tcp:110"

[[listener]]
endpoint = "ssl:995"

[[store]]
kind = "maildir"
path = "/srv/mail"
auth = ["passwd:/etc/pop3svc/users"]

[limits]
maxPerAddress = 50"""


# For each group of settings: the heading, and a sentence that says where the keys stand in the
# file.
_HEADINGS = {
    "service": ("THE SERVICE", "These keys are in front of all tables."),
    "listener": ("LISTENERS", "Each table [[listener]] has these keys."),
    "certificate": ("CERTIFICATES", "Each table [[tls.certificate]] has these keys."),
    "store": ("STORES", "Each table [[store]] has these keys, and the keys of its kind."),
    "fetch": (
        "MAILBOXES OF OTHER SERVERS",
        "Each table [[fetch]] is for pop3svc fetch, and has these keys.",
    ),
    "limits": (
        "LIMITS",
        "The table [limits] has these keys.  Times are in seconds, and sizes are in octets.",
    ),
}


def _ofSettings() -> str:
    lines = [
        *_header("pop3svc.toml", 5, "configuration of a POP3 service"),
        ".SH DESCRIPTION",
        *_sentences(
            "pop3svc serve --config FILE reads its settings from FILE, which is in TOML.  "
            "Options of the command line override settings of the file.  pop3svc config check FILE "
            "lists the faults of the file.  After SIGHUP or pop3svc reload, the service reads the "
            "file again.  A "
            "setting that is marked live then applies to new sessions.  With several workers the "
            "other settings also apply, except the settings that the parent of the workers uses.  "
            "The log names the settings that need a restart.  A string may "
            'stand in another file: { file = "/run/secrets/x" }, or { credential = "x" } for a '
            "file in the credentials directory of systemd."
        ),
    ]
    for group, settings in GROUPS.items():
        heading, sentence = _HEADINGS[group]
        lines += [f".SH {heading}", *_sentences(sentence)]
        lines += _settings(settings, areLimits=group == "limits")
    lines += [
        ".SH KINDS OF STORES",
        *_sentences(
            "Each part after a colon is a separate key in the file: readonly = true "
            "means :readonly=yes."
        ),
        *_providers(),
        ".SH SOURCES OF ACCOUNTS",
        *_accounts(),
        ".SH EXAMPLES",
        *_example(_EXAMPLE),
        ".SH SEE ALSO",
        "\\fBpop3svc\\fR(1)",
    ]
    return "\n".join(lines) + "\n"


def _settings(settings: Iterable[Setting], areLimits: bool = False) -> Iterable[str]:
    for each in settings:
        term = f"{_bold(each.name)} = {_italic(each.kind.name)}"
        if areLimits:
            term += f" (default {each.default})"
        if each.isLive:
            term += ", live"
        yield from _item(term, f"{each.help}  {each.reason}")
        if each.kind.words and "|" not in each.kind.name:
            yield from _sentences(f"The allowed values are {', '.join(each.kind.words)}.")


def _providers() -> Iterable[str]:
    for prefix, plugin in sorted(providerPlugins().items()):
        yield from _item(f"{_bold(prefix)}:{_italic(plugin.argumentFormat)}", plugin.help)


def _accounts() -> Iterable[str]:
    wanted = Options.supportedInterfaces
    for each in sorted(getPlugins(ICheckerFactory), key=lambda each: str(each.authType)):
        if any(one in each.credentialInterfaces for one in wanted):
            form = " ".join(str(each.argStringFormat).split())
            yield from _item(f"{_bold(each.authType)}:{_italic(form)}", each.authHelp)
