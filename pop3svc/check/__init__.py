"""
C{pop3svc check}: test a POP3 server for conformance to the RFCs.

The package shares no code with the service.  If it did, a mistake in the shared code would remain
unnoticed in a check of the service itself.
"""
