"""Tables and figures from run files and published numbers; nothing here needs torch."""
