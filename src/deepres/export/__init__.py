"""Trained nets in the formats of other tools; each file is run there before it is left."""

from deepres.export.formats import FORMATS, Format, export_classifier

__all__ = ["FORMATS", "Format", "export_classifier"]
