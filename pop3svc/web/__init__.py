"""
Serve metrics, health checks, the operator's page and the playground over HTTP.
"""
