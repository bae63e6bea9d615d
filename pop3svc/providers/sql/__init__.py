"""
Mailboxes in a database.
"""
