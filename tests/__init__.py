"""The tests of scoremean. Each module of the package has a test module of its name; the rest test the whole."""
