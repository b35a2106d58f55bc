"""What each task of the pipeline does, one file per task."""

from taylorglo.tasks.console import end_with_runner

# Here, because the import of a task may take seconds, and a task should end with its runner even
# then.
end_with_runner()
