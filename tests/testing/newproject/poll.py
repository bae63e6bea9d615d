"""
Fetches mail into a directory: poll.py HOST PORT USER PASSWORD CAFILE DIRECTORY
"""

import pathlib
import poplib
import ssl
import sys


def poll(host, port, user, password, caFile, directory):
    context = ssl.create_default_context(cafile=caFile)
    server = poplib.POP3_SSL(host, int(port), timeout=10, context=context)
    try:
        server.user(user)
        server.pass_(password)
        for line in server.uidl()[1]:
            number, uniqueID = line.decode("ascii").split()
            message = b"\n".join(server.retr(number)[1]) + b"\n"
            pathlib.Path(directory, uniqueID).write_bytes(message)
            server.dele(number)
        server.quit()
    finally:
        server.close()


if __name__ == "__main__":
    try:
        poll(*sys.argv[1:])
    except (OSError, poplib.error_proto) as error:
        sys.exit(f"mail stays on the server: {error}")
