"""Lets pip build scoremean; all that it is stands in setup.cfg."""

from setuptools import setup

setup()
