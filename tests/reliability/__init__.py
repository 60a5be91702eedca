"""Campaigns that try to break what scoremean promises; `python -m tests.reliability` runs them."""
