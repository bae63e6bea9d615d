"""
How mail gets in: the command C{pop3svc deliver}, and LMTP.
"""
