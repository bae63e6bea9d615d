"""
The POP3 protocol, from octets to replies.  This package does not know how mail is stored.
"""
