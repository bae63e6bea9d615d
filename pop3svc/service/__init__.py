"""
Run the service: options, endpoints, TLS, processes and the factory of connections.
"""
