"""
The plugins that make bundled providers and checkers from strings of the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import ICheckerFactory
from twisted.logger import Logger
from twisted.plugin import IPlugin
from zope.interface import implementer

from pop3svc.accounts.hashes import HashReader
from pop3svc.accounts.passwordfile import PasswordFile
from pop3svc.credentials import IBearerToken
from pop3svc.interfaces import IPOP3ProviderPlugin
from pop3svc.providers.folder import FolderStore
from pop3svc.providers.locking import LockPolicy
from pop3svc.providers.maildir import ExpiringMaildirStore, MaildirStore
from pop3svc.providers.mbox import MboxStore
from pop3svc.providers.memory import MemoryStore
from pop3svc.providers.owners import FIRST_UID
from pop3svc.providers.upstream import UpstreamProvider
from pop3svc.service.arguments import parseArguments
from pop3svc.service.settings import secretPath

__all__ = [
    "HTTPAccountsMaker",
    "LDAPAccountsMaker",
    "OAuthMaker",
    "PAMAccountsMaker",
    "PasswordFileMaker",
    "ProviderPlugin",
    "SQLAccountsMaker",
    "makeFolder",
    "makeMaildir",
    "makeMbox",
    "makeMemory",
    "makeSQL",
    "makeUpstream",
]

log = Logger(namespace="pop3svc")


@implementer(IPlugin, IPOP3ProviderPlugin)
class ProviderPlugin:
    """
    A kind of provider for C{--provider}.
    """

    def __init__(
        self, prefix: str, argumentFormat: str, help: str, make: Callable[[str], Any]
    ) -> None:
        self.prefix = prefix
        self.argumentFormat = argumentFormat
        self.help = help
        self._make = make

    def makeProvider(self, argument: str) -> Any:
        """
        See L{IPOP3ProviderPlugin.makeProvider}.
        """
        return self._make(argument)


def _manners(lock: str, wait: str | None) -> LockPolicy:
    if lock not in ("refuse", "wait", "takeover"):
        raise ValueError("lock is refuse, wait or takeover")
    if wait is None:
        wait = "10"
    elif lock != "wait":
        raise ValueError("wait requires lock=wait")
    if not (wait.isascii() and wait.isdigit() and len(wait) < 4):
        raise ValueError("wait is a number of seconds")
    return LockPolicy(lock == "takeover", float(wait) if lock == "wait" else 0.0)


def _pathAndMore(
    argument: str, texts: Sequence[str] = (), **switches: tuple[str, str, str]
) -> dict[str, Any]:
    """
    Parse the argument of a kind of provider that has a path.

    @param texts: the names of further options whose value is a text.  The result has these options
        under their names.
    @param switches: further options, by name.  Each option has the keyword for the provider, the
        word that turns the option on, and the word that turns it off.  Off is the default.
    @return: the keyword arguments for the provider, and the options in C{texts}.
    @raise ValueError: the argument is not valid; the text says why.
    """
    positional, named = parseArguments(argument)
    path = named.pop("path", None)
    if path is None and len(positional) == 1:
        path = positional[0]
    elif positional != [] and path is not None:
        raise ValueError("one path is needed")
    if not path:
        raise ValueError("a path is needed")
    chosen: dict[str, Any] = {}
    for name in texts:
        if name in named:
            chosen[name] = named.pop(name)
    readOnly = named.pop("readonly", "no")
    manners = _manners(named.pop("lock", "takeover"), named.pop("wait", None))
    for name, (keyword, on, off) in switches.items():
        word = named.pop(name, off)
        if word not in (on, off):
            raise ValueError(f"{name} is {on} or {off}")
        chosen[keyword] = word == on
    if named:
        raise ValueError(f"{sorted(named)[0]} is not known")
    if readOnly not in ("yes", "no"):
        raise ValueError("readonly is yes or no")
    return {"path": path, "readOnly": readOnly == "yes", "manners": manners, **chosen}


def makeMaildir(argument: str) -> MaildirStore:
    """
    Make a store of Maildirs.

    @param argument: C{PATH[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS][:slow=yes]
        [:sizes=names][:separator=;][:uidl=dovecot|courier|FORMAT][:control=DIR]
        [:duplicates=rename][:xuidl=yes][:expire=DAYS][:owner=user][:firstuid=UID]}
    """
    options = _pathAndMore(
        argument,
        ("separator", "uidl", "control", "duplicates", "expire", "owner", "firstuid"),
        slow=("isSlow", "yes", "no"),
        sizes=("believesNames", "names", "counted"),
        xuidl=("usesHeaders", "yes", "no"),
    )
    _takeOwner(options)
    days = _number(options, "expire", 0)
    return ExpiringMaildirStore(expireDays=days, **options) if days else MaildirStore(**options)


def _takeOwner(options: dict[str, Any]) -> None:
    """
    Replace the options C{owner} and C{firstuid} by keyword arguments of the store.
    """
    owner = options.pop("owner", "service")
    if owner not in ("user", "service"):
        raise ValueError("owner is user or service")
    if owner == "service":
        if "firstuid" in options:
            raise ValueError("firstuid requires owner=user")
        return
    options["isOwnedByUsers"] = True
    options["firstUID"] = _number(options, "firstuid", FIRST_UID)
    if options["firstUID"] < 1:
        raise ValueError("firstuid is a number from 1, because root gets no mail")


def _number(options: dict[str, Any], name: str, default: int) -> int:
    """
    Remove an option from the options.

    @return: the value of the option, which is a number.
    @raise ValueError: the value is not a number.
    """
    text = options.pop(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise ValueError(f"{name} is a number")
    return int(text)


def makeMbox(argument: str) -> MboxStore:
    """
    Make a store of mbox files.

    @param argument: C{PATH[:variant=mboxo|mboxrd|mboxcl2][:uidl=x-uidl][:readonly=yes]
        [:lock=refuse|wait|takeover][:wait=SECONDS][:owner=user][:firstuid=UID]}
    """
    options = _pathAndMore(
        argument, ("variant", "owner", "firstuid"), uidl=("usesXUIDL", "x-uidl", "digest")
    )
    _takeOwner(options)
    return MboxStore(**options)


def makeFolder(argument: str) -> FolderStore:
    """
    Make a store of folders.

    @param argument: C{PATH[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS]}
    """
    return FolderStore(**_pathAndMore(argument))


# An argument of the kind "sql" that begins with one of these prefixes is a DSN without options.
_DSN = ("sqlite:", "postgresql:", "postgres:")


def optionsOfSQL(argument: str) -> dict[str, str]:
    """
    @param argument: see L{makeSQL}.
    @return: the options by name; C{dsn} is one of them.
    @raise ValueError: the DSN is missing.
    """
    if argument.startswith(_DSN):
        return {"dsn": argument}
    positional, named = parseArguments(argument)
    if positional or not named.get("dsn"):
        raise ValueError("a DSN is needed, such as sqlite:PATH")
    return named


def makeSQL(argument: str) -> Any:
    """
    Make a store of mailboxes in a database.

    @param argument: C{DSN} or C{dsn=DSN[:readonly=yes][:lock=refuse|wait|takeover]
        [:wait=SECONDS][:lease=SECONDS][:quota=OCTETS][:messages=NUMBER][:expire=DAYS]
        [:required=yes]}, with C{\\:} and C{\\=} in the DSN
    """
    # These modules are imported here, because few services use the kind "sql".
    from pop3svc.database import DatabaseUnavailable
    from pop3svc.drivers import makeDriver
    from pop3svc.providers.sql.delivery import Quota
    from pop3svc.providers.sql.store import SQLStore

    named = optionsOfSQL(argument)
    manners = _manners(named.pop("lock", "takeover"), named.pop("wait", None))
    switches = {}
    for name in ("readonly", "required"):
        switches[name] = named.pop(name, "no")
        if switches[name] not in ("yes", "no"):
            raise ValueError(f"{name} is yes or no")
    defaults = {"lease": 30, "quota": 0, "messages": 0, "expire": 0}
    numbers = {name: _number(named, name, default) for name, default in defaults.items()}
    if not 5 <= numbers["lease"] <= 3600:
        raise ValueError("lease is a number of seconds, from 5 to 3600")
    dsn = named.pop("dsn")
    if named:
        raise ValueError(f"{sorted(named)[0]} is not known")
    isReadOnly = switches["readonly"] == "yes"
    store = SQLStore(
        makeDriver(dsn, isReadOnly, mayCreate=not isReadOnly),
        isReadOnly,
        manners,
        lease=numbers["lease"],
        quota=Quota(numbers["quota"], numbers["messages"]),
        expireDays=numbers["expire"],
    )
    try:
        store.check()
    except DatabaseUnavailable as error:
        if switches["required"] == "yes":
            raise ValueError(str(error))
        log.warn("{error}; logins get [SYS/TEMP] until the database is back", error=str(error))
    return store


def makeMemory(argument: str) -> MemoryStore:
    """
    Make a store of generated messages in memory.

    @param argument: C{[messages=N]}
    """
    positional, named = parseArguments(argument)
    number = named.pop("messages", "1")
    if named or positional not in ([], [""]):
        raise ValueError("only messages=N is known")
    if not (number.isascii() and number.isdigit() and len(number) < 7):
        raise ValueError("messages is a number")
    return MemoryStore(
        [
            f"From: pop3svc\nSubject: message {each}\n\nOne of {number}.\n".encode("ascii")
            for each in range(1, int(number) + 1)
        ]
    )


_UPSTREAM = re.compile(r"((?:[^:]|:(?![a-z]+=))*)(?::([a-z]+=.*))?")


def makeUpstream(argument: str) -> UpstreamProvider:
    """
    Make a provider that passes logins on to another server.

    @param argument: C{pop3s://HOST[:PORT]} or C{imaps://HOST[:PORT][/MAILBOX]}, then
        C{[:ca=FILE][:insecure=yes][:sizes=counted]}.  C{pop3://} and C{imap://} are also possible.
    """
    found = _UPSTREAM.fullmatch(argument)
    address, options = ("", None) if found is None else found.groups()
    positional, named = parseArguments(options or "")
    if options is None:
        positional = []
    authorities = named.pop("ca", None)
    chosen: dict[str, str] = {}
    for name, on, off in (("insecure", "yes", "no"), ("sizes", "counted", "upstream")):
        chosen[name] = named.pop(name, off)
        if chosen[name] not in (on, off):
            raise ValueError(f"{name} is {on} or {off}")
    if named or positional:
        raise ValueError(f"{sorted([*named, *positional])[0]} is not known")
    return UpstreamProvider(
        address, authorities, chosen["insecure"] == "yes", chosen["sizes"] == "upstream"
    )


@implementer(IPlugin, ICheckerFactory)
class PasswordFileMaker:
    """
    The kind C{passwd:FILE} for C{--auth}.
    """

    authType = "passwd"
    authHelp = (
        "A file with a line name:hash for each user, or with lines of Dovecot's "
        "passwd-file.  'pop3svc user' manages the file, with argon2id hashes by "
        "default.  The service reads the file again when it changes."
    )
    argStringFormat = "the file's path"
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring: str) -> PasswordFile:
        """
        See L{ICheckerFactory.generateChecker}.
        """
        if not argstring:
            raise ValueError("a file is needed")
        return PasswordFile(argstring)


def _optionsBehind(text: str, names: str) -> tuple[str, dict[str, str]]:
    """
    Take options from the end of a text.  The text in front of the options may contain colons.

    @param names: the names of options, separated by C{|}.
    @return: the text before the options, and the options by name.
    @raise ValueError: an option is given twice.
    """
    pattern = re.compile(rf":({names})=([^:=]*)\Z")
    options: dict[str, str] = {}
    while (option := pattern.search(text)) is not None:
        if option[1] in options:
            raise ValueError(f"{option[1]} is given twice")
        options[option[1]] = option[2]
        text = text[: option.start()]
    return text, options


def _statementsIn(text: str) -> tuple[str, dict[str, str]]:
    """
    Take the SQL statements from the end of an argument of C{sql}.  The first statement is C{query},
    and C{apps} and C{used} may follow.  Colons in the statements need no backslash.

    @return: the text before the statements, and the statements by name.
    @raise ValueError: a statement is given twice.
    """
    rest, _, behind = text.partition(":query=")
    query, *parts = re.split(r":(apps|used)=", behind)
    statements = {"query": query.strip()}
    for name, statement in zip(parts[::2], parts[1::2], strict=True):
        if name in statements:
            raise ValueError(f"{name} is given twice")
        statements[name] = statement.strip()
    return rest, statements


# The connections of a process to the database of accounts.  Two are enough, because each login
# needs a connection for a few milliseconds.
_CONNECTIONS = 2


@implementer(IPlugin, ICheckerFactory)
class SQLAccountsMaker:
    """
    The kind C{sql:DSN[:scheme=SCHEME][:courier=yes][:required=yes]:query=QUERY[:apps=QUERY]
    [:used=STATEMENT]} for C{--auth}.
    """

    authType = "sql"
    authHelp = (
        "Accounts in a database: sqlite:PATH or "
        "postgresql://USER:PASSWORD@HOST/DATABASE.  The query has the parameters :user, "
        ":local and :domain.  It returns one row or none, with the column password, and "
        "the optional columns user, nologin and allow_nets.  apps= is a query for "
        "application passwords, and used= is a statement that records their last use.  "
        "query=, apps= and used= come last, and colons in them need no backslash.  "
        "scheme= names the scheme of passwords that name no scheme.  With courier=yes, "
        "{MD5} has Courier's form.  With required=yes, the service does not start while "
        "the database does not answer."
    )
    argStringFormat = (
        "DSN[:scheme=SCHEME][:courier=yes][:required=yes]:query=QUERY[:apps=QUERY][:used=STATEMENT]"
    )
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring: str) -> Any:
        """
        See L{ICheckerFactory.generateChecker}.
        """
        # These modules are imported here, because few services use the kind "sql".
        from pop3svc.accounts.sqlaccounts import SQLAccounts
        from pop3svc.accounts.sqlapppasswords import SQLAppPasswords
        from pop3svc.database import Database, DatabaseUnavailable
        from pop3svc.drivers import makeDriver

        rest, statements = _statementsIn(argstring)
        query = statements["query"]
        if not query:
            raise ValueError("a query is needed, as in sql:DSN:query=SELECT ...")
        if "used" in statements and "apps" not in statements:
            raise ValueError("used requires apps")
        rest, options = _optionsBehind(rest, "scheme|courier|required")
        for name in ("courier", "required"):
            if options.setdefault(name, "no") not in ("yes", "no"):
                raise ValueError(f"{name} is yes or no")
        driver = makeDriver(rest, isReadOnly=True, prepares=False)
        reader = HashReader(options.get("scheme", "CRYPT"), options["courier"] == "yes")
        database = Database(driver, threads=_CONNECTIONS)
        apps: Any = None
        if "apps" in statements:
            writing = None
            if "used" in statements:
                writing = Database(makeDriver(rest, prepares=False), threads=1)
            apps = SQLAppPasswords(
                database, statements["apps"], writing, statements.get("used", "")
            )
        accounts = SQLAccounts(database, query, reader, apps=apps)
        try:
            accounts.check()
        except DatabaseUnavailable as error:
            if options["required"] == "yes":
                raise ValueError(str(error))
        return accounts


@implementer(IPlugin, ICheckerFactory)
class HTTPAccountsMaker:
    """
    The kind C{http:URL[:timeout=SECONDS][:concurrent=NUMBER][:ca=FILE][:insecure=yes]} for
    C{--auth}.
    """

    authType = "http"
    authHelp = (
        "A server that checks passwords.  It gets a POST with the JSON object {name, password, "
        'address, tls}, and answers 200 with {"user": MAILBOX}, or 401.  timeout= is the time for '
        "an exchange, 5 seconds by default.  concurrent= is the number of requests at the same "
        "time, 10 by default.  ca= names a file of certificates to trust instead of the system's. "
        " insecure=yes allows http:// to another machine."
    )
    argStringFormat = "URL[:timeout=SECONDS][:concurrent=NUMBER][:ca=FILE][:insecure=yes]"
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring: str) -> Any:
        """
        See L{ICheckerFactory.generateChecker}.
        """
        # The module is imported here, because few services use the kind "http".
        from pop3svc.accounts.httpaccounts import CONCURRENT, TIMEOUT, HTTPAccounts

        url, options = _optionsBehind(argstring, "timeout|concurrent|ca|insecure")
        insecure = options.pop("insecure", "no")
        if insecure not in ("yes", "no"):
            raise ValueError("insecure is yes or no")
        timeout = _number(options, "timeout", TIMEOUT)
        if not 1 <= timeout <= 60:
            raise ValueError("timeout is a number of seconds, from 1 to 60")
        concurrent = _number(options, "concurrent", CONCURRENT)
        if not 1 <= concurrent <= 1000:
            raise ValueError("concurrent is a number from 1 to 1000")
        return HTTPAccounts(url, timeout, concurrent, options.get("ca"), insecure == "yes")


@implementer(IPlugin, ICheckerFactory)
class LDAPAccountsMaker:
    """
    The kind C{ldap:URL:base=DN} or C{ldap:URL:dn=TEMPLATE} for C{--auth}.
    """

    authType = "ldap"
    authHelp = (
        "Accounts in an LDAP directory: ldaps://HOST, or ldap://HOST with starttls=yes.  "
        "The service searches below base= with filter=, which is (uid={user}) by "
        "default.  If it finds one entry, it binds with the entry's DN and the password "
        "of the login.  bind= is the DN for the search.  password-file= or "
        "password-credential= names the password for the search.  Instead of base=, dn= "
        "gives the DN of each user, such as uid={user},ou=people,dc=example,dc=org.  "
        "user= names the attribute with the name of the mailbox.  ca= names a file of "
        "certificates to trust instead of the system's.  insecure=yes allows ldap:// to "
        "another machine without TLS.  Colons need no backslash."
    )
    argStringFormat = (
        "URL:base=DN[:filter=FILTER][:scope=one][:bind=DN:password-file=FILE] or URL:dn=TEMPLATE, "
        "then [:user=ATTRIBUTE][:starttls=yes][:ca=FILE][:timeout=SECONDS][:concurrent=NUMBER]"
        "[:insecure=yes]"
    )
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring: str) -> Any:
        """
        See L{ICheckerFactory.generateChecker}.
        """
        try:
            from pop3svc.service.ldapoptions import makeLDAP
        except ModuleNotFoundError:
            raise ValueError("python-ldap is needed: pip install 'pop3svc[ldap]'")
        return makeLDAP(argstring)


@implementer(IPlugin, ICheckerFactory)
class PAMAccountsMaker:
    """
    The kind C{pam:[SERVICE][:timeout=SECONDS][:concurrent=NUMBER][:nss=no]} for C{--auth}.
    """

    authType = "pam"
    authHelp = (
        "Accounts that PAM knows, such as those of the system.  The service is the name "
        "of a file in /etc/pam.d, pop3svc by default.  timeout= is the time for a check, "
        "15 seconds by default.  concurrent= is the number of checks at the same time, "
        "10 by default.  With nss=no, each existing mailbox accepts mail, because the "
        "system does not know the users."
    )
    argStringFormat = "[SERVICE][:timeout=SECONDS][:concurrent=NUMBER][:nss=no]"
    credentialInterfaces = (IUsernamePassword,)

    def generateChecker(self, argstring: str) -> Any:
        """
        See L{ICheckerFactory.generateChecker}.
        """
        try:
            from pop3svc.accounts.blockingchecks import CONCURRENT
            from pop3svc.accounts.pamaccounts import SERVICE, TIMEOUT, PAMAccounts
        except ModuleNotFoundError:
            raise ValueError("pamela is needed: pip install 'pop3svc[pam]'")
        except (AttributeError, OSError):
            # The import of pamela loads the library of PAM.
            raise ValueError("the library of PAM is needed, libpam.so")
        # Put a colon in front, because _optionsBehind expects a colon before the first option.
        service, options = _optionsBehind(f":{argstring}", "timeout|concurrent|nss")
        nss = options.pop("nss", "yes")
        if nss not in ("yes", "no"):
            raise ValueError("nss is yes or no")
        timeout = _number(options, "timeout", TIMEOUT)
        if not 1 <= timeout <= 60:
            raise ValueError("timeout is a number of seconds, from 1 to 60")
        concurrent = _number(options, "concurrent", CONCURRENT)
        if not 1 <= concurrent <= 100:
            raise ValueError("concurrent is a number from 1 to 100")
        return PAMAccounts(service[1:] or SERVICE, timeout, concurrent, nss == "yes")


@implementer(IPlugin, ICheckerFactory)
class OAuthMaker:
    """
    The kind C{oauth:jwks=FILE|URL:issuer=ISSUER:audience=AUDIENCE} or
    C{oauth:introspect=URL:client=ID:secret=FILE} for C{--auth}.
    """

    authType = "oauth"
    authHelp = (
        "Users who log in with a token of an OAuth server, by OAUTHBEARER or XOAUTH2.  "
        "jwks is the server's key set, as a file or an https address.  introspect is the "
        "address where the server checks tokens.  client is the name of this service at "
        "the server, and secret is a file with the secret of this service.  "
        "secret-credential= names a systemd credential instead of the file.  Colons in "
        "an address need no backslash.  claim= names the claim that has the user name; by default "
        "it is email for jwks, and username for introspect.  scope=, clients= and algorithms= are "
        "lists with commas.  timeout= and concurrent= limit the requests of introspect.  "
        "ca= names a file of certificates to trust instead of the system's."
    )
    argStringFormat = (
        "jwks=FILE|URL:issuer=ISSUER:audience=AUDIENCE[:algorithms=ALGORITHM,...] or "
        "introspect=URL:client=ID:secret=FILE|secret-credential=NAME[:issuer=ISSUER][:audience=AUDIENCE]"
        "[:timeout=SECONDS][:concurrent=NUMBER], then [:claim=CLAIM][:scope=SCOPE,...]"
        "[:clients=ID,...][:ca=FILE]"
    )
    credentialInterfaces = (IBearerToken,)

    def generateChecker(self, argstring: str) -> Any:
        """
        See L{ICheckerFactory.generateChecker}.
        """
        try:
            import treq  # noqa: F401

            from pop3svc.accounts.oauth import makeOAuth
        except ModuleNotFoundError:
            raise ValueError("joserfc and treq are needed: pip install 'pop3svc[oauth]'")
        return makeOAuth(argstring, lambda name: secretPath({"credential": name}))
