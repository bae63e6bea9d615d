"""
Accounts: checking passwords, and throttling failed logins.
"""
