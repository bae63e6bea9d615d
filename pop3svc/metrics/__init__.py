"""
Count the work of a service, for a monitoring system.
"""
