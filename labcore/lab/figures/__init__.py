"""Figures: pure functions from data to a plotly Figure, tested without a browser."""
