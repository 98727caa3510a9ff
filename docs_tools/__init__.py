"""Tools that generate parts of the site; not part of the package."""
