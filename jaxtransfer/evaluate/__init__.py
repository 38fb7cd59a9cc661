"""Predictions, scores, learning curves, comparisons: the evidence."""
