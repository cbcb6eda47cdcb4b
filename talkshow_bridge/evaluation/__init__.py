"""Measures of lips and gestures, and the table that shows them."""
