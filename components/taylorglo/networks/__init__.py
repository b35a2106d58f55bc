"""The networks that losses are searched for, by name."""
