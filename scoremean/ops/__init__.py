"""Whole stores and files: import, export, backup, restore, check."""
