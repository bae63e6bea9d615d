"""
What the operator asks a running service, and tells it to do.
"""
