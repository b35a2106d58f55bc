"""CMA-ES over the coefficients of the loss, with its memory in Optuna's database."""
