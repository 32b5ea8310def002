"""The control socket's messages, their framing, and where sockets and logs lie."""
