"""
Where mail lies.
"""
