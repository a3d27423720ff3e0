"""Classifiers and validation schemes behind the trained tasks."""
