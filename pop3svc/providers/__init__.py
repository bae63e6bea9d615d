"""
The stores and providers that the service contains.
"""
