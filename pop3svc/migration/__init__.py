"""
Read what other POP3 servers have written, so that clients keep the unique-ids they know.
"""

from pop3svc.migration.headers import uniqueIDInHeader
from pop3svc.migration.records import DamagedFile
from pop3svc.migration.schemes import Scheme, parseScheme
from pop3svc.migration.uniqueids import uniqueIDsOf

__all__ = ["DamagedFile", "Scheme", "parseScheme", "uniqueIDInHeader", "uniqueIDsOf"]
