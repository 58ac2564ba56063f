"""What runs leave on disk, read and written by the same classes, and what they show together."""
