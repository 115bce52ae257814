"""Subnets that ship with mesh. Each is one folder with a servicer and a scoring function; see README.md."""
