"""Predictions for files of new instances, in constant memory."""
