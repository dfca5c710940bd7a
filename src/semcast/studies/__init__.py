"""Comparisons and sweeps: flat rows, statistics over them, and the page that shows them."""
