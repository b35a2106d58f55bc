"""The search as a pipeline: its configuration, the ways to run it, and the command line."""
