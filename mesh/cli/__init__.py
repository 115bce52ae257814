"""The command line: one app, `mesh`, and entry points under the names people know.

Modules here import lazily: `--help` and `keygen` load neither torch nor libp2p's host.
"""
