"""Figures for papers: results -> what is plotted -> PDF, SVG, PNG, and the same numbers as CSV."""
