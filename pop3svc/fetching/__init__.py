"""
Fetch mail from other POP3 servers, and store each message once.
"""
