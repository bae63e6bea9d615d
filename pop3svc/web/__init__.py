"""
The port for HTTP: metrics and health.
"""
