"""Loaders of real data. Each knows a file that you name, the official source, and a package."""
