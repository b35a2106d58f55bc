"""The sweep as a Kubeflow pipeline: wiring, resources and compilation."""
