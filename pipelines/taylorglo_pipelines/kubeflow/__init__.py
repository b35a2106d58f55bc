"""The pipeline on Kubeflow: runs, schedules, and waiting for them."""
