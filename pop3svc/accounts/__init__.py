"""
Sources of accounts, which check passwords, and the limits on failed logins.
"""
