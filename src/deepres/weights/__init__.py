"""A trained net: the module that takes pixels, and its file."""
