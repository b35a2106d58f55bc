"""The report of a sweep: its record, statistics, figures and page."""
