"""What the pages of the site are drawn with; no part of the package."""
