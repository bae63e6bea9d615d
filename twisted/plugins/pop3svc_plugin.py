"""
The plugins of pop3svc for Twisted: the service, the kinds of providers, and the kinds of accounts.
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
    "A Maildir for each user.  PATH is the directory of the Maildirs, or contains {user}, {local} "
    "or {domain}, or begins with {home}.  owner=user: use the files with the rights of each user, "
    "whose uid must be at least firstuid (default: 500).  slow=yes: for a file system that may "
    "block, such as a network file system.  sizes=names: take the sizes of messages from W= in "
    "their file names instead of counting octets.  uidl: keep the unique-ids of Dovecot (FORMAT "
    "is its pop3_uidl_format) or of Courier.  control: the CONTROL directory of Dovecot.  "
    "expire: delete messages that are older than DAYS.",
    makeMaildir,
)
mbox = ProviderPlugin(
    "mbox",
    "PATH[:variant=mboxo|mboxrd|mboxcl2][:uidl=x-uidl][:readonly=yes]"
    "[:lock=refuse|wait|takeover][:wait=SECONDS][:owner=user][:firstuid=UID]",
    "An mbox file for each user.  PATH is the directory of the files, or contains {user}, {local} "
    "or {domain}, or begins with {home}.  owner, firstuid: as for maildir.  variant: how the "
    "files store lines that begin with From (default: mboxo).  uidl=x-uidl: take the unique-id "
    "of a message from its field X-UIDL.",
    makeMbox,
)
folder = ProviderPlugin(
    "folder",
    "PATH[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS]",
    "A folder of .eml files, which all users share.",
    makeFolder,
)
memory = ProviderPlugin(
    "memory", "[messages=N]", "Generated messages for all users; for tests.", makeMemory
)

sql = ProviderPlugin(
    "sql",
    "DSN, or dsn=DSN[:readonly=yes][:lock=refuse|wait|takeover][:wait=SECONDS][:lease=SECONDS]"
    "[:quota=OCTETS][:messages=NUMBER][:expire=DAYS][:required=yes]",
    "Mailboxes in a database: sqlite:PATH, or postgresql://HOST/DATABASE for any number of nodes.  "
    "lease: seconds after which another node may take the mailboxes of a dead node.  quota, "
    "messages: limits of each mailbox.  expire: delete messages that are older than DAYS.  "
    "required=yes: do not start while the database is not available.",
    makeSQL,
)
upstream = ProviderPlugin(
    "upstream",
    "pop3s://HOST[:PORT] or imaps://HOST[:PORT][/MAILBOX], or pop3:// and imap:// for STARTTLS"
    "[:ca=FILE][:insecure=yes][:sizes=counted]",
    "The users and mailboxes of another server, to which the service sends names and passwords.  "
    "ca: certificates to trust instead of those of the system.  insecure=yes: send passwords "
    "without TLS.  sizes=counted: read each message to learn its size.",
    makeUpstream,
)

passwd = PasswordFileMaker()
sqlAccounts = SQLAccountsMaker()
httpAccounts = HTTPAccountsMaker()
ldapAccounts = LDAPAccountsMaker()
pam = PAMAccountsMaker()
oauth = OAuthMaker()
