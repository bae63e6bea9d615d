"""
C{pop3svc check}: test a POP3 server for conformance to the RFCs.

The package shares no code with the service.  Otherwise a mistake in shared code would go
unnoticed when the service itself is checked.
"""
