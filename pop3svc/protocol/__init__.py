"""
The POP3 protocol: bytes to replies.  It knows the wire, never a storage.
"""
