"""A report as a file: HTML, Markdown, JSON, JUnit XML and a Markdown table."""
