"""What a loss is worth: fitness by short trainings, and a fair comparison by trainings in full."""
