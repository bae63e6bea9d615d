"""
The parts of a mailbox that keeps each message in a file of its own.
"""
