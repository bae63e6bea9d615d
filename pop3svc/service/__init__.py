"""
Running it: the only place that sees all of the rest.
"""
