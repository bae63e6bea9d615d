"""
What pop3svc gives to twistd: the service, its providers, its checker.
"""

from twisted.application.service import ServiceMaker

from pop3svc.service.plugins import (
    HTTPAccountsMaker,
    LDAPAccountsMaker,
    OAuthMaker,
    PAMAccountsMaker,
    PasswordFileMaker,
    ProviderPlugin,
    SQLAccountsMaker,
    makeFolder,
    makeMaildir,
    makeMbox,
    makeMemory,
    makeSQL,
    makeUpstream,
)

service = ServiceMaker(
    "pop3svc", "pop3svc.service.tap", "A POP3 service with pluggable mailbox providers.", "pop3svc"
)

maildir = ProviderPlugin(
    "maildir",
    "PATH[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS][:slow=yes][:sizes=names]"
    "[:uidl=dovecot|courier|FORMAT][:control=DIR][:expire=DAYS][:owner=user][:firstuid=UID]",
    "A Maildir for each user: PATH holds them, or has {user}, {local} and {domain} in it, or "
    "begins with {home}.  owner=user: use the files with the rights of each user, whose uid is "
    "at least firstuid (500).  "
    "slow=yes: on a file system that may make one wait, as over a network.  sizes=names: take "
    "W= in file names for the sizes of messages, in place of counting once.  uidl: keep the "
    "unique-ids of Dovecot (FORMAT is its pop3_uidl_format) or Courier; control: its CONTROL "
    "directory.  expire: delete older messages.",
    makeMaildir,
)
mbox = ProviderPlugin(
    "mbox",
    "PATH[:variant=mboxo|mboxrd|mboxcl2][:uidl=x-uidl][:readonly=yes]"
    "[:lock=refuse|wait|takeover][:wait=SECONDS][:owner=user][:firstuid=UID]",
    "An mbox file for each user: PATH holds them, or has {user}, {local} and {domain} in it, or "
    "begins with {home}.  owner, firstuid: as for maildir.  "
    "variant: how lines that begin with From are kept, mboxo by default.  uidl=x-uidl: take "
    "the field X-UIDL for the unique-id of a message.",
    makeMbox,
)
folder = ProviderPlugin(
    "folder",
    "PATH[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS]",
    "A folder of .eml files, the same for whoever logs in.",
    makeFolder,
)
memory = ProviderPlugin(
    "memory", "[messages=N]", "Made-up messages for whoever logs in; for tests.", makeMemory
)

sql = ProviderPlugin(
    "sql",
    "DSN, or dsn=DSN[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS][:lease=SECONDS]"
    "[:quota=OCTETS][:messages=NUMBER][:expire=DAYS][:required=yes]",
    "Mailboxes in a database: sqlite:PATH, or postgresql://HOST/DATABASE for any number of nodes.  "
    "lease: seconds after which the mailboxes of a node that is gone are free.  quota, messages: "
    "limits of each mailbox.  expire: delete older "
    "messages.  required=yes: do not start while the database is away.",
    makeSQL,
)
upstream = ProviderPlugin(
    "upstream",
    "pop3s://HOST[:PORT] or imaps://HOST[:PORT][/MAILBOX], or pop3:// and imap:// for STARTTLS"
    "[:ca=FILE][:insecure=yes][:sizes=counted]",
    "The users and mailboxes of another server, which gets their names and passwords.  ca: "
    "certificates to trust in place of the system's.  insecure=yes: send passwords without TLS.  "
    "sizes=counted: read each message to learn its size.",
    makeUpstream,
)

passwd = PasswordFileMaker()
sqlAccounts = SQLAccountsMaker()
httpAccounts = HTTPAccountsMaker()
ldapAccounts = LDAPAccountsMaker()
pam = PAMAccountsMaker()
oauth = OAuthMaker()
