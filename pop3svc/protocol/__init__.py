"""
The POP3 protocol, from octets to replies.  It does not know how mail is stored.
"""
