"""Everything that describes work: configuration, the pipeline, the ways to run it, the command line."""
