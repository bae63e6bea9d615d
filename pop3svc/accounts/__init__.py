"""
The sources of accounts, and the limits on failed logins.  A source checks passwords or tokens.
"""
