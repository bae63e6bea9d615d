"""
Receive new mail by the command C{pop3svc deliver} and by LMTP.
"""
