"""The audit log: written by the supervisor, read and verified by everybody else.

This file imports nothing, so that the supervisor, which needs only `audit.log`, never loads SQLite.
"""
