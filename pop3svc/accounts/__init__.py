"""
Who may log in.
"""
