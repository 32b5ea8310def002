"""The model proxy: a process outside the sandbox that gives the agents inside a model, and never a credential.

It is a child of the supervisor, which judges and records each request before anything leaves.
"""
