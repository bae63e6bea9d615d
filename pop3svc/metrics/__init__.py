"""
Count what a service does, for a monitoring system.
"""
