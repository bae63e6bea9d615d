"""
Accounts: check passwords, and throttle failed logins.
"""
