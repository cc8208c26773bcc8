"""What the application counts, and how the counts of many processes become one page."""
