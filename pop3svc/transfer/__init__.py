"""
Move whole mailboxes: C{pop3svc import} and C{pop3svc export}.
"""
