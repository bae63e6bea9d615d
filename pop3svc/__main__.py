"""
C{python -m pop3svc} is the command C{pop3svc}.
"""

from pop3svc.service.command import main

if __name__ == "__main__":
    main()
