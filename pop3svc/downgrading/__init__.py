"""
Make surrogates of messages whose header fields contain UTF-8, for clients that have not sent UTF8
(RFC 6856 section 2.1).
"""
