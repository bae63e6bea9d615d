"""
C{pop3svc check}: is a POP3 server what the RFCs say?

Nothing here is shared with the service: a peer must not be measured with its
own ruler.
"""
