"""What each task of the pipeline does, one file per task."""
