"""The tables and figures of both papers as data: what is trained, and the numbers they print."""
