"""
The parts of a mailbox that keeps each message in a separate file.
"""
