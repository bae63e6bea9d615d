"""
Read the files of other POP3 servers, so that messages keep the unique-ids that clients already
know.
"""

from pop3svc.migration.headers import uniqueIDInHeader
from pop3svc.migration.records import DamagedFile
from pop3svc.migration.schemes import Scheme, parseScheme
from pop3svc.migration.uniqueids import uniqueIDsOf

__all__ = ["DamagedFile", "Scheme", "parseScheme", "uniqueIDInHeader", "uniqueIDsOf"]
