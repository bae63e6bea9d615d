"""
Answer the questions of the operator about a running service, and carry out the operator's orders.
"""
