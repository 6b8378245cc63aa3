"""The report's plots: inline SVG, coloured by the page's style, each with its numbers as a table."""
