"""
Mailbox stores and providers.
"""
