"""
The questions and orders of the operator to a running service.
"""
