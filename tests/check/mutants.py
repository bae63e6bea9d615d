"""
Servers with one fault each, and the rules that have to find it.

C{python -m tests.check.mutants} runs the rules of C{pop3svc check} on servers without faults and on
each mutant, and prints the outcomes as a JSON object.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet import ssl
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import ITransport
from twisted.internet.task import react
from twisted.logger import globalLogBeginner

from pop3svc.check import command
from pop3svc.check.table import check
from pop3svc.check.target import Target
from tests.check.toyserver import PASSWORD, USER, Refused, ToyFactory, ToyServer
from tests.interop.service import _makeCertificate

__all__ = ["INNOCENT", "MUTANTS", "OTHERWISE"]

# Seconds for an answer: long, because a delay on a busy machine is no fault.
_TIMEOUT = 20.0
# A shorter time, for mutants that may never answer.
_SHORT = 0.5

Rewrite = Callable[[bytes, bytes], bytes]


@dataclass(frozen=True)
class Mutant:
    """
    @ivar rules: the rules that have to fail.
    @ivar name: the name that the certificate has to contain.
    """

    toy: type[ToyServer]
    rules: tuple[str, ...]
    timeout: float = _TIMEOUT
    name: str = "127.0.0.1"
    mode: str = "plain"


MUTANTS: dict[str, Mutant] = {}


def mutant(*rules: str, **options: Any) -> Callable[[type[ToyServer]], type[ToyServer]]:
    """
    Declare the decorated class as a mutant.
    """

    def declare(toy: type[ToyServer]) -> type[ToyServer]:
        assert toy.__name__ not in MUTANTS
        MUTANTS[toy.__name__] = Mutant(toy, rules, **options)
        return toy

    return declare


def rewritten(name: str, rules: str, rewrite: Rewrite, **options: Any) -> None:
    """
    Declare a mutant by a function that changes replies: C{rewrite(line, reply)}.
    """

    class Rewritten(ToyServer):
        def answered(self, body: Callable[[], bytes], line: bytes) -> bytes:
            return rewrite(line, super().answered(body, line))

        def greeting(self) -> bytes:
            return rewrite(b"", super().greeting())

    assert name not in MUTANTS
    MUTANTS[name] = Mutant(Rewritten, tuple(rules.split()), **options)


def replaced(name: str, rules: str, line: bytes, old: bytes, new: bytes, **options: Any) -> None:
    """
    Declare a mutant that replaces the matches of C{old} by C{new} in its replies to some lines.

    @param line: a pattern for the whole line in upper case.  The empty pattern means empty lines,
        and the greeting.
    """

    def rewrite(said: bytes, reply: bytes) -> bytes:
        return re.sub(old, new, reply) if re.fullmatch(line, said.upper()) else reply

    rewritten(name, rules, rewrite, **options)


def accepts(name: str, rules: str, line: bytes, **options: Any) -> None:
    """
    Declare a mutant that answers C{+OK} to all lines that match a pattern.
    """
    replaced(name, rules, line, rb"(?s)-ERR.*", rb"+OK well\r\n", **options)


# --- greeting ------------------------------------------------------------------------

replaced("negativeGreeting", "greetingIsPositive", rb"", rb"\+OK", b"-ERR")
replaced("longGreeting", "greetingHasItsForm firstLinesAreShort", rb"", rb"toy", b"toy" * 200)
replaced("greetingInTwoLines", "greetingIsOneLine", rb"", rb"\Z", b"+OK again\r\n")
replaced("greetingInLatin1", "greetingHasItsForm repliesArePrintable", rb"", rb"toy", b"t\xf6y")
replaced("timestampTheSame", "timestampDiffers", rb"", rb"<.*>", b"<1.2@example.test>")
replaced("timestampIsNone", "timestampDiffers", rb"", rb"<.*>", b"<never>")


@mutant("greetingIsPositive", timeout=_SHORT)
class saysNothing(ToyServer):
    def write(self, data: bytes) -> None:
        pass


# --- command lines ----------------------------------------------------------------------


@mutant("verbsInLowerCase", "verbsInMixedCase")
class upperCaseOnly(ToyServer):
    def verb(self, verb: bytes) -> bytes:
        return verb


@mutant("keywordsAreWhole")
class fourLetters(ToyServer):
    def verb(self, verb: bytes) -> bytes:
        return verb[:4].upper()


accepts("knowsEverything", "unknownBeforeLogin unknownAfterLogin stlsSendsNoGreeting", rb"XYZZ.*")
accepts("likesEmptyLines", "emptyLine", rb"")
accepts("likesNUL", "controlOctets", rb".*\0.*")


@mutant("linesInPieces", "twentyOctetByOctet", timeout=_SHORT)
class wholeSegments(ToyServer):
    def dataReceived(self, data: bytes) -> None:
        if data.endswith(b"\n"):
            super().dataReceived(data)


@mutant("linesOf255Octets")
class shortLines(ToyServer):
    MAX_LENGTH = 100


@mutant("linesThatAreTooLong", timeout=_SHORT)
class hangsOnLongLines(ToyServer):
    def lineLengthExceeded(self, line: bytes) -> None:
        pass


@mutant("linesThatAreTooLong")
class likesLongLines(ToyServer):
    def lineLengthExceeded(self, line: bytes) -> None:
        self.write(b"+OK long\r\n")


# --- states and arguments ------------------------------------------------------------------


def inMoreStates(name: str, rules: str, verbs: bytes, states: str) -> None:
    """
    Declare a mutant that accepts commands in further states.
    """

    class Elsewhere(ToyServer):
        def moreStates(self, verb: bytes) -> str:
            return states if verb in verbs.split() else ""

        def doWAKE(self) -> bytes:
            return b"+OK [ACTIVITY/NONE]\r\n" if self.state == "T" else super().doWAKE()

    assert name not in MUTANTS
    MUTANTS[name] = Mutant(Elsewhere, tuple(rules.split()))


inMoreStates("mailboxForAll", "mailboxBeforeLogin", b"STAT LIST RETR RSET", "A")
inMoreStates("rsetForAll", "mailboxBeforeLogin", b"RSET", "A")
inMoreStates("noopForAll", "noopBeforeLogin", b"NOOP", "A")
inMoreStates("uidlForAll", "optionalBeforeLogin", b"UIDL", "A")
inMoreStates("userAgain", "loginAfterLogin", b"USER", "T")
inMoreStates("wakesTheWaking", "sleepAndWake", b"WAKE", "T")
inMoreStates("statAsleep", "sleepAndWake", b"STAT", "S")
inMoreStates("utf8Again", "utf8AfterLogin", b"UTF8", "T")
accepts("passAlone", "passWithoutUser", rb"PASS X")
accepts("passAgain", "loginAfterLogin", rb"PASS X")
accepts("authAgain", "authAfterLogin", rb"AUTH PLAIN")
accepts("stlsAgain", "stlsAfterLogin", rb"STLS")
accepts("deleForAll", "deleBeforeLogin", rb"DELE 1")
accepts("xlogAgain", "xlogLogsIn", rb"XLOG .*")
accepts("retrOfNothing", "missingMessage", rb"RETR ?")
accepts("statOfSomething", "superfluousArguments", rb"(STAT|NOOP|RSET) 1")
accepts("listOfTwo", "tooManyArguments", rb"(LIST|RETR) 1 1")
accepts("halfNumbers", "malformedNumbers", rb"(LIST|RETR) 1X")
accepts("hexNumbers", "malformedNumbers", rb"LIST 0X1")
accepts("numberNought", "numberZero", rb"(LIST|RETR) 0")
accepts("belowZero", "negativeNumbers", rb"LIST -1")
accepts("oneMore", "numbersBeyond", rb"(LIST|RETR) 13")
accepts("topOfAnything", "topArguments", rb"TOP 1")
accepts("topBelowZero", "topArguments", rb"TOP 1 -1")
accepts("topOneMore", "topBeyond", rb"TOP 13 0")
accepts("uidlOneMore", "uidlBeyond", rb"UIDL 13")
accepts("utf8OfSomething", "utf8TakesNoArgument", rb"UTF8 .*")
accepts("deleNought", "deleArguments", rb"DELE 0")
accepts("deleOneMore", "deleArguments", rb"DELE 13")
accepts("speaksAll", "unknownLanguage", rb"LANG .*")
accepts("deliAgain", "deliDeletesAtOnce", rb"DELI 2")


@mutant("negativeNumbers")
class countsBackwards(ToyServer):
    def pattern(self, verb: bytes, pattern: bytes) -> bytes:
        return pattern.replace(b"[0-9]+", b"-?[0-9]+")

    def number(self, digits: bytes) -> int:
        return abs(int(digits))


@mutant("hugeNumbers")
class of32Bits(ToyServer):
    def number(self, digits: bytes) -> int:
        return int(digits) % 2**32


@mutant("hugeNumbers")
class of64Bits(ToyServer):
    def number(self, digits: bytes) -> int:
        return int(digits) % 2**64


# --- NOOP, RSET, QUIT -------------------------------------------------------------------------


@mutant("noopDoesNothing")
class noopMarks(ToyServer):
    def doNOOP(self) -> bytes:
        self.marked.add(self.listed[-1])
        return super().doNOOP()


@mutant("rsetWithoutMarks")
class rsetMarks(ToyServer):
    def doRSET(self) -> bytes:
        self.marked.add(self.listed[-1])
        return b"+OK done\r\n"


replaced("rsetOfNothing", "rsetWithoutMarks", rb"RSET", rb"(?s)\+OK.*", rb"-ERR nothing\r\n")
replaced("quitSaysNo", "quitBeforeLogin quitAfterLogin", rb"QUIT", rb"\+OK", rb"-ERR")
replaced("quitSaysTwice", "quitBeforeLogin quitAfterLogin", rb"QUIT", rb"\Z", rb"+OK bye\r\n")


@mutant("quitBeforeLogin", "quitAfterLogin", timeout=_SHORT)
class quitStays(ToyServer):
    def bye(self) -> None:
        pass


@mutant("nothingAfterQuit")
class quitGoesOn(ToyServer):
    def lineReceived(self, line: bytes) -> None:
        if line.startswith(b"QUIT"):
            self.write(b"+OK bye\r\n")
            self.factory.reactor.callLater(0, self.transport.loseConnection)
        else:
            super().lineReceived(line)


# --- STAT, LIST, RETR -------------------------------------------------------------------------


@mutant("retrSendsItsSize", "utf8SendsItsSize")
class sizesOfLF(ToyServer):
    def size(self, uniqueID: bytes) -> int:
        return len(self.factory.messages[uniqueID].replace(b"\r\n", b"\n"))


@mutant("retrSendsItsSize")
class sizesWithStuffing(ToyServer):
    def size(self, uniqueID: bytes) -> int:
        return len(re.sub(rb"(?m)^\.", b"..", self.factory.messages[uniqueID]))


@mutant("utf8SendsItsSize")
class sizesOfCharacters(ToyServer):
    def size(self, uniqueID: bytes) -> int:
        return len(self.factory.messages[uniqueID].decode())


replaced("statInWords", "statHasItsForm", rb"STAT", rb" ([0-9]+) ", rb" \1  ")
replaced("statTellsMore", "nothingAfterTheSizes", rb"STAT", rb"\r", rb" octets\r")
replaced("listTellsMore", "nothingAfterTheSizes", rb"LIST", rb"([0-9])\r", rb"\1 x\r")
replaced("statCountsOff", "statCountsMessages", rb"STAT", rb" 12 ", rb" 11 ")
replaced("statAddsOff", "statAddsUpSizes", rb"STAT", rb" ([0-9]+)\r", rb" 1\1\r")
replaced("listWithTabs", "listHasItsForm", rb"LIST", rb"(?m)^([0-9]+) ", rb"\1\t")
replaced("listFromZero", "listNumbersFromOne", rb"LIST", rb"(?m)^12 ", rb"0 ")
replaced("listTwice", "listNumbersFromOne", rb"LIST", rb"(?m)^2 ", rb"1 ")
replaced("listOneOff", "listOfOneMessage", rb"LIST [0-9]+", rb"\r", rb"1\r")
replaced("stuffsNothing", "retrStuffsDots", rb"RETR .*", rb"(?m)^\.\.", rb".")
replaced("stuffsSome", "retrStuffsDots retrSendsItsSize", rb"RETR .*", rb"\.\.dot", rb".dot")
replaced("bareLFs", "retrEndsLinesWithCRLF", rb"RETR .*", rb"line\r\nline", rb"line\nline")
replaced(
    "retrEndsTwice",
    "retrEndsOnce commandsAfterRetr",
    rb"RETR .*",
    rb"\Z",
    rb".\r\n",
    timeout=_SHORT,
)
replaced("topOfNothing", "topOfNoLines", rb"TOP .*", rb"(?s)\r\n\r\n.*", rb"\r\n.\r\n")
replaced("topForgetsTheBlank", "topOfNoLines", rb"TOP .* 0", rb"\r\n\r\n", rb"\r\n")
replaced("topSaysMore", "topOfSomeLines", rb"TOP .*", rb"line\r\n\.", rb"line\r\nline\r\n.")
replaced("topOfAllFails", "topOfAllLines", rb"TOP .* 99999999", rb"(?s)\+OK.*", rb"-ERR no\r\n")
replaced("topIsCut", "topOfAllLines", rb"TOP .* 99999999", rb"line\r\n\.", rb".")
NO_DOT = rb"(?s)\.\r\n\Z"
replaced("listHasNoEnd", "listHasItsForm", rb"LIST", NO_DOT, b"", timeout=_SHORT)
replaced("retrHasNoEnd", "retrEndsOnce", rb"RETR .*", NO_DOT, b"", timeout=_SHORT)
replaced("topHasNoEnd", "topOfNoLines", rb"TOP .*", NO_DOT, b"", timeout=_SHORT)
replaced("uidlHasNoEnd", "uidlHasItsForm", rb"UIDL", NO_DOT, b"", timeout=_SHORT)
replaced("capaHasNoEnd", "capaBeforeLogin", rb"CAPA", NO_DOT, b"", timeout=_SHORT)


@mutant("retrTwice")
class retrOnce(ToyServer):
    def doRETR(self, argument: bytes) -> bytes:
        reply = super().doRETR(argument)
        self.factory.messages[self.find(argument)[1]] += b"Status: RO\r\n"
        return reply


def _inSegments(toy: ToyServer, pieces: list[bytes], turns: int = 0) -> None:
    """
    Write the pieces with pauses between them, so that the client reads each piece by itself.
    """
    if not turns and pieces:
        toy.transport.write(pieces.pop(0))
    if pieces:
        later = (turns + 1) % 4
        toy.factory.reactor.callLater(0.003, _inSegments, toy, pieces, later)


class _endsApart(ToyServer):
    """
    Sends the end of some replies a little later, in a segment of its own.
    """

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        super().connectionMade()

    def isAwaitable(self, data: bytes) -> bool:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        if not self.isAwaitable(data):
            super().write(data)
            return
        # The first line is a piece of its own, so that the pieces have different sizes.
        first = data.index(b"\n") + 1
        at = len(data) - self.apart
        _inSegments(self, [data[:first], data[first:at], data[at:]])

    apart = len(b".\r\n")


def endsApart(name: str, least: int, octets: int, **options: Any) -> None:
    """
    Declare a mutant that sends the end of a multi-line reply later, if the reply has more than
    C{least} octets.

    @param octets: the length of this end.
    """

    class Apart(_endsApart):
        apart = octets

        def isAwaitable(self, data: bytes) -> bool:
            return data.endswith(b"\r\n.\r\n") and len(data) > least and self.state == "T"

    assert name not in MUTANTS
    MUTANTS[name] = Mutant(Apart, ("retrEndsWithItsLastOctets",), **options)


endsApart("dotApart", 0, 3)
endsApart("dotOfLargeOnesApart", 93, 3)
endsApart("halfADotApart", 0, 2)
endsApart("dotInARecordOfItsOwn", 0, 3, mode="stls")


# --- UIDL ------------------------------------------------------------------------------------------

replaced("uidlTooLong", "uidlHasItsForm", rb"UIDL", rb"id-1\r", b"x" * 71 + rb"\r")
replaced("uidlIsEmpty", "uidlHasItsForm", rb"UIDL", rb"id-1\r", rb"\r")
replaced("uidlHasSpaces", "uidlHasItsForm", rb"UIDL", rb"id-1\r", rb"id 1\r")
replaced("uidlNumbersOff", "uidlNumbersAsList", rb"UIDL", rb"(?m)^12 ", rb"13 ")
replaced("uidlTwins", "uidlIsUnique", rb"UIDL", rb"id-1\r", rb"id-2\r")
replaced("uidlOneOff", "uidlOfOneMessage", rb"UIDL [0-9]+", rb"id", rb"ID")


@mutant("uidlStays")
class uidlChanges(ToyServer):
    def shown(self, uniqueID: bytes) -> bytes:
        return b"%d-%s" % (id(self), uniqueID)


# --- CAPA ----------------------------------------------------------------------------------------------


def capability(name: str, rules: str, *tags: bytes, states: str = "AT", lacks: bytes = b"") -> None:
    """
    Declare a mutant that in some states announces the further capabilities C{tags}, and omits the
    capability C{lacks}.
    """

    class Announces(ToyServer):
        def capabilities(self) -> list[bytes]:
            found = super().capabilities()
            if self.state not in states:
                return found
            return [*(each for each in found if not each.startswith(lacks or b" ")), *tags]

    assert name not in MUTANTS
    MUTANTS[name] = Mutant(Announces, tuple(rules.split()))


capability("tagWithDot", "capaBeforeLogin capaAfterLogin", b"X.Y")
capability("tagWithTwoSpaces", "capaBeforeLogin", b"XY  Z")
capability("capabilityTooLong", "capaBeforeLogin", b"XY " + b"z" * 600)
capability("delayOfNoTime", "capaBeforeLogin", b"LOGIN-DELAY")
capability("expiresSometimes", "capaBeforeLogin", b"EXPIRE later", lacks=b"EXPIRE")
capability("topWithArgument", "capaAfterLogin", b"TOP 5", lacks=b"TOP")
capability("saslInWords", "capaBeforeLogin", b"SASL plain,login", lacks=b"SASL")
capability("uidlOnlyBefore", "capaInBothStates", states="T", lacks=b"UIDL")
capability("saslOnlyBefore", "saslInBothStates", states="T", lacks=b"SASL")
capability("stlsInside", "noSTLSInsideTLS", b"STLS")
capability("startsNothing", "mechanismsStart", b"SASL PLAIN SCRAM-SHA-256", lacks=b"SASL")
capability("lies", "xTLSIsTrue", b"X-TLS True", lacks=b"X-TLS")
replaced("noTop", "topIsThere", rb"TOP .*", rb"(?s)\+OK.*", rb"-ERR unknown\r\n")
replaced("noUidl", "uidlIsThere", rb"UIDL", rb"(?s)\+OK.*", rb"-ERR unknown\r\n")
replaced("noAUTH", "mechanismsStart", rb"AUTH .*", rb"(?s).*", rb"-ERR unknown\r\n")


@mutant("userIsThere")
class userOnceOnly(ToyServer):
    def doUSER(self, name: bytes) -> bytes:
        self.factory.users = getattr(self.factory, "users", 0) + 1
        if self.factory.users > 1:
            raise Refused("not today")
        return super().doUSER(name)


# --- PIPELINING ---------------------------------------------------------------------------------------------


@mutant("twentyInOneSegment", "commandsAfterRetr", "loginInOneSegment", timeout=_SHORT)
class oneCommandASegment(ToyServer):
    def dataReceived(self, data: bytes) -> None:
        super().dataReceived(data.partition(b"\n")[0] + b"\n" if b"\n" in data else data)


@mutant("twentyInOneSegment", "commandsAfterRetr", timeout=_SHORT)
class lastFirst(ToyServer):
    def dataReceived(self, data: bytes) -> None:
        lines = data.splitlines(keepends=True)
        super().dataReceived(b"".join(reversed(lines)) if data.endswith(b"\n") else data)


# --- UTF8 and LANG --------------------------------------------------------------------------------------------


@mutant("noUTF8UnlessAsked")
class utf8ForAll(ToyServer):
    isUTF8 = True


replaced("langInWords", "langLists", rb"LANG", rb"en English", rb"(en) English")
replaced("langUnnamed", "langNamesItsChoice", rb"LANG \*", rb"en spoken", rb"as_you_like")
replaced("langInLatin1", "languageNamesAreUTF8", rb"LANG", "ö".encode(), "ö".encode("latin-1"))
replaced("langNamesAnother", "listedLanguagesWork", rb"LANG DE", rb"de spoken", rb"en spoken")
replaced("langListedOnly", "listedLanguagesWork", rb"LANG DE", rb"\+OK.*", rb"-ERR no")
replaced("textsInLatin1", "textsAreUTF8", rb"LIST 9.*", "ö".encode(), "ö".encode("latin-1"))
replaced("textsWithControls", "textsAreUTF8", rb"LIST 9.*", "ö".encode(), "\x85".encode())


@mutant("langAfterLogin")
class langBeforeLoginOnly(ToyServer):
    def doLANG(self, tag: bytes | None) -> bytes:
        if tag is not None and self.state == "T":
            raise Refused("not now")
        return super().doLANG(tag)


@mutant("refusedLanguageChangesNothing")
class unknownMeansDefault(ToyServer):
    def doLANG(self, tag: bytes | None) -> bytes:
        try:
            return super().doLANG(tag)
        except Refused:
            self.language = b"en"
            raise


@mutant("languageChangesOnlyTexts")
class codesAreTranslated(ToyServer):
    def inLanguage(self, text: str) -> str:
        return text if self.language == b"en" else f"[ES-GIBT-NICHT] {text}"


@mutant("languageChangesOnlyTexts")
class numbersAreTranslated(ToyServer):
    def doSTAT(self) -> bytes:
        reply = super().doSTAT()
        return reply if self.language == b"en" else reply.replace(b"+OK ", b"+OK Anzahl ")


# --- login ------------------------------------------------------------------------------------------------------


@mutant("wrongPassword", "badBase64")
class welcomesAll(ToyServer):
    def isGood(self, name: bytes, password: bytes) -> bool:
        return True

    def decoded(self, response: bytes) -> bytes:
        return b64decode(response)


@mutant("badBase64")
class forgivesBase64(ToyServer):
    def decoded(self, response: bytes) -> bytes:
        return b64decode(response)


@mutant("wrongPassword")
class refusesAndLogsIn(ToyServer):
    def logIn(self, name: bytes, password: bytes) -> bytes:
        if not self.isGood(name, password):
            self.state = "T"
            raise Refused("[AUTH] wrong")
        return super().logIn(name, password)


@mutant("loginWorks", "loginInOneSegment")
class logsInOnce(ToyServer):
    def logIn(self, name: bytes, password: bytes) -> bytes:
        self.factory.logins = getattr(self.factory, "logins", 0) + 1
        if self.factory.logins > 1:
            raise Refused("not today")
        return super().logIn(name, password)


def shortPasswords(name: str, verb: bytes, most: int, said: bytes) -> None:
    """
    Declare a mutant that limits the lines of one verb to a number of octets.

    @param said: the answer to longer lines; if empty, the connection is closed.
    """

    class Short(ToyServer):
        def lineReceived(self, line: bytes) -> None:
            if not line.upper().startswith(verb) or len(line) <= most:
                super().lineReceived(line)
            elif said:
                self.write(said)
            else:
                self.transport.loseConnection()

    assert name not in MUTANTS
    MUTANTS[name] = Mutant(Short, ("longPasswords",))


@mutant("longPasswords")
class passOf255WithoutCodes(ToyServer):
    """
    Announces no response codes; only the texts of its replies tell the errors apart.
    """

    MAX_LENGTH = 5000

    def capabilities(self) -> list[bytes]:
        return [each for each in super().capabilities() if b"RESP-CODE" not in each]

    def logIn(self, name: bytes, password: bytes) -> bytes:
        if not self.isGood(name, password):
            raise Refused("wrong")
        return super().logIn(name, password)

    def doPASS(self, password: bytes) -> bytes:
        if len(password) > 250:
            raise Refused("what?")
        return super().doPASS(password)


shortPasswords("passOf255", b"PASS", 255, b"-ERR line too long\r\n")
shortPasswords("passOf512", b"PASS", 512, b"-ERR line too long\r\n")
shortPasswords("passHangsUp", b"PASS", 255, b"")
shortPasswords("passOf800", b"PASS", 800, b"-ERR line too long\r\n")
shortPasswords("passIsATemporaryFault", b"PASS", 512, b"-ERR [SYS/TEMP] try again\r\n")
shortPasswords("xlogOf255", b"XLOG", 255, b"-ERR line too long\r\n")
shortPasswords("xlogOf512", b"XLOG", 512, b"-ERR line too long\r\n")
replaced("wrongInSilence", "wrongPassword", rb"PASS .*", rb"\[AUTH\] ", b"")
replaced("challengeInWords", "mechanismsStart", rb"AUTH LOGIN", rb"\+ .*\r", rb"+ Username:\r")
replaced("challengeWithText", "emptyChallenge", rb"AUTH PLAIN", rb"\+ \r", rb"+ Z28gb24=\r")
replaced("cancelIsFine", "cancelledByAsterisk", rb"\*", rb"-ERR", rb"+OK")
accepts("anyMechanism", "unknownMechanism", rb"AUTH X-.*")
replaced("noInitialResponse", "plainAtOnce", rb"AUTH PLAIN .+", rb"(?s)\+OK.*", rb"+ \r\n")


@mutant("plainLogsIn")
class mechanismsInUpperCase(ToyServer):
    def doAUTH(self, name: bytes, initial: bytes | None) -> bytes:
        if name != name.upper():
            raise Refused("no such mechanism")
        return super().doAUTH(name, initial)


# --- TLS -------------------------------------------------------------------------------------------------------------


@mutant("certificateIsValid", name="localhost.localdomain")
class anotherName(ToyServer):
    pass


@mutant("stlsDropsWhatFollows")
class keepsWhatFollows(ToyServer):
    def beginTLS(self) -> None:
        self.isSecure = True
        self.transport.startTLS(self.factory.options)


@mutant("stlsForgetsTheUser")
class remembersTheUser(ToyServer):
    def beginTLS(self) -> None:
        name = self.name
        super().beginTLS()
        self.name = name


@mutant("stlsSendsNoGreeting")
class greetsAgain(ToyServer):
    def beginTLS(self) -> None:
        super().beginTLS()
        self.write(self.greeting())


@mutant("certificateIsValid", "tlsIsRecent")
class startsNoTLS(ToyServer):
    def beginTLS(self) -> None:
        self.write(b"-ERR after all\r\n")
        self.transport.loseConnection()


@mutant("closeAlert")
class noCloseAlert(ToyServer):
    def bye(self) -> None:
        if self.isSecure:
            # Close the TCP connection without a close alert.
            tls = self.transport.protocol
            assert ITransport.providedBy(tls.transport)
            tls._flushSendBIO()
            self.factory.reactor.callLater(0.2, tls.transport.abortConnection)
        else:
            super().bye()


# --- extensions -----------------------------------------------------------------------------------------------------------


@mutant("messagesByUniqueID")
class prefixInUpperCase(ToyServer):
    def pattern(self, verb: bytes, pattern: bytes) -> bytes:
        return pattern.replace(b"(?i:UID:)", b"UID:")


replaced("unknownWithoutCode", "noSuchUniqueID", rb"LIST UID:.*", rb"\[UID/NOT-FOUND\] ", b"")
replaced("wakesInSilence", "sleepAndWake", rb"WAKE", rb"\[.*\] ", b"")
replaced("coreInSilence", "coreRefreshes", rb"CORE", rb"\[.*\] ", b"")
replaced("sleepIsDeep", "sleepAndWake", rb"NOOP", rb"\+OK", rb"-ERR")
replaced("noXLOG", "xlogLogsIn", rb"XLOG .* .*", rb"(?s)\+OK.*", rb"-ERR no\r\n")


@mutant("sleepReleasesTheMailbox", timeout=_SHORT)
class sleepsOnTheMailbox(ToyServer):
    def doSLEE(self) -> bytes:
        reply = super().doSLEE()
        self.factory.holder = self
        return reply


@mutant("qautLogsOut")
class qautStays(ToyServer):
    def doQAUT(self) -> bytes:
        return b"+OK\r\n"


# --- deletion ----------------------------------------------------------------------------------------------------------------


@mutant("deleHides", "quitDeletes", "coreDeletes", "sleeDeletes", "qautDeletes", "deleByUniqueID")
class marksNothing(ToyServer):
    def doDELE(self, argument: bytes) -> bytes:
        return b"+OK marked\r\n"


@mutant("rsetUnmarks", "lostConnectionDeletesNothing")
class deletesAtOnce(ToyServer):
    def doDELE(self, argument: bytes) -> bytes:
        return self.doDELI(argument)


@mutant("lostConnectionDeletesNothing")
class commitsWhenLost(ToyServer):
    def connectionLost(self, reason: object = None) -> None:
        if self.state == "T":
            self.commit()
        super().connectionLost(reason)


@mutant("rsetUnmarks")
class rsetForgets(ToyServer):
    def doRSET(self) -> bytes:
        return b"+OK done\r\n"


@mutant("quitDeletes")
class deletesTheNext(ToyServer):
    def commit(self) -> None:
        self.marked = {self.listed[self.listed.index(each) - 1] for each in self.marked}
        super().commit()


@mutant("coreDeletes", "sleeDeletes", "qautDeletes")
class commitsAtQuitOnly(ToyServer):
    def commit(self) -> None:
        if self.state == "Q":
            super().commit()


class inEqualPieces(ToyServer):
    """
    A server without faults that sends a multi-line reply in segments of equal size.  Only the final
    dot remains for the last segment.
    """

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        super().connectionMade()

    def write(self, data: bytes) -> None:
        pieces = [data]
        if self.state == "T" and data.endswith(b"\r\n.\r\n"):
            even = (each for each in range(10, len(data) // 2) if len(data) % each == 3)
            most = next(even, len(data))
            pieces = [data[at : at + most] for at in range(0, len(data), most)]
        _inSegments(self, pieces)


class sharing(ToyServer):
    """
    A server without faults that lets two sessions open the mailbox at the same time.
    """

    def take(self) -> None:
        self.listAgain()

    def isHidden(self, uniqueID: bytes) -> bool:
        return uniqueID in self.marked

    def size(self, uniqueID: bytes) -> int:
        return super().size(uniqueID) if uniqueID in self.factory.messages else 0

    def content(self, argument: bytes) -> bytes:
        if self.find(argument)[1] not in self.factory.messages:
            raise Refused("it has gone")
        return super().content(argument)


class _sizesOfAll(sharing):
    def size(self, uniqueID: bytes) -> int:
        if uniqueID not in self.factory.messages:
            raise Refused("cannot count")
        return super().size(uniqueID)


@mutant("deletedByAnotherSession")
class statNeedsAll(_sizesOfAll):
    def doLIST(self, argument: bytes | None) -> bytes:
        return _lenient(self, argument)


@mutant("deletedByAnotherSession")
class listNeedsAll(_sizesOfAll):
    def doSTAT(self) -> bytes:
        return b"+OK %d 1\r\n" % len(self.listed)


def _lenient(toy: ToyServer, argument: bytes | None) -> bytes:
    """
    @return: what a server without the fault replies to LIST.
    """
    lenient = sharing()
    lenient.factory, lenient.listed, lenient.marked = toy.factory, toy.listed, toy.marked
    return lenient.doLIST(argument)


@mutant("deletedByAnotherSession")
class oneSpoilsTheOthers(sharing):
    """
    Gives the size 0 for all messages if one message has gone.
    """

    def size(self, uniqueID: bytes) -> int:
        if any(each not in self.factory.messages for each in self.listed):
            return 0
        return super().size(uniqueID)


@mutant("deletedByAnotherSession")
class oneSpoilsReading(sharing):
    def content(self, argument: bytes) -> bytes:
        if any(each not in self.factory.messages for each in self.listed):
            raise Refused("the mailbox has changed")
        return super().content(argument)


@mutant("deletedByAnotherSession")
class whatHasGoneComesBack(sharing):
    def connectionLost(self, reason: object = None) -> None:
        super().connectionLost(reason)
        if self.listed:
            self.factory.messages.setdefault(self.listed[0], b"Subject: again\r\n")


@mutant("deliDeletesAtOnce")
class deliMarks(ToyServer):
    def doDELI(self, argument: bytes) -> bytes:
        return self.doDELE(argument)


@mutant("deleHides")
class countsTheMarked(ToyServer):
    def doSTAT(self) -> bytes:
        return b"+OK %d 1\r\n" % len(self.listed)


# Rules that do not apply to the plain toy server.  The value for each rule is another server
# without faults, to which the rule applies.
OTHERWISE: dict[str, type[ToyServer]] = {"deletedByAnotherSession": sharing}
# For some rules, a further server without faults with which the rule has to pass.
INNOCENT: dict[str, type[ToyServer]] = {"retrEndsWithItsLastOctets": inEqualPieces}

# --- replies --------------------------------------------------------------------------------------------------------------------

replaced("lowerCase", "statusInUpperCase", rb"NOOP", rb"\+OK", rb"+Ok")
replaced("gluedText", "statusInUpperCase", rb"NOOP", rb"\+OK ", rb"+OK-")
replaced("endsWithLF", "repliesEndWithCRLF", rb"NOOP", rb"\r\n", rb"\n")
replaced("longReplies", "firstLinesAreShort", rb"NOOP", rb"done", b"done" * 200)
replaced("badCode", "responseCodesHaveTheirForm", rb"NOOP", rb"done", rb"[done / x] done")
replaced("openCode", "responseCodesHaveTheirForm", rb"NOOP", rb"done", rb"[done")
replaced("marksSingle", "multiLineRepliesAreMarked", rb"NOOP", rb"done", rb"done _")
replaced("marksNoMulti", "multiLineRepliesAreMarked", rb"LIST", rb" _", b"")
replaced("fullStop", "noFullStopBeforeTheLines", rb"LIST", rb"follows", b"It follows.")
replaced("dotInAName", "noFullStopBeforeTheLines", rb"LIST", rb"follows", b"pop.example follows")
rewritten(
    "printsUTF8",
    "repliesArePrintable",
    lambda line, reply: reply.replace(b"done", "erledigt ✓".encode()),
)

# Rules that get replies.  They run together with the rules about replies, which check these
# replies.
_REPLIES = ("noopDoesNothing", "listHasItsForm", "languageChangesOnlyTexts")


# --- running them ------------------------------------------------------------------------------------------------------------------


async def _outcomes(
    reactor: Any, each: Mutant, options: Any, certificate: Path, only: tuple[str, ...]
) -> dict[str, list[str]]:
    """
    @return: the outcome of each rule and what the rule has seen, by the name of the rule.
    """
    factory: Any = ToyFactory(each.toy, options)
    factory.reactor = reactor
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    try:
        creator = command._creator(each.name, str(certificate))
        number = port.getHost().port
        target = Target(
            reactor, "127.0.0.1", number, each.mode, USER, PASSWORD, creator, each.timeout
        )
        try:
            await target.begin()
        except Exception as error:
            return {"begin": ["failed", str(error)]}
        results = await check(target, destructive=True, only=only)
        return {found.rule.name: [found.outcome.value, found.seen] for found in results}
    finally:
        await port.stopListening()


async def _all(reactor: Any) -> None:
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        certificate, privateKey = Path(directory) / "certificate", Path(directory) / "key"
        _makeCertificate(certificate, privateKey)
        pair = ssl.PrivateCertificate.loadPEM(certificate.read_bytes() + privateKey.read_bytes())
        options = pair.options()
        whole = Mutant(ToyServer, ())
        found["whole"] = await _outcomes(reactor, whole, options, certificate, ())
        for rule, toy in (OTHERWISE | INNOCENT).items():
            whole = Mutant(toy, ())
            found[toy.__name__] = await _outcomes(reactor, whole, options, certificate, (rule,))
        for name, each in MUTANTS.items():
            only = each.rules + _REPLIES if each.rules[0] in _ABOUT_REPLIES else each.rules
            found[name] = await _outcomes(reactor, each, options, certificate, only)
    json.dump(found, sys.stdout)


_ABOUT_REPLIES = (
    "statusInUpperCase",
    "repliesEndWithCRLF",
    "repliesArePrintable",
    "textsAreUTF8",
    "responseCodesHaveTheirForm",
    "multiLineRepliesAreMarked",
    "firstLinesAreShort",
    "noFullStopBeforeTheLines",
)

if __name__ == "__main__":
    if "--quiet" in sys.argv:
        globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    react(lambda reactor: Deferred.fromCoroutine(_all(reactor)))
