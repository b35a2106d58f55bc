"""The services that a sweep uses: the object store, MLflow, and the variables that name them."""
