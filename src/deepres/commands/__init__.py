"""Commands of the command line, one a module. What needs torch, or an extra, is imported inside the function."""
