"""What the tests stand on: host state and leaks, `ctr`, terminals, daemons, and the task API spoken
directly.
"""
